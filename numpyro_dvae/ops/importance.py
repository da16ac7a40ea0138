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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["MIN_TAIL", "ParetoTail", "khat_threshold", "pareto_tail"]

MIN_TAIL = 5  # distinct weights below which no tail is fitted
_RESOLUTION = 1e-3  # nats; a tail of log weights nearer than this is of one: rounding parts them
_FINE = 1e-2  # of a tail's width; nearer than this, and than the above, are equal in a wider one
_PRIOR_SCALE, _PRIOR_DRAWS, _PRIOR_SHAPE = 3.0, 10.0, 0.5  # of [2], and of [1]


class ParetoTail(NamedTuple):
    """The upper tail of the weights of each datum."""

    khat: Float[Array, "*batch"]  # shape of the tail; NaN where not applicable
    num_distinct: Int[Array, "*batch"]  # distinct weights in the tail
    largest_weight: Float[Array, "*batch"]  # of the normalised weights, in [1/K, 1]


@checked
def khat_threshold(num_particles: int) -> float:
    """The k̂ above which K draws do not do: ``min(1 - 1 / log10 K, 0.7)`` of [1]; one never does."""
    check_counts(num_particles=num_particles)
    return min(1.0 - 1.0 / math.log10(num_particles), 0.7) if num_particles > 1 else -math.inf


def pareto_tail(log_weights: Float[Array, "K *batch"]) -> ParetoTail:
    """Fit the tail of the weights: the largest ``min(K / 5, 3 sqrt(K))`` above the next.

    Args:
        log_weights: Unnormalised log weights; -inf gives a particle no weight.

    Returns:
        Shape, distinct weights and largest weight. NaN where a column holds a NaN or no finite
        log weight, with no distinct weight.
    """
    log_weights = jax.lax.stop_gradient(log_weights)
    num_particles = len(log_weights)
    size = math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))
    size = min(size, num_particles - 1)
    top = jnp.sort(log_weights, axis=0)[::-1][: size + 1]  # falling; a NaN comes first
    gaps = top - top[0]  # NaN where nothing is finite
    cutoff = jnp.maximum(gaps[-1], math.log(jnp.finfo(gaps.dtype).tiny))
    excess = jnp.exp(gaps[:-1]) - jnp.exp(cutoff)
    inside = excess > 0
    num_distinct = _count_distinct(gaps[:-1], inside)
    khat = jnp.full_like(cutoff, jnp.nan)
    if size >= MIN_TAIL:
        khat = _fit_shape(jnp.where(inside, excess, 0.0), inside)
        khat = jnp.where(num_distinct >= MIN_TAIL, khat, jnp.nan)
    return ParetoTail(khat, num_distinct, jnp.max(jax.nn.softmax(log_weights, axis=0), axis=0))


def _count_distinct(
    gaps: Float[Array, "M *batch"], inside: Bool[Array, "M *batch"]
) -> Int[Array, "*batch"]:
    """Distinct log weights of a tail; they fall."""
    width = jnp.max(jnp.where(inside, -gaps, 0.0), axis=0, initial=0.0)
    apart = jnp.where(width > _RESOLUTION, jnp.minimum(_FINE * width, _RESOLUTION), _RESOLUTION)

    def look(first: Array, each: tuple[Array, Array]) -> tuple[Array, Array]:
        is_new = each[1] & (each[0] < first - apart)
        return jnp.where(is_new, each[0], first), is_new

    return jnp.sum(jax.lax.scan(look, jnp.full_like(width, jnp.inf), (gaps, inside))[1], axis=0)


def _fit_shape(
    excess: Float[Array, "M *batch"], inside: Bool[Array, "M *batch"]
) -> Float[Array, "*batch"]:
    """Posterior mean of the shape, given the falling excesses over the threshold."""
    count = jnp.sum(inside, axis=0).astype(excess.dtype)
    position = jnp.clip(count - jnp.floor(count / 4 + 0.5), 0, len(excess) - 1).astype(int)
    quartile = jnp.take_along_axis(excess, position[None], axis=0)[0]
    num_points = 30 + jnp.floor(jnp.sqrt(count))
    ranks = jnp.arange(1, 31 + math.isqrt(len(excess)), dtype=excess.dtype)
    ranks = ranks.reshape(-1, *[1] * count.ndim)
    points = (1 - jnp.sqrt(num_points / (ranks - 0.5))) / (_PRIOR_SCALE * quartile) + 1 / excess[0]

    def shape_at(point: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return jnp.sum(jnp.log1p(-point * excess), axis=0) / count  # outside the excess is 0

    shapes = jax.lax.map(shape_at, points)  # one at a time: M times less memory
    lengths = count * (jnp.log(-points / shapes) - shapes - 1)
    weights = jax.nn.softmax(jnp.where(ranks <= num_points, lengths, -jnp.inf), axis=0)
    point = jnp.sum(jnp.where(ranks <= num_points, weights * points, 0.0), axis=0)
    return (count * shape_at(point) + _PRIOR_DRAWS * _PRIOR_SHAPE) / (count + _PRIOR_DRAWS)
