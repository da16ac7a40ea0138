"""Options of losses: those that a loss does not take are refused by name, with what there is."""

import inspect
from typing import Any

__all__ = ["NamedOptions"]

_STEPS = "it has one particle, or lists the states"
_INSTEAD = {
    "num_particles": _STEPS,
    "vectorize_particles": _STEPS,
    "max_plate_nesting": "its guide reads the plates off the model",
    "closed_form_entropy": "its -log q is that of the states or draws themselves",
    "baseline": "it needs none, or has one of its own; Reinforce_ELBO takes one",
    "retain_graph": "set the attribute `retain_graph` of the loss, or call differentiable_loss "
    "and its backward pass yourself",
    "strict_enumeration_warning": "nothing here is enumerated by `config_enumerate`",
    "ignore_jit_warnings": "torch.jit has no part in it",
    "jit_options": "torch.jit has no part in it",
    "tail_adaptive_beta": "it is TraceTailAdaptive_ELBO's; schedules of `beta` weigh the rate",
}


class NamedOptions:
    """A base whose subclasses refuse options that their constructor does not have.

    Raises:
        TypeError: If there is such an option, as for any function.
        ValueError: If the class itself was passed as the loss.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Make an instance, if the options are those of its constructor."""
        if len(args) > 1 and all(map(callable, args[:2])):  # Pyro calls it with model and guide
            raise ValueError(
                f"`loss` is the class {cls.__name__}, not a loss: write loss={cls.__name__}(), "
                "with its options in the brackets."
            )
        parameters = inspect.signature(cls.__init__).parameters
        taken = [name for name in parameters if name != "self"]
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in () if takes_all else options.keys() - set(taken):
            reason = _INSTEAD.get(name, "there is no such option")
            raise TypeError(
                f"{cls.__name__} does not take '{name}': {reason}. It takes {', '.join(taken)}."
            )
        return super().__new__(cls)
