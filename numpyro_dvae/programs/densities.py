"""Log-densities of many states at once, without repeated work on parameters that they share.

NumPyro works on a parameter once for each value that it is broadcast against: for a thousand data
and hundreds of states that is several times the cost of a small decoder. Here logarithms are taken
of the parameters as they are. The values are the same, to rounding.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution

from numpyro_dvae.programs.sites import Site

__all__ = ["fast_log_prob"]


def fast_log_prob(site: Site) -> Array:
    """Log-density of a model's site; the distribution's own, if there is no faster way."""
    fn, num_dims = site.fn, 0
    while isinstance(fn, dist.Independent | ExpandedDistribution):
        num_dims += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    if type(fn) not in (dist.Normal, dist.BernoulliLogits) or not num_dims:
        return site.log_prob()
    value, dims = jnp.asarray(site.value), tuple(range(-num_dims, 0))
    if type(fn) is dist.Normal:
        found = _normal(jnp.asarray(fn.loc), jnp.asarray(fn.scale), value, dims)
    else:
        found = _bernoulli(jnp.asarray(fn.logits), value, dims)
    if site.is_observed and fn._validate_args:
        found = jnp.where(fn.support(value).all(dims), found, -jnp.inf)
    return jnp.broadcast_to(found, jnp.broadcast_shapes(found.shape, site.fn.batch_shape))


def _normal(loc: Array, scale: Array, value: Array, dims: tuple[int, ...]) -> Array:
    square, log_norm = jnp.square(value - loc), jnp.log(scale) + 0.5 * math.log(2 * math.pi)
    if scale.ndim >= len(dims) and math.prod(scale.shape[dims[0] :]) == 1:
        num_entries = math.prod(square.shape[dims[0] :])
        square, scale = square.sum(dims), scale.reshape(scale.shape[: dims[0]])
        return -0.5 * square / jnp.square(scale) - num_entries * log_norm.reshape(scale.shape)
    return -(0.5 * square / jnp.square(scale) + log_norm).sum(dims)


def _bernoulli(logits: Array, value: Array, dims: tuple[int, ...]) -> Array:
    """``z log p + (1 - z) log(1 - p)``, where 0 times -inf is 0, by one logarithm a parameter."""
    on, off = jnp.maximum(-logits, 0.0), jnp.maximum(logits, 0.0)
    on, off = jnp.where(value == 0, 0.0, value * on), jnp.where(value == 1, 0.0, (1 - value) * off)
    return -(on + off + jnp.log1p(jnp.exp(-jnp.abs(logits)))).sum(dims)
