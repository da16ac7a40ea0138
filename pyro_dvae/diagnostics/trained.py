"""A trained pair of model and guide, run at its parameters, with everything left as it was.

What a `FitResult` holds is all that its programs see: Pyro's parameter store is put aside while
they run, so that other fits of the same names leave no trace. The store, and values, gradients and
modes of modules, are restored; the generators move, as they do in Pyro whenever something is drawn.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

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
        """Run a block in evaluation mode at these parameters; restore all that it changes.

        Raises:
            ValueError: If the programs have a parameter that is missing, or has another shape.
        """
        store = pyro.get_param_store()
        before = store.get_state()
        empty: Any = {"params": {}, "constraints": {}}
        with ExitStack() as stack:
            stack.callback(lambda: dict(store.items()))  # marks again what `get_state` unmarked
            stack.enter_context(store.scope(empty if isinstance(self, _Fitted) else before))
            stack.enter_context(evaluation_mode(self))
            stack.enter_context(_AtParameters(self, before["constraints"]))
            yield


class _Fitted(Trained):
    """Those of a `FitResult`, beside which there are no other parameters."""


def as_trained(result: Any, params: Mapping[str, Tensor] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with or without parameters.

    A pair has the parameters of Pyro's store, less those that are given.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(result, tuple) and len(result) == 2 and all(map(callable, result)):
        return Trained(*result, {} if params is None else params)
    if not (hasattr(result, "model") and hasattr(result, "guide")):
        raise ValueError(
            f"`result` must be a FitResult, or a pair (model, guide); got {type(result).__name__}."
        )
    params = result.params if params is None else {**result.params, **params}
    return _Fitted(result.model, result.guide, params)


class _AtParameters(Messenger):
    """Gives each `pyro.param` its value; a network that computes with its own tensors as well.

    Args:
        trained: The parameters.
        known: Constraints of parameters that a program may ask for before it declares them.
    """

    def __init__(self, trained: Trained, known: Mapping[str, Any]) -> None:
        super().__init__()
        self.trained, self.known = trained, known
        self._values: dict[int, tuple[Tensor, Tensor]] = {}  # tensors of modules, as they were
        self._gradients: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __exit__(self, *exc: Any) -> None:
        for tensor, value in self._values.values():
            tensor.data.copy_(value)
        for tensor, gradient in self._gradients.values():
            tensor.grad = gradient
        self._values.clear()
        self._gradients.clear()
        super().__exit__(*exc)

    def _pyro_param(self, msg: Any) -> None:
        """Make a parameter known that is asked for by its name alone."""
        name, store = msg["name"], pyro.get_param_store()
        if len(msg["args"]) == 1 and name in self.trained.params and name not in store:
            value, constraint = self.trained.params[name], self.known.get(name, constraints.real)
            if not bool(constraint.check(value).all()):  # of another program's
                constraint = constraints.real
            store.setdefault(name, value.clone(), constraint)

    def _pyro_post_param(self, msg: Any) -> None:
        name, value, store = msg["name"], msg["value"], pyro.get_param_store()
        tensor = value.unconstrained()
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._gradients:
            self._gradients[id(tensor)] = tensor, tensor.grad
            tensor.grad = None
        trained = self.trained.params.get(name)
        if trained is None:
            return self._miss(name)
        trained = trained.to(value.device)
        if torch.equal(value, trained):
            return None
        if isinstance(tensor, nn.Parameter):  # a module computes with it, whatever is handed out
            _check_shape(name, value, trained)
            self._values.setdefault(id(tensor), (tensor, tensor.detach().clone()))
            constraint = store._constraints[name]  # `get_state` would unmark what is handed out
            tensor.data.copy_(transform_to(constraint).inv(trained))
        else:
            store[name] = trained.clone()  # the store marks what it is given
        msg["value"] = store[name]
        return None

    def _miss(self, name: str) -> None:
        if isinstance(self.trained, _Fitted):
            raise ValueError(
                f"`params` lacks ['{name}'], so that this would be an initial value. Pass the "
                "FitResult of these programs, or all their parameters in `params`."
            )


def _check_shape(name: str, value: Tensor, trained: Tensor) -> None:
    if value.shape != trained.shape:
        raise ValueError(
            f"`params`: '{name}' has shape {tuple(trained.shape)}, but the module that computes "
            f"with it has {tuple(value.shape)}. Pass the FitResult that this module was fitted in."
        )
