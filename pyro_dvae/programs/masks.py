"""Where a mask is, of a handler or of a distribution, and what it leaves alone.

A mask silences a log-density, never a draw. `Site.scaled` applies that of a handler
(`poutine.mask`); a distribution applies its own (`.mask(...)`), as does the fast way that is in
`densities`.
"""

from typing import Any

import torch
from jaxtyping import Bool
from pyro import distributions as dist
from torch import Tensor

from pyro_dvae.programs.sites import Site

__all__ = ["changed", "entry_mask", "is_masked", "without_mask"]

_IN_DOUBLE = 1e-9  # rounding of log-densities, of themselves and of a nat


def entry_mask(site: Site, entries: int) -> Bool[Tensor, "*batch_entries"]:
    """Where no mask, of a handler or of the distribution, silences an entry of a site.

    Entries are the cells of the `entries` event dims that the distribution takes as independent.
    """
    mask = torch.ones((1,) * entries, dtype=torch.bool)
    if site.mask is not None:
        mask = _both(mask, site.mask, entries)
    fn, inner = site.fn, 0  # event dims that belong to the batch of this inner distribution
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            mask = _both(mask, fn._mask, entries - inner)
        inner += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return mask


def _both(mask: Tensor, other: bool | Tensor, missing: int) -> Tensor:
    """Two masks, the other with `missing` event dims fewer."""
    other = torch.as_tensor(other, dtype=torch.bool)
    return mask.to(other.device) & other.reshape((*other.shape, *[1] * missing))


def without_mask(fn: Any) -> Any:
    """The distribution that draws are made from."""
    if isinstance(fn, dist.MaskedDistribution):
        return without_mask(fn.base_dist)
    if not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        return fn
    base = without_mask(fn.base_dist)
    if base is fn.base_dist:
        return fn
    if isinstance(fn, dist.ExpandedDistribution):
        return base.expand(fn.batch_shape)
    return base.to_event(fn.reinterpreted_batch_ndims)


def is_masked(site: Site) -> bool:
    """Whether a site is under a mask, whatever it silences."""
    return site.mask is not None or without_mask(site.fn) is not site.fn


def changed(one: Tensor, two: Tensor, in_single: float) -> Bool[Tensor, "..."]:
    """Where log-densities differ by more than rounding, when masked latents have other values.

    Args:
        one: The log-densities.
        two: The same with other values.
        in_single: What rounding is in single precision, of themselves and of a nat; in double
            precision it is 1e-9, so that weak traces show.
    """
    in_double = torch.promote_types(one.dtype, two.dtype) == torch.float64
    most = _IN_DOUBLE if in_double else in_single
    return ~torch.isclose(one, two, rtol=most, atol=most, equal_nan=True)
