"""What the closed forms of a model's parameters need of a run: a reader of records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pyro_dvae.programs.masks import entry_mask
from pyro_dvae.programs.pair import Layout, Run
from pyro_dvae.programs.sites import Site

__all__ = ["Statistic", "read_statistics", "sums"]


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Tensor, "K *plates_and_entries"]
    mask: Bool[Tensor, "K *plates_and_entries"]  # False where an entry is masked; all K are alike


def read_statistics(
    forms: Mapping[str, Any],
    run: Run,
    layout: Layout,
    num_particles: int,
    drawn: Bool[Tensor, "B"] | None = None,
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


def sums(
    statistic: Statistic, weights: Float[Tensor, "S *plates"], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Of q's mean statistic, and of the entries that no mask takes out, over data.

    Args:
        statistic: Of all states.
        weights: q of each state.
        shape: Of the parameter, to which the sums are taken.
    """
    value, num_plates = statistic.value, weights.dim() - 1
    columns = value.flatten(1, num_plates).flatten(2)
    mean = torch.einsum("sb,sbe->be", weights.flatten(1).to(value.dtype), columns)
    plates = tuple(range(num_plates))
    mask = statistic.mask[0]
    total = torch.where(mask, mean.reshape(value.shape[1:]), 0.0).sum(plates)
    return total.sum_to_size(shape), mask.to(total.dtype).sum(plates).sum_to_size(shape)
