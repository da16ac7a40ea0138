"""What draws and their importance weights say of data, of what these share, and of all together.

A draw of what the data share weighs p / q of these sites, times an estimate of each datum's
evidence given the draw: the mean of the datum's own weights. Given the draw, data are independent
and the estimates unbiased, so their product is, and the log of a mean of such weights is a bound on
the evidence of all data [1]. Where a minibatch stands for more data than it has, powers of the
estimates are not, and the bound is the mean of the logs.

NumPy alone, so but for the package's name this file is the same in both packages.

References:
    [1] Chopin, Jacob & Papaspiliopoulos. SMC²: an efficient algorithm for sequential analysis of
        state space models. JRSS B, 2013. (Weights whose likelihoods are estimated.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray, log_sum
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.errors import error_of_means, is_bound_of, mean_and_error, median_of
from numpyro_dvae.diagnostics.expectations import WeightedDraws
from numpyro_dvae.diagnostics.sharing import SharedDiagnostics, agreed_part
from numpyro_dvae.diagnostics.usage import States
from numpyro_dvae.diagnostics.verdicts import (
    Given,
    ImportanceDiagnostics,
    MeanErrors,
    WholeBounds,
)

__all__ = [
    "Judge",
    "as_whole",
    "evidences",
    "is_given",
    "is_separable",
    "over_shared",
    "weighted",
    "with_halves",
    "with_loss",
    "with_notes",
    "with_picked",
    "with_whole",
]

_LEAST_REST = 1e-15  # share of all weight: rounding of the largest
_SPREAD = 1e-9  # nats, far more than rounding and far less than any error
_ROUNDING = 1e-4  # of sums in single precision, relative to their size

Judge = Callable[[np.ndarray, States], ImportanceDiagnostics]  # of log weights and their states


def is_separable(draws: Draws) -> bool:
    """Whether the weight of what the data share is one for draws of the data's own latents."""
    weights = draws.shared_importance_weights
    return bool(np.allclose(weights, weights[0], rtol=_ROUNDING, atol=_ROUNDING))


def is_given(draws: Draws, outer: Draws, place: int) -> bool:
    """Whether draws have all that one of the outer draws has given, what is computed of it, too."""
    return all(
        np.allclose(site.values, outer["given"][name].values[place], _ROUNDING, _ROUNDING)
        for name, site in draws["given"].items()
    )


