"""Where a mask is, and what it leaves alone.

A mask silences a log-density, never a draw. A handler's (`handlers.mask`) becomes the
distribution's own (`.mask(...)`), which applies it, as does the fast way of `densities`.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

from numpyro_dvae.programs.sites import Site

__all__ = ["changed", "entry_mask", "is_masked", "without_mask"]

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
