"""What the closed forms of a model's parameters need of a run: a reader of records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pyro_dvae.programs.masks import entry_mask
from pyro_dvae.programs.pair import Layout, Run
from pyro_dvae.programs.sites import Site

__all__ = ["Factors", "Statistic", "closed_forms_of", "read_statistics", "sums"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Tensor, "K *plates_and_entries"]
    mask: Bool[Tensor, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


class Factors(NamedTuple):
    """Two factors of the second moments that a parameter's closed form needs of a site."""

    left: Float[Tensor, "K *plates_and_rest A"]
    right: Float[Tensor, "K *plates_and_rest B"]
    mask: Bool[Tensor, "K *plates"]  # False where a datum is masked; all K are alike


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
    drawn: Bool[Tensor, "B"] | None = None,
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


@torch.no_grad()
def _statistic(site: Site, form: Any, layout: Layout, drawn: Bool[Tensor, "B"] | None) -> Statistic:
    value = form.statistic(site.fn, site.value)
    entries = site.fn.event_dim - site.base.event_dim
    batch = value.dim() - site.fn.event_dim
    value = value.reshape(*[1] * (layout.nesting + 1 - batch), *value.shape)
    mask = entry_mask(site, entries)
    mask = mask.reshape(*mask.shape, *[1] * (site.fn.event_dim - entries))
    while mask.dim() >= value.dim():  # of a program that has made a particle axis itself
        mask = mask[0]
    mask = mask.to(value.device).expand(value.shape)
    ahead = [1 + layout.nesting + dim for dim in layout.dims]
    places = tuple(range(1, 1 + len(ahead)))
    value, mask = value.movedim(ahead, places), mask.movedim(ahead, places)
    if drawn is not None and not site.is_observed:
        plates = mask.shape[1 : 1 + len(ahead)]
        mask = mask | drawn.reshape(*plates, *[1] * (mask.dim() - 1 - len(ahead)))
    return Statistic(value, mask)


@torch.no_grad()
def _factors(
    site: Site,
    form: Any,
    latents: Mapping[str, Tensor],
    layout: Layout,
    drawn: Bool[Tensor, "B"] | None,
) -> Factors:
    left, right = form.statistic(site.fn, site.value, latents)
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    padded = [1] * (layout.nesting + 1 - len(batch)) + list(batch)
    ahead = [1 + layout.nesting + dim for dim in layout.dims]
    places = tuple(range(1, 1 + len(ahead)))
    left, right = (
        each.expand(*batch, *each.shape[-2:])
        .reshape(*padded, *each.shape[-2:])
        .movedim(ahead, places)
        for each in (left, right)
    )
    mask = _mask_of_data(site)
    while mask.dim() > layout.nesting:  # of a program that has made a particle axis itself
        mask = mask[0]
    mask = mask.to(left.device).expand(1, *padded[1:]).movedim(ahead, places)
    plates = mask.shape[: 1 + len(ahead)]
    mask = mask.flatten(1 + len(ahead)).all(-1) if mask.dim() > len(plates) else mask
    if drawn is not None and not site.is_observed:
        mask = mask | drawn.reshape(plates)
    return Factors(left, right, mask)


def _mask_of_data(site: Site) -> Bool[Tensor, "*batch"]:
    """Where no mask silences a site, which may not silence entries of a datum."""
    entries = site.fn.event_dim - site.base.event_dim
    mask = entry_mask(site, entries)
    if any(size != 1 for size in mask.shape[mask.dim() - entries :]):
        raise ValueError(
            f"site '{site.name}' has a closed form that sees latents, whose second moments are of "
            "whole data, and a mask that silences entries of a datum. Mask whole data, or learn "
            "the parameter by gradient."
        )
    return mask.reshape(mask.shape[: mask.dim() - entries])


def sums(
    statistic: Statistic | Factors, weights: Float[Tensor, "S *plates"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Of q's mean statistic, and of the entries that no mask takes out, over data.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    if isinstance(statistic, Factors):
        return _second_moments(statistic, weights, shape)
    value, num_plates = statistic.value, weights.dim() - 1
    columns = value.flatten(1, num_plates).flatten(2)
    mean = torch.einsum("sb,sbe->be", weights.flatten(1).to(value.dtype), columns)
    plates = tuple(range(num_plates))
    mask = statistic.mask[0]
    total = torch.where(mask, mean.reshape(value.shape[1:]), 0.0).sum(plates)
    return total.sum_to_size(shape), mask.to(total.dtype).sum(plates).sum_to_size(shape)


def _second_moments(
    factors: Factors, weights: Float[Tensor, "S *plates"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The sum of ``left^T right`` over data, in the mean of q, and the number of data."""
    left, right, mask = factors
    if (left.shape[-1], right.shape[-1]) != shape:
        raise ValueError(
            f"the factors of a closed form that sees latents have {left.shape[-1]} and "
            f"{right.shape[-1]} columns, which make totals of that shape; its parameter has shape "
            f"{shape}. Let them agree."
        )
    ones = (1,) * (left.dim() - weights.dim())
    kept = mask.reshape(*mask.shape, *ones)
    left = torch.where(kept, left * weights.reshape(*weights.shape, *ones).to(left.dtype), 0.0)
    right = torch.where(kept, right, 0.0)
    total = left.flatten(0, -2).T @ right.flatten(0, -2)
    return total, mask[0].to(total.dtype).sum().expand(shape)
