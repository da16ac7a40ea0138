"""What the closed forms of a model's parameters need of a run: a reader of records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from numpyro_dvae.programs.masks import entry_mask
from numpyro_dvae.programs.pair import Layout, Run
from numpyro_dvae.programs.sites import Site

__all__ = ["Statistic", "read_statistics"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Array, "K *plates_and_entries"]
    mask: Bool[Array, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


def read_statistics(
    forms: Mapping[str, Any], run: Run, layout: Layout, num_particles: int
) -> dict[str, Statistic]:
    """The statistic of each site that has a closed form, without gradient.

    Args:
        forms: `models.ClosedForm` by site of the model.
        run: The run.
        layout: Which plates make a datum.
        num_particles: K.
    """
    return {name: _statistic(run.model[name], form, layout) for name, form in forms.items()}


def _statistic(site: Site, form: Any, layout: Layout) -> Statistic:
    """Of one particle."""
    value = jax.lax.stop_gradient(form.statistic(site.fn, site.value))
    entries = site.fn.event_dim - site.base.event_dim
    batch = value.ndim - site.fn.event_dim
    value = value.reshape(*[1] * (layout.nesting - batch), *value.shape)
    mask = entry_mask(site, entries)
    mask = mask.reshape(*mask.shape, *[1] * (site.fn.event_dim - entries))
    mask = jnp.broadcast_to(mask, value.shape)
    ahead = [layout.nesting + dim for dim in layout.dims]
    places = tuple(range(len(ahead)))
    return Statistic(jnp.moveaxis(value, ahead, places), jnp.moveaxis(mask, ahead, places))
