"""What the closed form of a parameter needs of a site: its statistic, and where a mask is."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from pyro_dvae.programs.masks import entry_mask
from pyro_dvae.programs.sites import Layout, Site, base_distribution


class Statistic(NamedTuple):
    """What a parameter's closed form needs of a site."""

    value: Shaped[Tensor, "K *plates_and_entries"]
    mask: Bool[Tensor, "*plates_and_entries"]  # False where an entry is masked


def site_statistic(site: Site, form: Any, layout: Layout) -> Statistic:
    with torch.no_grad():
        value = form.statistic(site["fn"], site["value"])
        entries = site["fn"].event_dim - base_distribution(site["fn"]).event_dim
        batch = value.dim() - site["fn"].event_dim
        value = value.reshape(*[1] * (layout.nesting + 1 - batch), *value.shape)
        mask = entry_mask(site, entries)
        mask = mask.reshape(*mask.shape, *[1] * (site["fn"].event_dim - entries))
        while mask.dim() >= value.dim():  # of a program that has made a particle axis itself
            mask = mask[0]
        mask = mask.to(value.device).expand(value.shape[1:])
        ahead = [1 + layout.nesting + dim for dim in layout.dims]
        value = value.movedim(ahead, tuple(range(1, 1 + len(ahead))))
        return Statistic(value, mask.movedim([d - 1 for d in ahead], tuple(range(len(ahead)))))
