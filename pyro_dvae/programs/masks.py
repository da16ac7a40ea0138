"""Where masks are."""

import torch
from jaxtyping import Bool
from pyro import distributions as dist
from torch import Tensor

from pyro_dvae.programs.sites import Site

__all__ = ["entry_mask"]


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
