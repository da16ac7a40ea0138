"""Variances within bounds, and the real numbers that networks and optimisers see in their place."""

import math

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.models.closed_forms import finite_logit

__all__ = ["raw_of", "variance_of"]


def variance_of(
    raw: Float[Tensor, "*shape"], bounds: tuple[float, float] | None
) -> Float[Tensor, "*shape"]:
    """The variance that the raw parameter stands for."""
    if bounds is None:
        return raw.exp()
    low, high = (math.log(bound) for bound in bounds)
    return (low + (high - low) * raw.sigmoid()).exp()


def raw_of(
    variance: Float[Tensor, "*shape"], bounds: tuple[float, float] | None
) -> Float[Tensor, "*shape"]:
    """The raw parameter that gives `variance`, or the bound next to it."""
    if bounds is None:
        return variance.log()
    low, high = (math.log(bound) for bound in bounds)
    return finite_logit((variance.log() - low) / (high - low))
