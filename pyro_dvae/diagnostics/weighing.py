"""What draws and their importance weights say of data, of what these share, and of all together.

Rate, distortion and ELBO come first [2]; then what weights tell of the whole.

A draw of what the data share weighs p / q of these sites, times an estimate of each datum's
evidence given the draw: the mean of the datum's own weights. Given the draw, data are independent
and the estimates unbiased, so their product is, and the log of a mean of such weights is a bound on
the evidence of all data [1]. Where a minibatch stands for more data than it has, powers of the
estimates are not, and the bound is the mean of the logs.

NumPy alone, so but for the package's name this file is the same in both packages.

References:
    [1] Chopin, Jacob & Papaspiliopoulos. SMC²: an efficient algorithm for sequential analysis of
        state space models. JRSS B, 2013. (Weights whose likelihoods are estimated.)
    [2] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.costs import SharedCost, WholeCost
from pyro_dvae.diagnostics.draws import Draws
from pyro_dvae.diagnostics.expectations import WeightedDraws
from pyro_dvae.diagnostics.verdicts import (
    ImportanceDiagnostics,
    MeanErrors,
    SharedDiagnostics,
    WholeBounds,
)

__all__ = [
    "Judge",
    "as_whole",
    "beta_elbo_of",
    "bound_error",
    "distortion_of",
    "error_of_means",
    "evidences",
    "is_separable",
    "mean_and_error",
    "over_shared",
    "rate_of",
    "rates_of",
    "shared_cost_of",
    "weighted",
    "whole_cost_of",
    "with_loss",
    "with_picked",
    "with_points",
    "with_whole",
]

_LEAST_REST = 1e-15  # share of all weight: rounding of the largest
_SPREAD = 1e-9  # nats, far more than rounding and far less than any error
_ROUNDING = 1e-4  # nats, of sums in single precision, relative to their size

Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], ImportanceDiagnostics]  # of log weights,
# distinct states and whether the guide is restricted


def is_separable(draws: Draws) -> bool:
    """Whether the weight of what the data share is one for draws of the data's own latents."""
    weights = draws.shared_weights
    spread = np.abs(weights - weights[0])
    return bool((spread <= _ROUNDING * (1 + np.abs(weights[0]))).all()) or bool(
        (weights == weights[0]).all()
    )


