"""What NumPyro's densities get wrong, and these get right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

__all__ = ["sound"]


class _Bernoulli(dist.BernoulliLogits):
    def log_prob(self, value: Any) -> Array:
        logits = _off_zero(jnp.asarray(self.logits))
        found = dist.BernoulliLogits(logits, validate_args=False).log_prob(value)
        return found + jnp.where(jnp.isnan(logits), jnp.nan, 0.0)  # by one addition a draw


class _Categorical(dist.CategoricalProbs):
    def log_prob(self, value: Any) -> Array:
        is_nan = jnp.isnan(self.probs).any(-1)
        return super().log_prob(value) + jnp.where(is_nan, jnp.nan, 0.0)


def sound(fn: Any) -> Any:
    """The same distribution, whose density hands NaN on, and has the gradient of its limits.

    NumPyro's density of a Bernoulli by logits, and of a Categorical by probabilities, is a number
    where these are NaN. No gradient goes into probabilities of exactly 0 or 1: NumPyro's is 0
    there, but NaN where a score of more than 4 nats is multiplied with it. At logits of exactly 0,
    where parameters often start, NumPyro takes `clip` and `abs` to be flat, which gives a Bernoulli
    the gradient y in place of y - 1/2; next to 0 it is right.
    """
    if type(fn) is dist.BernoulliLogits and _may_be_nan(fn.logits):
        return _Bernoulli(fn.logits, validate_args=False)
    if type(fn) is dist.CategoricalProbs and _may_be_nan(fn.probs):
        return _Categorical(fn.probs, validate_args=False)
    if type(fn) is dist.BinomialLogits and isinstance(fn.logits, jax.core.Tracer):
        return dist.BinomialLogits(_off_zero(fn.logits), fn.total_count, validate_args=False)
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


def _may_be_nan(parameter: Any) -> bool:
    return isinstance(parameter, jax.core.Tracer) or bool(np.isnan(parameter).any())


def _off_zero(logits: Array) -> Array:
    """Logits that have a gradient, a hair off 0."""
    if not (isinstance(logits, jax.core.Tracer) and jnp.issubdtype(logits.dtype, jnp.floating)):
        return logits
    return logits + jnp.where(logits == 0, jnp.finfo(logits.dtype).tiny, 0)
