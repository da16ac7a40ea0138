"""A program run at other parameters and draws than its own, to see what holds at all of them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_dvae.programs.messages import is_of_store

__all__ = ["Elsewhere", "draws_elsewhere"]


class Elsewhere(Messenger):
    """Moves each parameter by normal noise, in unconstrained space; all are as before at the end.

    A value that is at the edge of its constraint, as a probability of 0, moves about the middle.

    Args:
        seed: Of the noise.
        spread: Its standard deviation; the noise of minus that is opposite.

    Attributes:
        num_moved: How many parameters the program has asked for, in its last run.
    """

    def __init__(self, seed: int, spread: float) -> None:
        super().__init__()
        self.seed, self.spread = seed, spread
        self.num_moved = 0
        self._values: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> "Elsewhere":
        self.num_moved = 0
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        for tensor, value in self._values.values():
            tensor.data.copy_(value)
        self._values.clear()
        super().__exit__(*exc)

    def _pyro_post_param(self, msg: Any) -> None:
        if not is_of_store(msg):
            return
        tensor = msg["value"].unconstrained()  # a module computes with it, too
        if id(tensor) not in self._values:
            self._values[id(tensor)] = tensor, tensor.detach().clone()
            tensor.data.copy_(self._moved(tensor.detach()))
        msg["value"] = pyro.get_param_store()[msg["name"]]

    def _moved(self, value: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.num_moved)
        self.num_moved += 1
        if not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        start = torch.where(value.isfinite(), value, 0.0)
        return start + self.spread * noise.to(value.device)


def draws_elsewhere(model: Callable, names: Collection[str], seed: int, spread: float) -> Callable:
    """A model that goes on from other draws of some continuous latents than it has made.

    All are moved by as much, up or down, in unconstrained space; for seed 1 every other one the
    opposite way. Handlers around see the draws as they were.

    Args:
        model: The model.
        names: Of the latents.
        seed: Which of them go up.
        spread: By how much.
    """
    steps = {n: -spread if seed == 1 and i % 2 else spread for i, n in enumerate(names)}
    return _Steps(steps)(model)


class _Steps(Messenger):
    """Moves draws."""

    def __init__(self, steps: Mapping[str, float]) -> None:
        super().__init__()
        self.steps = steps

    def _pyro_post_sample(self, msg: Any) -> None:
        step = self.steps.get(msg["name"], 0.0)
        if step == 0.0:
            return
        try:
            transform = biject_to(msg["fn"].support)
        except NotImplementedError:  # a support of the user's own
            return
        free = transform.inv(msg["value"])
        msg["value"] = transform(torch.where(free.isfinite(), free, 0.0) + step)
