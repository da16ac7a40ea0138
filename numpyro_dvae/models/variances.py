"""Variances within bounds, and the real numbers that networks and optimisers see in their place."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from numpyro_dvae.models.closed_forms import finite_logit

__all__ = ["raw_of", "variance_of"]


def variance_of(
    raw: Float[Array, "*shape"], bounds: tuple[float, float] | None
) -> Float[Array, "*shape"]:
    """The variance that the raw parameter stands for."""
    if bounds is None:
        return jnp.exp(raw)
    low, high = (math.log(bound) for bound in bounds)
    return jnp.exp(low + (high - low) * nn.sigmoid(raw))


def raw_of(
    variance: Float[Array, "*shape"], bounds: tuple[float, float] | None
) -> Float[Array, "*shape"]:
    """The raw parameter that gives `variance`, or the bound next to it."""
    if bounds is None:
        return jnp.log(variance)
    low, high = (math.log(bound) for bound in bounds)
    return finite_logit((jnp.log(variance) - low) / (high - low))