def with_whole(draws: Draws, report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the bounds on all data, which share no latent."""
    elbo, error = mean_and_error(draws.whole_weights)
    shared = draws.shared_weights[0]
    bound = (draws.scale * report.iwae).sum() + shared
    bound_error = np.sqrt(((draws.scale * report.iwae_error) ** 2).sum())
    whole = WholeBounds(
        float(elbo), float(error), float(bound), float(bound_error), _is_settled(report.verdicts)
    )
    row = SharedDiagnostics(draws.shared_sites, float(shared)) if draws.shared_sites else None
    return _with_means(report)._replace(
        whole=whole, shared=row, draws=weighted(draws, draws.importance_weights)
    )


def _with_means(report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the errors of means over data whose draws are independent."""
    elbo, iwae = (
        float(np.sqrt((each**2).sum())) / each.size
        for each in (report.elbo_error, report.iwae_error)
    )
    return report._replace(mean_errors=MeanErrors(elbo, iwae, math.hypot(elbo, iwae)))


def with_loss(
    report: ImportanceDiagnostics, weights: np.ndarray, log_weights: np.ndarray
) -> ImportanceDiagnostics:
    """Of the log weights of the loss, if those that were judged are others, the ELBO."""
    elbo, elbo_error = mean_and_error(log_weights)
    with np.errstate(invalid="ignore"):  # an impossible draw is one in both
        is_bound = ~(np.abs(weights - log_weights) > _ROUNDING).any(0)
    return report._replace(elbo=elbo, elbo_error=elbo_error, is_bound=is_bound)


def as_whole(report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the bounds on all data, of weights that are one for all of them."""
    elbo, bound = (report.elbo, report.elbo_error), (report.iwae, report.iwae_error)
    return _with_means(report)._replace(whole=_whole(elbo, bound, _is_settled(report.verdicts)))


def _whole(elbo: Sequence[Any], bound: Sequence[Any], is_settled: bool) -> WholeBounds:
    """Two bounds, each with its error."""
    (lower, lower_error), (upper, upper_error) = elbo, bound
    return WholeBounds(
        float(lower), float(lower_error), float(upper), float(upper_error), is_settled
    )


def over_shared(
    outer: Draws, parts: Sequence[ImportanceDiagnostics], judge: Judge
) -> ImportanceDiagnostics:
    """What reports given draws of what the data share say together.

    Args:
        outer: The draws of what is shared.
        parts: The report given each of the first of them.
        judge: Makes a report of log weights.
    """
    by_name = {
        name: np.stack([getattr(part, name) for part in parts])
        for name in ("elbo", "iwae", "ess", "khat", "largest_weight", "num_tail_weights")
    }
    scale, shared = outer.scale, outer.shared_weights[: len(parts)]
    totals = {
        name: shared + (scale * by_name[name]).reshape(len(parts), -1).sum(1)
        for name in ("elbo", "iwae")
    }
    elbo, elbo_error = mean_and_error(by_name["elbo"])
    iwae, iwae_error = mean_and_error(by_name["iwae"])
    numbers = (by_name["elbo"], by_name["iwae"], by_name["iwae"] - by_name["elbo"])
    of_shared = judge(totals["iwae"], np.asarray(len(parts)), np.asarray(False))
    means = [mean_and_error(totals[name]) for name in ("elbo", "iwae")]
    bound = (of_shared.iwae, of_shared.iwae_error) if (scale == 1).all() else means[1]
    found = parts[0]._replace(
        elbo=elbo,
        iwae=iwae,
        ess=by_name["ess"].mean(0),
        khat=_median(by_name["khat"]),
        largest_weight=np.median(by_name["largest_weight"], axis=0),
        num_tail_weights=np.median(by_name["num_tail_weights"], axis=0).astype(int),
        num_states=np.max([part.num_states for part in parts], axis=0),
        restricted=np.any([part.restricted for part in parts], axis=0),
        is_bound=np.all([part.is_bound for part in parts], axis=0),
        elbo_error=elbo_error,
        iwae_error=iwae_error,
        shared=_of_shared(outer.shared_sites, shared, of_shared),
        draws=_joined(parts, totals["iwae"]),
        mean_errors=MeanErrors(*map(error_of_means, numbers)),
    )
    settled = _is_settled(found.verdicts) and _is_settled(of_shared.verdicts)
    return found._replace(whole=_whole(means[0], bound, settled))


def _of_shared(
    sites: tuple[str, ...], weights: np.ndarray, report: ImportanceDiagnostics
) -> SharedDiagnostics:
    """What is told of the draws that the data share: of their own weights, and of the whole's."""
    elbo, elbo_error = mean_and_error(weights)
    return SharedDiagnostics(
        sites=sites,
        elbo=float(elbo),
        elbo_error=float(elbo_error),
        gap=float(report.iwae - report.elbo),
        ess=float(report.ess),
        khat=float(report.khat),
        largest_weight=float(report.largest_weight),
        num_draws=len(weights),
        khat_threshold=report.khat_threshold,
    )


def _is_settled(verdicts: np.ndarray) -> bool:
    """Whether no weighted bound hangs on a few draws, which would not show its error."""
    return not np.isin(verdicts, ("unreliable", "broken")).any()


def evidences(log_weights: np.ndarray, report: ImportanceDiagnostics) -> np.ndarray:
    """Log mean weights of all draws but one, for each that is left out: ``(K, *plates)``.

    All are estimates of a datum's evidence, and the more a draw weighs, the smaller is the one that
    lacks it: so the tail of their inverses, whose k̂ `arviz.loo` looks at, is that of the weights.
    Where tied weights have no tail, ArviZ would see an infinite one, and the estimates are spread
    evenly by a billionth instead, unless a few draws carry the weight.
    """
    num_draws = len(log_weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.exp(log_weights - log_weights.max(0))
        total = weights.sum(0)
        rest = np.maximum((total - weights) / total, _LEAST_REST) * num_draws / (num_draws - 1)
        without_one = report.iwae + np.log(rest)
    spread = _SPREAD * np.linspace(-1, 1, num_draws).reshape(-1, *[1] * report.iwae.ndim)
    has_no_tail = np.isnan(report.khat) & (report.verdicts != "unreliable")
    return np.where(has_no_tail, report.iwae + spread, without_one)


def weighted(draws: Draws, log_weights: np.ndarray) -> WeightedDraws | None:
    """The draws, if latents were read, with weights."""
    latent = {name: site.values for name, site in draws["latent"].items()}
    axes = {
        name: tuple(1 + site.dims.index(plate) for plate in draws.plates if plate in site.dims)
        for name, site in draws["latent"].items()
    }
    return WeightedDraws(latent, log_weights, axes) if latent else None


def with_picked(
    count: int, draws: Draws, report: ImportanceDiagnostics, place: int
) -> ImportanceDiagnostics:
    """Keep so many draws of each datum, picked by their weights; `place` is the seed."""
    if not draws["latent"]:
        return report
    log_weights = draws.importance_weights
    weights = np.exp(log_weights - log_weights.max(0))
    shares = np.cumsum(weights, axis=0) / weights.sum(0)
    rng, found = np.random.default_rng(place), []
    for _ in range(count):
        places = np.minimum((shares < rng.random(shares.shape[1:])).sum(0), draws.num_draws - 1)
        found.append({n: _pick(site, draws.plates, places) for n, site in draws["latent"].items()})
    picked = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return report._replace(draws=WeightedDraws(picked, np.zeros(count)))


def with_points(draws: Draws, report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Say of which continuous latents the guide has a point, that the verdicts tell it."""
    shared = report.shared
    if shared is not None:
        shared = shared._replace(points=tuple(n for n in shared.sites if n in draws.points))
    return report._replace(points=draws.points, shared=shared)


def _pick(site: NamedArray, plates: tuple[str, ...], places: np.ndarray) -> np.ndarray:
    """One draw of each datum, ``(1, *dims)``; the first of sites that no datum owns."""
    if not set(plates) <= set(site.dims):
        return site.values[:1]
    axes, to = [1 + site.dims.index(plate) for plate in plates], range(1, 1 + len(plates))
    moved = np.moveaxis(site.values, axes, to)
    where = places.reshape(1, *places.shape, *[1] * (moved.ndim - 1 - places.ndim))
    return np.moveaxis(np.take_along_axis(moved, where, 0), to, axes)


def _joined(parts: Sequence[ImportanceDiagnostics], weights: np.ndarray) -> WeightedDraws | None:
    kept = [part.draws for part in parts if part.draws is not None]
    if len(kept) < len(parts):
        return None
    names = kept[0].values
    values = {name: np.concatenate([each.values[name] for each in kept]) for name in names}
    return WeightedDraws(values, np.repeat(weights, len(kept[0].log_weights)))


def _median(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of the numbers that there are; NaN where there is none."""
    known = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    count = (~np.isnan(values)).sum(0)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    ends = [
        np.take_along_axis(known, place[None], 0)[0]
        for place in (low, np.minimum(high, len(values) - 1))
    ]
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (ends[0] + ends[1]) / 2, np.nan)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the draws, the first axis, and its standard error; NaN of one draw alone."""
    count = len(values)
    with np.errstate(invalid="ignore"):  # an impossible draw has -inf
        spread = values.std(0, ddof=1) if count > 1 else np.full(values.shape[1:], np.nan)
        return np.asarray(values.mean(0)), np.asarray(spread / np.sqrt(count))


def bound_error(ess: np.ndarray, num_draws: int, is_one: np.ndarray) -> np.ndarray:
    """Standard error of the log of a mean of weights, of their effective sample size.

    Draws that are all one state leave others of about 1 / K in all unseen.
    """
    least = np.where(is_one, 1 / num_draws**2, 0.0)
    return np.asarray(np.sqrt(np.maximum(1 / ess - 1 / num_draws, least)))


def error_of_means(values: np.ndarray) -> float:
    """Standard error over the draws of the mean over the data, ``(K, *plates)``.

    Data that share a latent vary together, so that errors of each do not tell it.
    """
    return float(mean_and_error(values.reshape(len(values), -1).mean(1))[1])


def rates_of(draws: Draws) -> np.ndarray:
    """Log q - log p(z) of each draw and datum in bits, ``(K, *plates)`` [1]."""
    log_q = draws.record("log_q").astype(np.float64)
    return (log_q - draws.record("log_prior")) / math.log(2)


def rate_of(draws: Draws) -> np.ndarray:
    """Log q - log p(z) of each datum in bits, in the mean over the draws [1]."""
    return np.asarray(rates_of(draws).mean(0))


def distortion_of(draws: Draws) -> np.ndarray:
    """Minus log p(x | z) of each datum in nats, in the mean over the draws [1]."""
    return np.asarray(-draws.record("log_likelihood").mean(0, dtype=np.float64))


def shared_cost_of(draws: Draws) -> SharedCost | None:
    """What the data share costs; None if they share no site."""
    if not draws.shared_sites:
        return None
    rates = (draws.shared("shared_q") - draws.shared("shared_prior")) / math.log(2)
    rate, rate_error = mean_and_error(rates)
    distortion, distortion_error = mean_and_error(0.0 - draws.shared("shared_likelihood"))
    numbers = (rate, distortion, rate_error, distortion_error)
    return SharedCost(draws.shared_sites, *map(float, numbers))


def whole_cost_of(draws: Draws) -> WholeCost:
    """What all data cost, as the loss sums them."""
    shared = shared_cost_of(draws) or SharedCost((), 0.0, 0.0)
    rate, distortion = (float((draws.scale * of(draws)).sum()) for of in (rate_of, distortion_of))
    elbo, error = mean_and_error(draws.whole_weights)
    return WholeCost(rate + shared.rate, distortion + shared.distortion, float(elbo), float(error))


def beta_elbo_of(draws: Draws, beta: float) -> np.ndarray:
    """The ELBO of each datum in nats, its rate weighed by `beta`."""
    return np.asarray(-distortion_of(draws) - beta * math.log(2) * rate_of(draws))
