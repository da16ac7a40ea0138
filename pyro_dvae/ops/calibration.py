"""Ranks of a truth among draws, and whether they are uniform: simulation-based calibration.

If z* and x come from the model and the draws from its posterior given x, then z* is one more draw,
and the rank of any function of it among the draws is uniform on 0 ... K [1]. Discrete values tie;
breaking ties at random keeps the ranks uniform [2]. A statistic that depends on x, as log p(x, z),
finds guides that ignore the data, which ranks of z alone cannot [2].

Ranks of one simulation depend on each other where its data share latents, or draws of them. The
truth and the K draws are exchangeable all the same: each may play the truth, and what the others
say in that part is the null distribution, whatever the dependence [3].

Shapes: members, the truth and the draws, lead, as in ``(M, *batch)``; bins come last. NumPy alone,
so but for the package's name this file is the same in both packages.

References:
    [1] Talts, Betancourt, Simpson, Vehtari & Gelman. Validating Bayesian inference algorithms with
        simulation-based calibration. arXiv 1804.06788, 2018.
    [2] Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari. Simulation-based
        calibration checking for Bayesian computation. Bayesian Analysis, 2023.
    [3] Besag & Clifford. Generalized Monte Carlo significance tests. Biometrika, 1989.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

from pyro_dvae.ops.arguments import checked

__all__ = ["exchange_p_value", "random_ranks", "ranks_of_all", "uniform_p_value"]

_LARGE = 20  # counts expected in a bin from which the chi-square distribution does
_NUM_TABLES = 100_000  # of random counts, below that
_FIRST, _LAST = 999, 99_900  # exchanges that are tried: more where they are needed
_VALUES_AT_ONCE = 2**20
_ENOUGH = 20  # of them at least as uneven as what was found


@checked
def random_ranks(
    truth: Real[np.ndarray, "*batch"],
    draws: Real[np.ndarray, "K *batch"],
    uniforms: Float[np.ndarray, "*batch"],
    tolerance: float = 0.0,
) -> Int[np.ndarray, "*batch"]:
    """Rank of the truth among K draws, in 0 ... K, at random among its ties.

    Args:
        truth: The value whose rank is asked for.
        draws: What it is compared with.
        uniforms: Random numbers in [0, 1), which break ties.
        tolerance: Values nearer than this are tied, as a part of ``1 + |truth|``: log-densities
            of equal states may differ by rounding.

    Raises:
        ValueError: If there is a NaN, which has no rank.
    """
    _check_no_nan(truth=truth, draws=draws)
    slack = _slack(truth, tolerance)
    below = (draws < truth - slack).sum(0)
    tied = (draws <= truth + slack).sum(0) - below
    return below + np.floor(uniforms * (tied + 1)).astype(int)


@checked
def ranks_of_all(
    values: Real[np.ndarray, "M *batch"],
    uniforms: Float[np.ndarray, "M *batch"],
    tolerance: float = 0.0,
) -> Int[np.ndarray, "M *batch"]:
    """Rank of each of M values among the others, in 0 ... M - 1, at random among ties.

    Args:
        values: What is ranked.
        uniforms: Random numbers in [0, 1), which break ties.
        tolerance: Neighbours nearer than this are tied, as a part of ``1 + |value|``.

    Raises:
        ValueError: If there is a NaN, which has no rank.
    """
    _check_no_nan(values=values)
    if tolerance:
        order = np.argsort(values, axis=0)
        in_order = np.take_along_axis(values, order, 0)
        apart = in_order[1:] > in_order[:-1] + _slack(in_order[1:], tolerance)
        groups = np.concatenate([np.zeros_like(apart[:1], int), apart.cumsum(0)])
        values = np.empty_like(groups)
        np.put_along_axis(values, order, groups, 0)
    order = np.lexsort((uniforms, values), axis=0)
    places = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    ranks = np.empty(values.shape, int)
    np.put_along_axis(ranks, order, np.broadcast_to(places, values.shape), 0)
    return ranks


def _slack(values: Any, tolerance: float) -> Any:
    """What may part ties; nothing ties with an infinity but itself."""
    return tolerance * (1.0 + np.where(np.isfinite(values), np.abs(values), 0.0))


def _check_no_nan(**arrays: Any) -> None:
    for name, values in arrays.items():
        if np.isnan(values).any():
            count = int(np.isnan(values).sum())
            raise ValueError(f"`{name}` holds {count} NaN, which have no rank: leave them out.")


def uniform_p_value(counts: Int[np.ndarray, "*batch bins"]) -> Float[np.ndarray, "*batch"]:
    """P-value of Pearson's statistic of counts of independent ranks against equal ones.

    By its distribution over random counts where fewer than 20 are expected in a bin, where the
    chi-square distribution is not near enough. 1 where nothing was counted.
    """
    flat, num_bins = counts.reshape(-1, counts.shape[-1]), counts.shape[-1]
    totals, squares = flat.sum(-1), (flat.astype(np.int64) ** 2).sum(-1)
    p_values = np.ones(len(flat))
    for total in np.unique(totals[totals > 0]):
        some = totals == total
        if total >= _LARGE * num_bins:
            statistic = squares[some] * (num_bins / total) - total
            p_values[some] = [_chi_square_tail(float(each), num_bins - 1) for each in statistic]
        else:
            null = _null_squares(int(total), num_bins)
            above = len(null) - np.searchsorted(null, squares[some])
            p_values[some] = (1 + above) / (1 + len(null))
    return p_values.reshape(counts.shape[:-1])


@lru_cache(maxsize=8)
def _null_squares(total: int, num_bins: int) -> np.ndarray:
    """Sums of squares of random counts, in order."""
    shares = np.full(num_bins, 1 / num_bins)
    tables = np.random.default_rng(0).multinomial(total, shares, _NUM_TABLES)
    return np.sort((tables**2).sum(-1))


def exchange_p_value(
    counts: Int[np.ndarray, "units M *latents bins"], rng: np.random.Generator
) -> Float[np.ndarray, "*latents"]:
    """P-value of the first members' counts, summed over units whose members are exchangeable.

    What is compared is how far each bin's sum is from its mean over the members, in its standard
    deviations, squared and summed over the bins.

    Args:
        counts: How many ranks of each member of each unit fall in each bin.
        rng: Chooses the members that play the truth.
    """
    units, members, *latents, bins = counts.shape
    table = counts.reshape(units, members, -1, bins).astype(np.float64)
    table = table - table.mean(1, keepdims=True)
    variance = (table**2).mean(1).sum(0)
    table = table / np.sqrt(np.where(variance > 0, variance, 1.0))
    found = (table[:, 0].sum(0) ** 2).sum(-1) - 1e-9
    above, tried = np.zeros(found.shape, int), np.zeros(found.shape, int)
    while (unsettled := (above < _ENOUGH) & (tried < _LAST)).any():
        size = 9 * int(tried.max()) or _FIRST
        above[unsettled] += _num_above(table[:, :, unsettled], found[unsettled], size, rng)
        tried[unsettled] += size
    return ((1 + above) / (1 + tried)).reshape(latents)


def _num_above(
    table: Float[np.ndarray, "units M latents bins"],
    found: Float[np.ndarray, " latents"],
    num_tries: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " latents"]:
    """How many random choices of the members are at least as uneven."""
    above, units = np.zeros(found.shape, int), np.arange(len(table))
    at_once = max(1, _VALUES_AT_ONCE // (table.size // table.shape[1] or 1))
    for start in range(0, num_tries, at_once):
        size = min(at_once, num_tries - start), len(table)
        chosen = table[units, rng.integers(table.shape[1], size=size)]
        above += ((chosen.sum(1) ** 2).sum(-1) >= found).sum(0)
    return above


def _chi_square_tail(statistic: float, freedom: int) -> float:
    """P(χ² >= statistic), by the finite sums that whole degrees of freedom allow."""
    half = max(statistic, 0.0) / 2
    if freedom % 2:
        tail, power = math.erfc(math.sqrt(half)), 0.5
    else:
        tail, power = math.exp(-half), 1.0
    while power < freedom / 2:
        if half > 0:
            tail += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
        power += 1
    return min(tail, 1.0)
