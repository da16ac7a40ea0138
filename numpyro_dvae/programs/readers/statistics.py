"""What the closed forms of a model's parameters need of a run: a reader of records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from numpyro_dvae.programs.masks import entry_mask
from numpyro_dvae.programs.pair import Layout, Run
from numpyro_dvae.programs.sites import Site

__all__ = ["Factors", "Statistic", "closed_forms_of", "read_statistics", "sums"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Array, "K *plates_and_entries"]
    mask: Bool[Array, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


class Factors(NamedTuple):
    """Two factors of the second moments that a parameter's closed form needs of a site."""

    left: Float[Array, "K *plates_and_rest A"]
    right: Float[Array, "K *plates_and_rest B"]
    mask: Bool[Array, "K *plates"]  # False where a datum is masked; all K are alike


def closed_forms_of(sites: Mapping[str, Site]) -> dict[str, Any]:
    """The `models.ClosedForm` of each site that asks for one, by its name; the next by "name/1"."""
    forms: dict[str, Any] = {}
    for name, site in sites.items():
        found = site.infer.get("closed_form") or ()
        found = (found,) if hasattr(found, "solve") else found
        forms |= {f"{name}/{i}" if i else name: form for i, form in enumerate(found)}
    return forms


def read_statistics(
    forms: Mapping[str, Any],
    run: Run,
    layout: Layout,
    num_particles: int,
    drawn: Bool[Array, "B"] | None = None,
) -> dict[str, Statistic | Factors]:
    """The statistic of each site that has a closed form, without gradient.

    Args:
        forms: `models.ClosedForm`, as `closed_forms_of` names them.
        run: The run.
        layout: Which plates make a datum.
        num_particles: K.
        drawn: Data whose masked latents count, as the model draws them; None: of no datum.
    """
    latents = {name: site.value for name, site in run.model.items() if not site.is_observed}
    found: dict[str, Statistic | Factors] = {}
    for name, form in forms.items():
        site = run.model[name if name in run.model else name.rpartition("/")[0]]
        if form.sees_latents:
            found[name] = _factors(site, form, latents, layout, drawn)
        else:
            found[name] = _statistic(site, form, layout, drawn)
    return found


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


def _factors(
    site: Site,
    form: Any,
    latents: Mapping[str, Array],
    layout: Layout,
    drawn: Bool[Array, "B"] | None,
) -> Factors:
    """Of one particle."""
    left, right = jax.lax.stop_gradient(form.statistic(site.fn, site.value, latents))
    batch = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    padded = [1] * (layout.nesting - len(batch)) + list(batch)
    ahead = [layout.nesting + dim for dim in layout.dims]
    places = tuple(range(len(ahead)))
    left, right = (
        jnp.moveaxis(
            jnp.broadcast_to(each, (*batch, *each.shape[-2:])).reshape(*padded, *each.shape[-2:]),
            ahead,
            places,
        )
        for each in (left, right)
    )
    mask = jnp.moveaxis(jnp.broadcast_to(_mask_of_data(site), padded), ahead, places)
    plates = mask.shape[: len(ahead)]
    mask = mask.reshape(*plates, -1).all(-1)
    if drawn is not None and not site.is_observed:
        mask = mask | drawn.reshape(plates)
    return Factors(left, right, mask)


def _mask_of_data(site: Site) -> Bool[Array, "*batch"]:
    """Where no mask silences a site, which may not silence entries of a datum."""
    entries = site.fn.event_dim - site.base.event_dim
    mask = entry_mask(site, entries)
    if any(size != 1 for size in mask.shape[mask.ndim - entries :]):
        raise ValueError(
            f"site '{site.name}' has a closed form that sees latents, whose second moments are of "
            "whole data, and a mask that silences entries of a datum. Mask whole data, or learn "
            "the parameter by gradient."
        )
    return mask.reshape(mask.shape[: mask.ndim - entries])


def sums(
    statistic: Statistic | Factors, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Of q's mean statistic, and of the entries that no mask takes out, over data.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    if isinstance(statistic, Factors):
        return _second_moments(statistic, weights, shape)
    mask, plates = statistic.mask[0], tuple(range(weights.ndim - 1))
    num_entries = statistic.value.ndim - weights.ndim
    padded = (1,) * (num_entries - len(shape)) + shape
    dims = tuple(dim - num_entries for dim, size in enumerate(padded) if size == 1)
    value = jnp.where(mask, statistic.value, 0.0).sum(dims, keepdims=True)
    weights = weights.reshape(*weights.shape, *(1,) * num_entries)
    total = (weights * value).sum(0).sum(plates)
    count = mask.astype(total.dtype).sum(plates)
    return _sum_to(total, shape), _sum_to(count, shape)


def _second_moments(
    factors: Factors, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The sum of ``left^T right`` over data, in the mean of q, and the number of data."""
    left, right, mask = factors
    if (left.shape[-1], right.shape[-1]) != shape:
        raise ValueError(
            f"the factors of a closed form that sees latents have {left.shape[-1]} and "
            f"{right.shape[-1]} columns, which make totals of that shape; its parameter has shape "
            f"{shape}. Let them agree."
        )
    ones = (1,) * (left.ndim - weights.ndim)
    kept = mask.reshape(*mask.shape, *ones)
    left = jnp.where(kept, left * weights.reshape(*weights.shape, *ones), 0.0)
    right = jnp.where(kept, right, 0.0)
    total = left.reshape(-1, shape[0]).T @ right.reshape(-1, shape[1])
    return total, jnp.broadcast_to(mask[0].astype(total.dtype).sum(), shape)


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)
