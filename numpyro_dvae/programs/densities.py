"""Log-densities of sites, and where a mask is that silences them.

A mask silences a log-density, never a draw. A handler's (`handlers.mask`) becomes the
distribution's own (`.mask(...)`), which applies it, as does `fast_log_prob`.

That function is for many states at once. NumPyro works on a parameter once for each value that it
is broadcast against: for a thousand data and hundreds of states that is several times the cost of a
small decoder. Here logarithms are taken of the parameters as they are. The values are the same, to
rounding.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool
from numpyro import distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

from numpyro_dvae.distributions import CertainCategorical, UniformCategorical
from numpyro_dvae.ops.bounds import bernoulli_entropy, categorical_entropy
from numpyro_dvae.programs.sites import Site

__all__ = [
    "cell_log_prob",
    "changed",
    "count_cells",
    "entropy_of",
    "entry_mask",
    "fast_log_prob",
    "given_steps",
    "has_inverse",
    "is_masked",
    "may_silence",
    "steps_of",
    "without_mask",
]


def fast_log_prob(site: Site) -> Array:
    """Log-density of a model's site; the distribution's own, if there is no faster way."""
    fn, num_dims = site.fn, 0
    while isinstance(fn, dist.Independent | ExpandedDistribution):
        num_dims += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    if type(fn) not in (dist.Normal, dist.BernoulliLogits) or not num_dims:
        return site.log_prob()
    value, dims = jnp.asarray(site.value), tuple(range(-num_dims, 0))
    value = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, site.fn.event_shape))
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
    is_off = logits < 0  # at 0 the slopes of one side are taken together, which `max` and `abs` mix
    on, off = jnp.where(is_off, -logits, 0.0), jnp.where(is_off, 0.0, logits)
    on, off = jnp.where(value == 0, 0.0, value * on), jnp.where(value == 1, 0.0, (1 - value) * off)
    size = jnp.where(is_off, -logits, logits)
    return -(on + off + jnp.log1p(jnp.exp(-size))).sum(dims)


_IN_DOUBLE = 1e-9  # rounding of log-densities, of themselves and of a nat


def entry_mask(site: Site, entries: int) -> Bool[Array, "*batch_entries"]:
    """Where no mask silences an entry of a site.

    Entries are the cells of the `entries` event dims that the distribution takes as independent.
    """
    mask = jnp.ones((1,) * entries, bool)
    fn, inner = site.fn, 0  # event dims that belong to the batch of this inner distribution
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            mask = _both(mask, fn._mask, entries - inner)
        inner += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return mask


def _both(mask: Array, other: bool | Array, missing: int) -> Array:
    """Two masks, the other with `missing` event dims fewer."""
    other = jnp.asarray(other, bool)
    return mask & other.reshape((*other.shape, *[1] * missing))


def count_cells(fn: Any) -> int:
    """Event dims whose entries have a log-density of their own."""
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return count_cells(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return fn.reinterpreted_batch_ndims + count_cells(fn.base_dist)
    return 1 if hasattr(fn, "conditional_log_prob") else 0


def cell_log_prob(fn: Any, value: Array, num_cells: int) -> Array:
    """Log-density of each cell, over the last `num_cells` dims; 0 where `fn` masks it itself."""
    if not num_cells:
        return fn.log_prob(value)
    if isinstance(fn, MaskedDistribution):
        mask = jnp.asarray(fn._mask)
        scores = cell_log_prob(fn.base_dist, value, num_cells)
        return jnp.where(mask.reshape(mask.shape + (1,) * num_cells), scores, 0.0)
    if isinstance(fn, ExpandedDistribution):
        return cell_log_prob(fn.base_dist, value, num_cells)
    if isinstance(fn, dist.Independent):
        num_cells = num_cells - fn.reinterpreted_batch_ndims
        return cell_log_prob(fn.base_dist, value, num_cells)
    return fn.conditional_log_prob(value)


def without_mask(fn: Any) -> Any:
    """The distribution that draws are made from."""
    if isinstance(fn, MaskedDistribution):
        return without_mask(fn.base_dist)
    if not isinstance(fn, dist.Independent | ExpandedDistribution):
        return fn
    base = without_mask(fn.base_dist)
    if base is fn.base_dist:
        return fn
    if isinstance(fn, ExpandedDistribution):
        return base.expand(fn.batch_shape)
    return base.to_event(fn.reinterpreted_batch_ndims)


def is_masked(site: Site) -> bool:
    """Whether a site is under a mask, whatever it silences."""
    return without_mask(site.fn) is not site.fn


def may_silence(site: Site) -> bool:
    """Whether a site is under a mask other than that of `mask=True`, which silences nothing."""
    fn = site.fn
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist
    return False


def changed(one: Array, two: Array, in_single: float) -> Bool[Array, "..."]:
    """Where log-densities differ by more than rounding, when masked latents have other values.

    Args:
        one: The log-densities.
        two: The same with other values.
        in_single: What rounding is in single precision, of themselves and of a nat; in double
            precision it is 1e-9, so that weak traces show.
    """
    in_double = jnp.promote_types(one.dtype, two.dtype) == jnp.float64
    most = _IN_DOUBLE if in_double else in_single
    return ~jnp.isclose(one, two, rtol=most, atol=most, equal_nan=True)


def entropy_of(fn: Any, value: Array) -> Array | None:
    """Closed form, or closed form per step given the earlier codes (autoregressive guides)."""
    if isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        entropy = entropy_of(fn.base_dist, value)
        if entropy is None:
            return None
        if isinstance(fn, MaskedDistribution):
            return jnp.where(fn._mask, entropy, 0.0)
        if isinstance(fn, ExpandedDistribution):
            return jnp.broadcast_to(entropy, fn.batch_shape)
        return entropy.sum(range(-fn.reinterpreted_batch_ndims, 0))
    if hasattr(fn, "conditional_entropy"):
        return fn.conditional_entropy(value)
    if isinstance(fn, CertainCategorical | UniformCategorical):
        return fn.entropy()
    if isinstance(fn, dist.CategoricalLogits):
        return categorical_entropy(fn.logits)
    if isinstance(fn, dist.BernoulliLogits):  # NumPyro's own is NaN at logits of -100
        return bernoulli_entropy(fn.logits)
    if isinstance(fn, dist.CategoricalProbs):
        return -_plogp(fn.probs).sum(-1)
    if isinstance(fn, dist.BernoulliProbs):
        is_sure = (fn.probs <= 0) | (fn.probs >= 1)
        probs = jnp.where(is_sure, 0.5, fn.probs)
        return jnp.where(is_sure, 0.0, dist.BernoulliProbs(probs, validate_args=False).entropy())
    try:
        return fn.entropy()
    except NotImplementedError:
        return None


def _plogp(probs: Array) -> Array:
    """0 where p = 0, with a gradient of 0 there; NumPyro's is NaN."""
    probs = jnp.where(probs <= 0, 1.0, probs)
    return xlogy(probs, probs)


def has_inverse(site: Site) -> bool:
    """Whether a site's log-density can be told of a value without how that was drawn."""
    try:
        site.fn.log_prob(site.value)
    except NotImplementedError:
        return False
    return True


def steps_of(site: Site) -> dict[str, Array]:
    """What a flow has computed of its draw, by names under which it is given with the value."""
    return {f"{site.name}[{i}]": leaf for i, leaf in enumerate(jax.tree.leaves(site.call))}


def given_steps(site: Site, values: Mapping[str, Array]) -> Any:
    """What `steps_of` has found of a site, as its log-density takes it; nothing if it is not given.

    Args:
        site: A site.
        values: What is given, by name.
    """
    name = site.name
    if f"{name}[0]" not in values:
        return []
    drawn = jax.eval_shape(lambda key: site.fn.sample_with_intermediates(key)[1], jax.random.key(0))
    leaves, tree = jax.tree.flatten(drawn)
    return jax.tree.unflatten(tree, [values[f"{name}[{i}]"] for i in range(len(leaves))])
