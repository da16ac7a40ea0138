"""What the closed form of a parameter needs of a site: its statistic, and where a mask is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped
from numpyro.distributions.distribution import MaskedDistribution

from numpyro_dvae.infer.layout import Layout, Site, base_distribution

__all__ = ["Statistic", "entry_mask", "site_statistic"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Array, "K *plates_and_entries"]
    mask: Bool[Array, "*plates_and_entries"]  # False where an entry is masked


def site_statistic(site: Site, form: Any, layout: Layout) -> Statistic:
    fn, event_dim = site["fn"], site["fn"].event_dim
    value = jax.lax.stop_gradient(form.statistic(fn, site["value"]))
    batch = value.ndim - event_dim
    value = value.reshape(*(1,) * (layout.nesting - batch), *value.shape)
    entries = event_dim - base_distribution(fn).event_dim
    mask = entry_mask(fn, entries)
    mask = mask.reshape(*mask.shape, *(1,) * (event_dim - entries))
    mask = jnp.broadcast_to(mask, value.shape)
    ahead, places = [layout.nesting + dim for dim in layout.dims], range(len(layout.dims))
    return Statistic(jnp.moveaxis(value, ahead, places), jnp.moveaxis(mask, ahead, places))


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
