"""Programs that run at parameters which are given, modules and parameter store alike."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from pyro_dvae.programs.messages import is_of_store

__all__ = ["AtParameters"]


class AtParameters(Messenger):
    """Gives each `pyro.param` its value; a network that computes with its own tensors as well.

    Args:
        trained: The parameters.
        known: Constraints of parameters that a program may ask for before it declares them.
        complete: Whether a parameter that is not among them is an error.

    Raises:
        ValueError: If a parameter is missing, or has another shape.
    """

    def __init__(
        self, trained: Mapping[str, Tensor], known: Mapping[str, Any], *, complete: bool
    ) -> None:
        super().__init__()
        self.asked: set[str] = set()  # the names of those that the programs have asked for
        self.trained, self.known, self.complete = trained, known, complete
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
        if len(msg["args"]) == 1 and name in self.trained and name not in store:
            value, constraint = self.trained[name], self.known.get(name, constraints.real)
            if not bool(constraint.check(value).all()):  # of another program's
                constraint = constraints.real
            store.setdefault(name, value.clone(), constraint)

    def _pyro_post_param(self, msg: Any) -> None:
        name, value, store = msg["name"], msg["value"], pyro.get_param_store()
        self.asked.add(name)
        if not is_of_store(msg):
            return None
        tensor = value.unconstrained()
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._gradients:
            self._gradients[id(tensor)] = tensor, tensor.grad
            tensor.grad = None
        trained = self.trained.get(name)
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
        if self.complete:
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
