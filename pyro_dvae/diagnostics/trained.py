"""A trained pair of model and guide, run at its parameters, with everything left as it was.

Generators, the parameter store, values and modes of modules are restored.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from pyro_dvae.fit import rng
from pyro_dvae.fit.data import as_batch, to_device
from pyro_dvae.fit.svi import device_of, evaluation_mode

__all__ = ["Trained", "as_trained"]


class Trained(NamedTuple):
    """A model and guide, and the values of their parameters."""

    model: Callable
    guide: Callable
    params: Mapping[str, Tensor]

    def arguments(self, data: tuple) -> tuple:
        """Data as model and guide are called with them, on the device of the parameters."""
        return to_device(as_batch(data), device_of(self, self.params.values())).args

    @contextmanager
    def at_parameters(self) -> Iterator[None]:
        """Run a block in evaluation mode at these parameters; restore all that it changes."""
        store = pyro.get_param_store()
        state = store.get_state()
        with ExitStack() as stack:
            stack.enter_context(rng.preserved())
            stack.callback(store.set_state, state)
            stack.callback(store.clear)
            stack.enter_context(evaluation_mode(self))
            stack.enter_context(_AtParameters(self.params))
            yield


def as_trained(result: Any, params: Mapping[str, Tensor] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with or without parameters.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(result, tuple) and len(result) == 2 and all(map(callable, result)):
        return Trained(*result, {} if params is None else params)
    if not (hasattr(result, "model") and hasattr(result, "guide")):
        raise ValueError(
            f"`result` must be a FitResult, or a pair (model, guide); got {type(result).__name__}."
        )
    return Trained(result.model, result.guide, result.params if params is None else params)


class _AtParameters(Messenger):
    """Gives each `pyro.param` its value; a network that computes with its own tensors as well."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.params = params
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # tensors that changed, their values

    def __exit__(self, *exc: Any) -> None:
        for tensor, before in self._before.values():
            tensor.data.copy_(before)
        self._before.clear()
        super().__exit__(*exc)

    def _pyro_post_param(self, msg: Any) -> None:
        trained, value = self.params.get(msg["name"]), msg["value"]
        if trained is None or torch.equal(value, trained.to(value.device)):
            return
        tensor, store = value.unconstrained(), pyro.get_param_store()
        if id(tensor) not in self._before:
            self._before[id(tensor)] = tensor, tensor.detach().clone()
            constraint = store.get_state()["constraints"][msg["name"]]
            tensor.data.copy_(transform_to(constraint).inv(trained))
            msg["value"] = store[msg["name"]]
