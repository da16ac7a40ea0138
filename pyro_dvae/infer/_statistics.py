"""What the closed form of a parameter needs of a site: its statistic, and where a mask is."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Shaped
from pyro import distributions as dist
from torch import Tensor

from pyro_dvae.infer.layout import Layout, Site, base_distribution

__all__ = ["Statistic", "entry_mask", "site_statistic"]


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


def entry_mask(site: Site, entries: int) -> Bool[Tensor, "*batch_entries"]:
    """Where no mask, of a handler or of the distribution, silences an entry of a site.

    Entries are the cells of the `entries` event dims that the distribution takes as independent.
    """
    mask = torch.ones((1,) * entries, dtype=torch.bool)
    if site["mask"] is not None:
        mask = _also(mask, site["mask"], entries)
    fn, inner = site["fn"], 0  # event dims that belong to the batch of this inner distribution
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            mask = _also(mask, fn._mask, entries - inner)
        inner += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return mask


def _also(mask: Tensor, other: bool | Tensor, missing: int) -> Tensor:
    other = torch.as_tensor(other, dtype=torch.bool)
    return mask.to(other.device) & other.reshape(*other.shape, *[1] * missing)
