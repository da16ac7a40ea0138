"""Where masks are."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool
from numpyro.distributions.distribution import MaskedDistribution

__all__ = ["entry_mask"]


def entry_mask(fn: Any, entries: int) -> Bool[Array, "*batch_entries"]:
    """Where no mask silences an entry of a site.

    Entries are the cells of the `entries` event dims that the distribution takes as independent.
    """
    mask = jnp.ones((1,) * entries, bool)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            own = jnp.asarray(fn._mask, bool)
            mask = mask & own.reshape(*own.shape, *(1,) * entries)
        entries -= getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return mask
