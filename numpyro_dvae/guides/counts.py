"""How the distribution of a count is told on the numbers 0, ..., V - 1, and beyond them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from numpyro import distributions as dist

__all__ = [
    "BOUNDED",
    "UNBOUNDED",
    "enough_numbers",
    "mass_beyond",
    "numbers_of",
    "probs_of_numbers",
]

BOUNDED = (dist.BinomialProbs, dist.BinomialLogits)
UNBOUNDED = (dist.Poisson, dist.GeometricProbs, dist.GeometricLogits)


def mass_beyond(base: Any, num_values: int) -> Float[Array, "*batch"]:
    """The probability of numbers from V on of an infinite family.

    In closed form: one less the sum of V probabilities is rounding, where these are many.
    """
    if isinstance(base, dist.Poisson):
        rate = jnp.asarray(base.rate, float)
        return jax.scipy.special.gammainc(jnp.full_like(rate, num_values), rate)
    return jnp.exp(num_values * jnp.log1p(-base.probs))


def enough_numbers(base: Any) -> int:
    """V that leaves 1e-6 of an infinite family out, a power of two; 0 if that is traced."""
    size = 2
    while size < 2**20:
        mass = mass_beyond(base, size).max()
        if isinstance(mass, jax.core.Tracer):
            return 0
        if mass <= 1e-6:
            break
        size *= 2
    return size


def numbers_of(base: Any, num_values: int) -> Integer[Array, "V *ones"]:
    """0 to V - 1, before the batch dims of a distribution."""
    return jnp.arange(num_values).reshape(-1, *[1] * len(base.batch_shape))


def probs_of_numbers(base: Any, num_values: int) -> Float[Array, "*batch V"]:
    """Probabilities of 0 to V - 1; of a Binomial with fewer trials, the last is told again."""
    numbers = numbers_of(base, num_values)
    if isinstance(base, BOUNDED):
        numbers = jnp.minimum(numbers, jnp.asarray(base.total_count))
        base = dist.BinomialProbs(base.probs, base.total_count, validate_args=False)
    return jnp.moveaxis(jnp.exp(base.log_prob(numbers)), 0, -1)
