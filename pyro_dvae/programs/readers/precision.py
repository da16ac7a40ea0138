"""What mean square error costs a model in nats, so that other squares can be weighed against it.

A Gaussian of variance v gives N entries of a datum the log-density ``-N / 2v`` times their mean
square error, and a constant. For other likelihoods v is the mean of the entries' variances, which
is what the likelihood takes its mean square error to be; where there is no variance, as for
categories, it is 1/2, so that N alone is the price.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro import distributions as dist
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from pyro_dvae.programs.densities import entry_mask, is_masked, unexpanded
from pyro_dvae.programs.record import Ledger
from pyro_dvae.programs.sites import Layout, Run, Site

__all__ = ["read_precision"]

_UNKNOWN = 0.5  # the variance at which N / 2v is N


@torch.no_grad()
def read_precision(run: Run, layout: Layout, num_particles: int) -> Float[Tensor, "K *plates"]:
    """``N / 2v`` of each datum, over its observed entries that no mask silences; a reader."""
    ledger = Ledger(layout, num_particles, run.model.values())
    for site in run.model.values():
        for seen in _observed(site):
            if layout.owns(seen):
                counted = _counted(seen) if seen is site else _in_mean(site, seen)
                for kind, values in zip(("entries", "variances"), counted, strict=True):
                    ledger.add_bare(kind, seen, values)
    entries, variances = ledger.total("entries"), ledger.total("variances")
    variances = torch.where(variances > 0, variances, (_UNKNOWN * entries).clamp(min=_UNKNOWN))
    return entries.square() / (2 * variances)


def _observed(site: Site) -> list[Site]:
    """The data that a site counts: those of a factor are observed under the sites it sums out."""
    members = site.infer.get("_members")
    if members is None or not site.is_observed:
        return [site] if site.is_observed else []
    return [m for m in members.values() if m.is_observed and site.kind == "likelihood"]


def _in_mean(site: Site, seen: Site) -> Sequence[Tensor]:
    """Those of a site of a factor, in the mean over the states that it sums out, given the data."""
    means: Sequence[Tensor] = site.infer["_means"](seen, _counted(seen))
    return means


def _counted(site: Site) -> tuple[Tensor, Tensor]:
    """The entries of each event and the sum of their variances."""
    event_dim, variance = site.fn.event_dim, unexpanded(_variance(site))
    known = torch.where(variance.isfinite(), variance, _UNKNOWN)
    known = known[(None,) * (event_dim - known.dim())]  # one number for all entries
    mask = unexpanded(entry_mask(site, event_dim)) if is_masked(site) else None
    small = [known] if mask is None else torch.broadcast_tensors(mask.to(known.dtype), mask * known)
    shape = torch.Size(broadcast_shape(small[0].shape, site.value.shape))
    batch, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :].numel()
    # What is the same along a dim of the event is counted, not copied.
    same = event / small[0].shape[small[0].dim() - event_dim :].numel()
    dims = tuple(range(-event_dim, 0))
    sums = [(array.sum(dims) if dims else array).mul(same).expand(batch) for array in small]
    counts = known.new_full((), event).expand(batch) if mask is None else sums[0]
    return counts, sums[-1]


def _variance(site: Site) -> Tensor:
    """The variance of each entry, NaN where the distribution has none."""
    fn: Any = site.fn
    try:
        variance = _normal_variance(fn)
        variance = fn.variance if variance is None else variance
    except (AttributeError, NotImplementedError):
        variance = torch.tensor(torch.nan)
    if variance.dim() == len(fn.batch_shape):  # of events that are numbers, or categories
        variance = variance.reshape(*variance.shape, *(1 for _ in fn.event_shape))
    return variance


def _normal_variance(fn: Any) -> Tensor | None:
    """That of independent Gaussians, without the copies that their expansion makes."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return unexpanded(fn.scale).square() if type(fn) is dist.Normal else None
