"""Diagnose importance weights by their largest ones: the shape k̂ of a Pareto tail, and its ties.

The largest weights ``w = p(x, z) / q(z | x)`` of K draws follow, above a high threshold, a
generalised Pareto distribution; its shape k tells how many moments the weights have [1]. Above
0.7 no practical number of draws helps. The fit is that of Zhang & Stephens [2] with the weak
prior of [1], the one that ArviZ has, for all data at once.

A discrete latent has few states, so weights repeat, and a fit to ties is a number without
meaning: a perfect guide has one weight, a poor one perhaps two. So k̂ is NaN, "not applicable",
where fewer than `MIN_TAIL` distinct weights are in the tail. Each is told from the first of those
that are like the one before, so that many close ones make no chain.

Shapes: particles lead, as in ``(K, *batch)``; log weights are in nats and need no normalising.

References:
    [1] Vehtari, Simpson, Gelman, Yao & Gabry. Pareto smoothed importance sampling. JMLR, 2024.
    [2] Zhang & Stephens. A new and efficient estimation method for the generalized Pareto
        distribution. Technometrics, 2009.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["MIN_TAIL", "ParetoTail", "khat_threshold", "pareto_tail"]

MIN_TAIL = 5  # distinct weights below which no tail is fitted
_RESOLUTION = 1e-3  # nats; a tail of log weights nearer than this is of one: rounding parts them
_FINE = 1e-2  # of a tail's width; nearer than this, and than the above, are equal in a wider one
_PRIOR_SCALE, _PRIOR_DRAWS, _PRIOR_SHAPE = 3.0, 10.0, 0.5  # of [2], and of [1]


class ParetoTail(NamedTuple):
    """The upper tail of the weights of each datum."""

    khat: Float[Tensor, "*batch"]  # shape of the tail; NaN where not applicable
    num_distinct: Int[Tensor, "*batch"]  # distinct weights in the tail
    largest_weight: Float[Tensor, "*batch"]  # of the normalised weights, in [1/K, 1]


@checked
def khat_threshold(num_particles: int) -> float:
    """The k̂ above which K draws do not do: ``min(1 - 1 / log10 K, 0.7)`` of [1]; one never does."""
    check_counts(num_particles=num_particles)
    return min(1.0 - 1.0 / math.log10(num_particles), 0.7) if num_particles > 1 else -math.inf


def pareto_tail(log_weights: Float[Tensor, "K *batch"]) -> ParetoTail:
    """Fit the tail of the weights: the largest ``min(K / 5, 3 sqrt(K))`` above the next.

    Args:
        log_weights: Unnormalised log weights; -inf gives a particle no weight.

    Returns:
        Shape, distinct weights and largest weight. NaN where a column holds a NaN or no finite
        log weight, with no distinct weight.
    """
    log_weights = log_weights.detach()
    num_particles = len(log_weights)
    size = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    size = min(size, num_particles - 1)
    top = log_weights.topk(size + 1, dim=0).values  # falling; a NaN comes first
    gaps = top - top[0]  # NaN where nothing is finite
    cutoff = gaps[-1].clamp(min=math.log(torch.finfo(gaps.dtype).tiny))
    excess = gaps[:-1].exp() - cutoff.exp()
    inside = excess > 0
    num_distinct = _count_distinct(gaps[:-1], inside)
    khat = torch.full_like(cutoff, torch.nan)
    if size >= MIN_TAIL:
        khat = _fit_shape(torch.where(inside, excess, 0.0), inside)
        khat = torch.where(num_distinct >= MIN_TAIL, khat, torch.nan)
    return ParetoTail(khat, num_distinct, torch.softmax(log_weights, dim=0).amax(dim=0))


def _count_distinct(
    gaps: Float[Tensor, "M *batch"], inside: Bool[Tensor, "M *batch"]
) -> Int[Tensor, "*batch"]:
    """Distinct log weights of a tail; they fall."""
    nothing = gaps.new_zeros((1, *gaps.shape[1:]))
    width = torch.cat([nothing, torch.where(inside, -gaps, 0.0)]).amax(dim=0)
    apart = torch.where(width > _RESOLUTION, (_FINE * width).clamp(max=_RESOLUTION), _RESOLUTION)
    first, count = torch.full_like(width, torch.inf), torch.zeros_like(width, dtype=torch.long)
    for gap, is_inside in zip(gaps, inside, strict=True):
        is_new = is_inside & (gap < first - apart)
        first, count = torch.where(is_new, gap, first), count + is_new
    return count


def _fit_shape(
    excess: Float[Tensor, "M *batch"], inside: Bool[Tensor, "M *batch"]
) -> Float[Tensor, "*batch"]:
    """Posterior mean of the shape, given the falling excesses over the threshold."""
    count = inside.sum(dim=0).to(excess.dtype)
    position = (count - (count / 4 + 0.5).floor()).long().clamp(0, len(excess) - 1)
    quartile = excess.gather(0, position[None])[0]
    num_points = 30 + count.sqrt().floor()
    ranks = torch.arange(1, 31 + math.isqrt(len(excess)), device=excess.device)
    ranks = ranks.to(excess.dtype).reshape(-1, *[1] * count.dim())
    points = (1 - (num_points / (ranks - 0.5)).sqrt()) / (_PRIOR_SCALE * quartile) + 1 / excess[0]

    def shape_at(point: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return torch.log1p(-point * excess).sum(dim=0) / count  # outside the excess is 0

    shapes = torch.stack([shape_at(point) for point in points])  # one at a time: M times less
    lengths = count * (torch.log(-points / shapes) - shapes - 1)
    weights = torch.softmax(torch.where(ranks <= num_points, lengths, -torch.inf), dim=0)
    point = torch.where(ranks <= num_points, weights * points, 0.0).sum(dim=0)
    return (count * shape_at(point) + _PRIOR_DRAWS * _PRIOR_SHAPE) / (count + _PRIOR_DRAWS)