def with_whole(draws: Draws, report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the bounds on all data, which share no latent."""
    elbo, error = mean_and_error(draws.whole_weights)
    shared, share = draws.shared_weights[0], draws.shared_weights[0] / draws.scale.sum()
    bound = (draws.scale * report.iwae).sum() + shared
    bound_error = np.sqrt(((draws.scale * report.iwae_error) ** 2).sum())
    settled = _is_settled(report), not report.has_few_states.any()
    whole = WholeBounds(float(elbo), float(error), float(bound), float(bound_error), *settled)
    row = SharedDiagnostics(draws.shared_sites, float(shared)) if draws.shared_sites else None
    return _with_means(report)._replace(
        elbo=report.elbo + share,
        iwae=report.iwae + share,
        whole=whole,
        shared=row,
        draws=weighted(draws, draws.importance_weights),
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
    """Put the ELBO of the loss into a report of weights that may be others than the loss's."""
    elbo, elbo_error = mean_and_error(log_weights)
    is_bound = is_bound_of(weights, log_weights)
    return report._replace(elbo=elbo, elbo_error=elbo_error, is_bound=is_bound)


def with_halves(draws: Draws, report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the bounds of two halves of the draws, which have noise of their own."""
    weights = draws.importance_weights
    parts = np.array_split(weights, 2) if len(weights) > 1 else [weights, weights]
    halves = np.stack([log_sum(part) - math.log(len(part)) for part in parts])
    return report._replace(given=report.given._replace(halves=halves))


def as_whole(report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Add the bounds on all data, of weights that are one for all of them."""
    elbo, bound = (report.elbo, report.elbo_error), (report.iwae, report.iwae_error)
    return _with_means(report)._replace(whole=_whole(elbo, bound, _is_settled(report)))


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
    numbers = {
        name: np.stack([getattr(part, name) for part in parts])
        for name in ("elbo", "iwae", "ess", "khat", "largest_weight", "num_tail_weights")
    }
    count, scale, shared = len(parts), outer.scale, outer.shared_weights[: len(parts)]
    totals = {
        name: weights[:count] + (scale * numbers[name]).reshape(count, -1).sum(1)
        for name, weights in (("elbo", shared), ("iwae", outer.shared_importance_weights))
    }
    of_shared = judge(totals["iwae"], States(np.asarray(count)))
    is_all = bool((scale == 1).all())
    bound = mean_and_error(totals["iwae"])
    bound = (of_shared.iwae, of_shared.iwae_error) if is_all else bound
    found = parts[0]._replace(
        **_evenly(scale, shared, numbers, bound),
        ess=numbers["ess"].mean(0),
        khat=median_of(numbers["khat"]),
        largest_weight=np.median(numbers["largest_weight"], axis=0),
        num_tail_weights=np.median(numbers["num_tail_weights"], axis=0).astype(int),
        num_states=np.max([part.num_states for part in parts], axis=0),
        num_possible=np.max([part.num_possible for part in parts], axis=0),
        is_sole=np.all([part.is_sole for part in parts], axis=0),
        restricted=np.any([part.restricted for part in parts], axis=0),
        is_bound=np.all([part.is_bound for part in parts], axis=0),
        given=_given([part.given for part in parts]),
        shared=_with_noise(
            _of_shared(outer.shared_sites, shared, of_shared, totals["iwae"]), outer, parts
        ),
        draws=_joined(parts, totals["iwae"]),
        mean_errors=_errors_of_means(totals, bound, scale.sum(), is_all),
    )
    settled = _is_settled(found) and _is_settled(of_shared)
    whole = _whole(mean_and_error(totals["elbo"]), bound, settled)
    return found._replace(whole=whole._replace(is_elbo_settled=not found.has_few_states.any()))


def _given(parts: Sequence[Given]) -> Given:
    """In the mean over draws of what is shared."""
    elbo, iwae = np.stack([part.elbo for part in parts]), np.stack([part.iwae for part in parts])
    return Given(elbo.mean(0), iwae.mean(0), error_of_means(iwae - elbo))


def _evenly(
    scale: np.ndarray, shared: np.ndarray, numbers: Mapping[str, np.ndarray], bound: Sequence[Any]
) -> dict[str, Any]:
    """Bounds of each datum, with its part of what the data share, and their errors.

    Args:
        scale: What each datum counts.
        shared: Log weights of what the data share, of each draw of it.
        numbers: Bounds of each draw and datum, given the draw.
        bound: On the whole, by weights, and its error.
    """
    num_data, (iwae, iwae_error) = scale.sum(), mean_and_error(numbers["iwae"])
    part = shared.reshape(-1, *[1] * scale.ndim) / num_data
    elbo, elbo_error = mean_and_error(numbers["elbo"] + part)
    with np.errstate(invalid="ignore"):  # of a bound of -inf
        part = (bound[0] - (scale * iwae).sum()) / num_data
    return {
        "elbo": elbo,
        "elbo_error": elbo_error,
        "iwae": iwae + (part if np.isfinite(part) else 0.0),
        "iwae_error": np.hypot(iwae_error, bound[1] / num_data),
    }


def _errors_of_means(
    totals: Mapping[str, np.ndarray], bound: Sequence[Any], num_data: float, is_all: bool
) -> MeanErrors:
    """Of means over the data, which share draws; of the gap of what each draw has in both bounds.

    Args:
        totals: Bounds on the whole given each draw of what is shared.
        bound: On the whole, by weights, and its error.
        num_data: What the data count together.
        is_all: Whether each counts once, and the bound is the log of a mean of weights.
    """
    parts = _parts_of_bound(totals["iwae"]) if is_all else totals["iwae"]
    with np.errstate(invalid="ignore"):  # of draws that are impossible
        gap = error_of_means(parts - totals["elbo"])
    error = float(mean_and_error(totals["elbo"])[1])
    return MeanErrors(error / num_data, float(bound[1]) / num_data, gap / num_data)


def _parts_of_bound(log_weights: np.ndarray) -> np.ndarray:
    """Numbers of the draws, ``(K,)``, whose mean has the error of the log mean weight."""
    with np.errstate(invalid="ignore"):
        shares = np.exp(log_weights - log_weights.max())
        return np.asarray(len(shares) * shares / shares.sum())


def _of_shared(
    sites: tuple[str, ...], weights: np.ndarray, report: ImportanceDiagnostics, whole: np.ndarray
) -> SharedDiagnostics:
    """What is told of the draws that the data share: of their own weights, and of the whole's."""
    elbo, elbo_error = mean_and_error(weights)
    with np.errstate(invalid="ignore"):  # of draws that are impossible
        gap_error = error_of_means(_parts_of_bound(whole) - whole)
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
        gap_error=gap_error,
    )


def _with_noise(
    shared: SharedDiagnostics, outer: Draws, parts: Sequence[ImportanceDiagnostics]
) -> SharedDiagnostics:
    """Add how much of the weights of what is shared is noise of the bounds given it."""
    errors, bounds, halves = (
        (outer.scale * np.stack(each)).reshape(len(parts), -1, outer.scale.size).sum(-1).T
        for each in (
            [outer.scale * part.iwae_error**2 for part in parts],
            [part.given.iwae for part in parts],
            [part.given.halves for part in parts],
        )
    )
    weights = outer.shared_importance_weights[: len(parts)]
    with np.errstate(invalid="ignore"):  # of draws that are impossible
        agreed = agreed_part(weights + bounds[0], weights + halves)
    return shared._replace(noise=float(errors.mean()), agreed=agreed)


def _is_settled(report: ImportanceDiagnostics) -> bool:
    """Whether no weighted bound hangs on few draws or states, which would not show its error."""
    return not (np.isin(report.verdicts, ("unreliable", "broken")) | report.has_few_states).any()


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
        without_one = report.given.iwae + np.log(rest)
    spread = _SPREAD * np.linspace(-1, 1, num_draws).reshape(-1, *[1] * report.ess.ndim)
    has_no_tail = np.isnan(report.khat) & (report.verdicts != "unreliable")
    return np.where(has_no_tail, report.given.iwae + spread, without_one)


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
        sites = {**draws["latent"], **draws["summed"]}
        found.append({n: _pick(site, draws.plates, places) for n, site in sites.items()})
    picked = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    summed = {name: picked.pop(name) for name in draws["summed"]}
    return report._replace(draws=WeightedDraws(picked, np.zeros(count), summed=summed))


def with_notes(draws: Draws, report: ImportanceDiagnostics) -> ImportanceDiagnostics:
    """Say of which continuous latents the guide has a point, and which sites it alone draws."""
    shared = report.shared
    if shared is not None:
        shared = shared._replace(points=tuple(n for n in shared.sites if n in draws.points))
    notes = draws.notes
    is_bound = np.asarray(report.is_bound & (not notes["auxiliary"]) & (not notes["weighed"]))
    return report._replace(shared=shared, is_bound=is_bound, **notes)


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
    values, summed = (
        {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        for found in ([each.values for each in kept], [each.summed for each in kept])
    )
    return WeightedDraws(values, np.repeat(weights, len(kept[0].log_weights)), summed=summed)
