"""What NumPyro's densities get wrong, and these get right."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

__all__ = ["behind_steps", "in_steps", "sound"]


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


def in_steps(fn: Any, value: Any, others: Any) -> tuple[Any, Any, Any]:
    """A distribution and its value of all steps of a `scan`, of as many batch dims.

    NumPyro puts the steps in front of the dims that either has in a step, which may be fewer than
    the other's; the steps of the one would then meet another dim of the other.

    Args:
        fn: The distribution.
        value: A value of all steps, or none yet.
        others: Arrays of the dims of the value.
    """
    if value is None:
        return fn, value, others
    if isinstance(_innermost(fn), dist.Unit):
        fn = _factor_of_steps(fn, len(value))
        return fn, jnp.empty((*fn.batch_shape, 0)), others
    if jnp.shape(value)[:1] != fn.batch_shape[:1]:
        return fn, value, others
    missing = jnp.ndim(value) - fn.event_dim - len(fn.batch_shape)
    if missing > 0:
        return _with_dims(fn, missing), value, others
    reshape = partial(behind_steps, count=-missing)
    return (fn, reshape(value), jax.tree.map(reshape, others)) if missing else (fn, value, others)


def _factor_of_steps(fn: Any, num_steps: int) -> Any:
    """A factor of all steps, which in NumPyro has the batch dims of one."""
    if isinstance(fn, MaskedDistribution):
        return _factor_of_steps(fn.base_dist, num_steps).mask(fn._mask)
    log_factor = _innermost(fn).log_factor
    if isinstance(fn, ExpandedDistribution):  # to the plates of a step, by dims before the steps
        shape = jnp.shape(log_factor)
        ones = next((place for place, size in enumerate(shape) if size > 1), len(shape))
        if num_steps not in shape[: ones + 1]:  # a value that was drawn, of which none is asked
            return fn
        log_factor = jnp.reshape(log_factor, shape[shape.index(num_steps) :])
        log_factor = behind_steps(log_factor, 1 + len(fn.batch_shape) - jnp.ndim(log_factor))
        log_factor = jnp.broadcast_to(log_factor, (num_steps, *fn.batch_shape))
    return dist.Unit(log_factor)


def behind_steps(array: Any, count: int) -> Any:
    """An array of all steps with so many more dims of size 1 behind them; a number as it is."""
    shape = jnp.shape(array)
    if not shape or count <= 0:
        return array
    return jnp.reshape(array, (*shape[:1], *[1] * count, *shape[1:]))


def _with_dims(fn: Any, count: int) -> Any:
    """The distribution with so many more dims behind the steps."""
    if isinstance(fn, dist.Independent):
        return _with_dims(fn.base_dist, count).to_event(fn.reinterpreted_batch_ndims)
    shape = (*fn.batch_shape[:1], *[1] * count, *fn.batch_shape[1:])
    if isinstance(fn, ExpandedDistribution):
        return _with_dims(fn.base_dist, count).expand(shape)
    if isinstance(fn, MaskedDistribution):
        mask = fn._mask if isinstance(fn._mask, bool) else behind_steps(fn._mask, count)
        return _with_dims(fn.base_dist, count).mask(mask)
    found = jax.tree.map(partial(behind_steps, count=count), fn)
    found._batch_shape = shape
    return found


def _innermost(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _may_be_nan(parameter: Any) -> bool:
    return isinstance(parameter, jax.core.Tracer) or bool(np.isnan(parameter).any())


def _off_zero(logits: Array) -> Array:
    """Logits that have a gradient, a hair off 0."""
    if not (isinstance(logits, jax.core.Tracer) and jnp.issubdtype(logits.dtype, jnp.floating)):
        return logits
    return logits + jnp.where(logits == 0, jnp.finfo(logits.dtype).tiny, 0)
