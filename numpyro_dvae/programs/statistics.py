"""What the closed form of a parameter needs of a site: its statistic, and where a mask is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from numpyro_dvae.programs.masks import entry_mask
from numpyro_dvae.programs.sites import Layout, Site, base_distribution


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
