"""A program run at other parameters than its own, to see what holds at all of them."""

from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["Elsewhere"]


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
