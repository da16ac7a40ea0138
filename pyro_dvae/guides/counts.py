"""How the distribution of a count is told on the numbers 0, ..., V - 1, and beyond them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "BOUNDED",
    "UNBOUNDED",
    "enough_numbers",
    "mass_beyond",
    "numbers_of",
    "probs_of_numbers",
]

BOUNDED = (torch.distributions.Binomial,)
UNBOUNDED = (torch.distributions.Poisson, torch.distributions.Geometric)


def mass_beyond(base: Any, num_values: int) -> Float[Tensor, "*batch"]:
    """The probability of numbers from V on of an infinite family.

    In closed form: one less the sum of V probabilities is rounding, where these are many.
    """
    if isinstance(base, torch.distributions.Geometric):
        return torch.exp(num_values * torch.log1p(-base.probs))
    return torch.special.gammainc(torch.full_like(base.rate, num_values), base.rate)


def enough_numbers(base: Any) -> int:
    """V that leaves 1e-6 of an infinite family out, a power of two."""
    size = 2
    while size < 2**20 and float(mass_beyond(base, size).max()) > 1e-6:
        size *= 2
    return size


def numbers_of(base: Any, num_values: int) -> Float[Tensor, "V *batch"]:
    """0 to V - 1, before the batch dims of a distribution."""
    parameter = next(getattr(base, name) for name in base.arg_constraints if name != "total_count")
    numbers = torch.arange(num_values, dtype=parameter.dtype, device=parameter.device)
    return numbers.reshape(-1, *[1] * len(base.batch_shape)).expand(-1, *base.batch_shape)


def probs_of_numbers(base: Any, num_values: int) -> Float[Tensor, "*batch V"]:
    """Probabilities of 0 to V - 1; of a Binomial with fewer trials, the last is told again."""
    numbers = numbers_of(base, num_values)
    if isinstance(base, BOUNDED):
        numbers = torch.minimum(numbers, base.total_count)
        base = torch.distributions.Binomial(base.total_count, probs=base.probs, validate_args=False)
    return base.log_prob(numbers).exp().movedim(0, -1)
