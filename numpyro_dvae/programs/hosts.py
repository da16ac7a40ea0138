"""What NumPyro's densities get wrong, and these get right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

__all__ = ["log_prob_of_bits", "sound"]


def log_prob_of_bits(logits: Array, value: Array) -> Array:
    """``z log p + (1 - z) log(1 - p)``, where 0 times -inf is 0, by one logarithm a parameter."""
    is_off = logits < 0  # at 0 the slopes of one side are taken together, which `max` and `abs` mix
    on, off = jnp.where(is_off, -logits, 0.0), jnp.where(is_off, 0.0, logits)
    on, off = jnp.where(value == 0, 0.0, value * on), jnp.where(value == 1, 0.0, (1 - value) * off)
    size = jnp.where(is_off, -logits, logits)
    return -(on + off + jnp.log1p(jnp.exp(-size)))


class _Bernoulli(dist.BernoulliLogits):
    def log_prob(self, value: Any) -> Array:
        return log_prob_of_bits(jnp.asarray(self.logits), value)


class _Categorical(dist.CategoricalProbs):
    def log_prob(self, value: Any) -> Array:
        is_nan = jnp.isnan(self.probs).any(-1)
        return jnp.where(is_nan, jnp.nan, super().log_prob(value))


def sound(fn: Any) -> Any:
    """The same distribution, whose density hands NaN on, and has the gradient of its limits.

    NumPyro's density of a Bernoulli by logits, and of a Categorical by probabilities, is a number
    where these are NaN. No gradient goes into probabilities of exactly 0 or 1: NumPyro's is 0
    there, but NaN where a score of more than 4 nats is multiplied with it. At logits of exactly 0,
    where parameters often start, NumPyro takes `clip` and `abs` to be flat, which gives a Bernoulli
    the gradient y in place of y - 1/2; next to 0 it is right.
    """
    if type(fn) is dist.BernoulliLogits:
        return _Bernoulli(fn.logits, validate_args=False)
    if type(fn) is dist.CategoricalProbs:
        return _Categorical(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits:
        traced = isinstance(fn.logits, jax.core.Tracer)
        if not (traced and jnp.issubdtype(fn.logits.dtype, jnp.floating)):
            return fn
        logits = fn.logits + jnp.where(fn.logits == 0, jnp.finfo(fn.logits.dtype).tiny, 0)
        return dist.BinomialLogits(logits, fn.total_count, validate_args=False)
    if isinstance(fn, dist.BernoulliProbs):
        if not isinstance(fn.probs, jax.core.Tracer):
            return fn
        inside = (fn.probs > 0) & (fn.probs < 1)
        probs = jnp.where(inside, fn.probs, jax.lax.stop_gradient(fn.probs))
        return dist.BernoulliProbs(probs, validate_args=False)
    if not isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        return fn
    base = sound(fn.base_dist)
    if base is fn.base_dist:
        return fn
    if isinstance(fn, MaskedDistribution):
        return base.mask(fn._mask)
    if isinstance(fn, ExpandedDistribution):
        return base.expand(fn.batch_shape)
    return base.to_event(fn.reinterpreted_batch_ndims)
