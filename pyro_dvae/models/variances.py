"""Variances within bounds, and the real numbers that networks and optimisers see in their place."""

import math

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.models.closed_forms import finite_logit

__all__ = ["check_variance", "raw_of", "variance_of"]


def check_variance(variance: float, bounds: tuple[float, float] | None) -> None:
    """Check that a variance is within its bounds; None is all that is positive.

    Raises:
        ValueError: If it is not.
    """
    low, high = (0.0, math.inf) if bounds is None else bounds
    if not 0.0 <= low < variance < high:
        raise ValueError(
            f"`variance` must lie strictly between the `bounds`, at least (0, inf); got "
            f"{variance} and {bounds}."
        )


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
