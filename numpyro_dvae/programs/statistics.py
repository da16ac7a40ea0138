"""What the closed forms of a model's parameters need of a run: a reader of records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from numpyro_dvae.programs.masks import entry_mask
from numpyro_dvae.programs.pair import Layout, Run
from numpyro_dvae.programs.sites import Site

__all__ = ["Statistic", "read_statistics", "sums"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Array, "K *plates_and_entries"]
    mask: Bool[Array, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


def read_statistics(
    forms: Mapping[str, Any],
    run: Run,
    layout: Layout,
    num_particles: int,
    drawn: Bool[Array, "B"] | None = None,
) -> dict[str, Statistic]:
    """The statistic of each site that has a closed form, without gradient.

    Args:
        forms: `models.ClosedForm` by site of the model.
        run: The run.
        layout: Which plates make a datum.
        num_particles: K.
        drawn: Data whose masked latents count, as the model draws them; None: of no datum.
    """
    return {name: _statistic(run.model[name], form, layout, drawn) for name, form in forms.items()}


def _statistic(site: Site, form: Any, layout: Layout, drawn: Bool[Array, "B"] | None) -> Statistic:
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
    value, mask = jnp.moveaxis(value, ahead, places), jnp.moveaxis(mask, ahead, places)
    if drawn is not None and not site.is_observed:
        plates = mask.shape[: len(ahead)]
        mask = mask | drawn.reshape(*plates, *[1] * (mask.ndim - len(ahead)))
    return Statistic(value, mask)


def sums(
    statistic: Statistic, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Of q's mean statistic, and of the entries that no mask takes out, over data.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    mask, plates = statistic.mask[0], tuple(range(weights.ndim - 1))
    num_entries = statistic.value.ndim - weights.ndim
    padded = (1,) * (num_entries - len(shape)) + shape
    dims = tuple(dim - num_entries for dim, size in enumerate(padded) if size == 1)
    value = jnp.where(mask, statistic.value, 0.0).sum(dims, keepdims=True)
    weights = weights.reshape(*weights.shape, *(1,) * num_entries)
    total = (weights * value).sum(0).sum(plates)
    count = mask.astype(total.dtype).sum(plates)
    return _sum_to(total, shape), _sum_to(count, shape)


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)
