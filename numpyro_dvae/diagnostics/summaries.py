"""What draws say of a trained pair: each formula once, for all diagnostics that need it.

All are per datum, of the shape of the plates that the discrete latents share, or per latent. NumPy
alone, so but for the package's name this file is the same in both packages.

References:
    [1] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numpyro_dvae.diagnostics.arrays import NamedArray, log_sum
from numpyro_dvae.diagnostics.costing import (
    beta_elbo_of,
    distortion_of,
    distortions_of,
    log_weights_of,
    rate_of,
    rates_of,
    shared_cost_of,
    whole_cost_of,
)
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.errors import are_few, error_of_means, is_bound_of, mean_and_error
from numpyro_dvae.diagnostics.reports import (
    CodeUsage,
    Evaluation,
    PerDatum,
    PosteriorGap,
    RateDistortion,
    SharedCost,
)
from numpyro_dvae.diagnostics.usage import states_of
from numpyro_dvae.diagnostics.verdicts import ImportanceDiagnostics

__all__ = [
    "data_span_of",
    "errors_of",
    "evaluation_of",
    "gap_of",
    "num_seen_of",
    "psnr_of",
    "rate_distortion_of",
]

_ROUNDING = 1e-4  # nats, of densities in single precision
_MOST_PSNR = 100.0  # decibels, of an image in a mean: one perfect image would make it infinite


def rate_distortion_of(draws: Draws, data_range: float | None) -> RateDistortion:
    """Put together what `rate_distortion` tells; the range of the data is found if None."""
    data_range = data_span_of(draws) if data_range is None else data_range
    errors, rates = errors_of(draws), rates_of(draws)
    distortions = distortions_of(draws)
    return RateDistortion(
        rate=rate_of(draws),
        distortion=distortion_of(draws),
        mse=errors.mean(0),
        psnr=np.minimum(psnr_of(errors, data_range), _MOST_PSNR).mean(0),
        rate_error=mean_and_error(rates)[1],
        distortion_error=mean_and_error(distortions)[1],
        whole=whole_cost_of(draws)._replace(is_settled=not are_few(*states_of(draws)[:2]).any()),
        shared=shared_cost_of(draws),
        mean_rate_error=error_of_means(rates),
        mean_distortion_error=error_of_means(distortions),
        data_range=data_range,
        is_bound=is_bound_of(draws.importance_weights, draws.log_weights),
        **draws.notes,
    )


def errors_of(draws: Draws) -> np.ndarray:
    """Mean squared error of p(x | z)'s mean, over all that a datum observes: ``(K, *plates)``.

    Entries that a mask silences do not count. NaN where nothing is observed, or no site tells its
    mean.
    """
    total = np.zeros(draws.shape)
    for name, mean in _observed_means(draws).items():
        errors = (mean.values - draws["observed"][name].values) ** 2
        seen = np.broadcast_to(draws["seen"][name].values, errors.shape)
        within = _axes_within(mean, draws)
        total = total + np.where(seen, errors, 0).sum(within, dtype=np.float64)
    count = num_seen_of(draws)
    return total / np.where(count > 0, count, np.nan)


def num_seen_of(draws: Draws) -> np.ndarray:
    """How many observed entries `errors_of` compares, ``(K, *plates)``."""
    count = np.zeros(draws.shape, int)
    for name, mean in _observed_means(draws).items():
        seen = np.broadcast_to(draws["seen"][name].values, mean.values.shape)
        count = count + seen.sum(_axes_within(mean, draws))
    return count


def data_span_of(draws: Draws) -> float:
    """Span of what `errors_of` compares: 1 if it lies in [0, 1], else largest less smallest."""
    parts = [np.zeros(0)]
    for name in _observed_means(draws):
        observed, seen = draws["observed"][name].values, draws["seen"][name].values[0]
        observed, seen = np.broadcast_arrays(observed, seen)
        parts.append(observed[seen])
    values = np.concatenate(parts)
    in_unit = not values.size or (values.min() >= 0 and values.max() <= 1)
    if in_unit or values.min() == values.max():
        return 1.0
    return float(values.max() - values.min())


def psnr_of(errors: np.ndarray, data_range: float) -> np.ndarray:
    """Peak signal-to-noise ratio in decibels; infinite where there is no error."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(data_range**2 / errors))


def evaluation_of(
    draws: Draws,
    one_draw: Draws,
    weights: ImportanceDiagnostics,
    usages: Mapping[str, CodeUsage],
    *,
    beta: float,
    data_range: float | None,
) -> Evaluation:
    """Put together what `evaluate` tells.

    Args:
        draws: K draws, with their record alone.
        one_draw: One draw, with all that is read of latents and observations.
        weights: The report on the importance weights of `draws`.
        usages: Which codes of each discrete site occur.
        beta: Weight of the rate in the beta-ELBO.
        data_range: Span of the data; found if None.
    """
    data_range = data_span_of(one_draw) if data_range is None else data_range
    elbo, errors = log_weights_of(draws).mean(0), np.asarray(errors_of(one_draw)[0])
    elbo_error = error_of_means(log_weights_of(draws))
    per_datum = PerDatum(
        elbo=elbo,
        beta_elbo=beta_elbo_of(draws, beta),
        **_weighted(elbo, weights),
        rate=rate_of(draws),
        distortion=distortion_of(draws),
        mse=errors,
        psnr=np.asarray(psnr_of(errors, data_range)),
    )
    shared, whole = shared_cost_of(draws) or SharedCost((), 0.0, 0.0), whole_cost_of(draws)
    return Evaluation(
        **_means(per_datum, np.asarray(num_seen_of(one_draw)[0] > 0), draws.num_draws),
        **_usages(usages),
        beta=beta,
        num_particles=draws.num_draws,
        data_range=data_range,
        per_datum=per_datum,
        elbo_error=elbo_error,
        bound_error=_bound_error(per_datum, elbo_error, weights),
        shared_rate=shared.rate,
        shared_distortion=shared.distortion,
        whole_elbo=whole.elbo,
        whole_elbo_error=whole.elbo_error,
        whole_bound=weights.whole.iwae,
        whole_bound_error=weights.whole.iwae_error,
        **_known_of(weights),
        **draws.notes,
    )


def _weighted(elbo: np.ndarray, weights: ImportanceDiagnostics) -> dict[str, np.ndarray]:
    """What the importance weights say of each datum; nothing, if they are of all data at once."""
    if weights.iwae.shape != elbo.shape:
        missing = np.full(elbo.shape, np.nan)
        return {"importance_weighted_bound": missing, "ess": missing}
    bound = weights.iwae
    if weights.has_shared_latents:  # it is of other draws than the ELBO
        bound = elbo + (weights.iwae - weights.elbo)
    return {"importance_weighted_bound": bound, "ess": weights.ess}


def _known_of(weights: ImportanceDiagnostics) -> dict[str, Any]:
    """Which errors are settled, and which data have an ELBO that is a bound."""
    whole = weights.whole
    settled = {"is_settled": whole.is_settled, "is_elbo_settled": whole.is_elbo_settled}
    return {**settled, "is_bound": weights.is_bound}


def _bound_error(per_datum: PerDatum, elbo_error: float, weights: ImportanceDiagnostics) -> float:
    """Standard error of the mean bound, as `_weighted` has it."""
    if np.isnan(per_datum.importance_weighted_bound).all():
        return math.nan
    errors = weights.mean_errors
    return math.hypot(elbo_error, errors.gap) if weights.has_shared_latents else errors.iwae


def _usages(usages: Mapping[str, CodeUsage]) -> dict[str, Any]:
    """How much of the codes, and of the tables that latents share, is in use, over all sites."""
    finite = [usage for usage in usages.values() if usage.counts.any() and not usage.is_open]
    shares = [each.share_used[each.in_use] for each in finite]
    return {
        "usage": _mean_if_any(np.concatenate([np.zeros(0), *shares])),
        "table_usage": _mean_if_any(np.array([each.table_share_used for each in finite])),
        "table_perplexity": _mean_if_any(np.array([each.table_perplexity for each in finite])),
    }


def gap_of(draws: Draws) -> PosteriorGap:
    """The exact posterior, where the draws are all states of a datum, each once.

    The record then has "log_draw", log q of the state's draws, masked or not, "impossible", whether
    the guide never draws it, and "silenced", the log-density that masks silence of the model's
    latents: under a mask, the model draws all the same, and its states count as often as it does.
    """
    names = ("log_q", "log_draw", "silenced")
    log_q, log_draw, silenced = (draws.record(name).astype(np.float64) for name in names)
    log_p, possible = draws.log_joint, np.isfinite(log_q) & ~draws.record("impossible")
    log_evidence = log_sum(log_p + silenced)
    # An impossible datum has an evidence of -inf, and no posterior: its gap and mass are NaN.
    with np.errstate(invalid="ignore"):
        posterior = np.exp(log_p + silenced - log_evidence)
        weights = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=possible)
        elbo = np.where(possible, np.exp(log_draw) * weights, 0.0).sum(0)
        # What the ELBO is at most: the evidence, if masked latents are drawn as the model would.
        ceiling = log_sum(np.where(possible, log_p + log_draw - log_q, -np.inf))
    mass = np.where(possible, posterior, 0.0).sum(0)
    if "counted_impossible" in draws["record"]:
        counted = np.isfinite(log_q) & ~draws.record("counted_impossible")
        of_counted = np.where(counted, posterior, 0.0).sum(0)
        with np.errstate(invalid="ignore"):  # which is so if nothing depends on the others
            is_mass = np.abs(np.exp(ceiling - log_evidence) - of_counted) < _ROUNDING
        mass = np.where(is_mass, of_counted, mass)
    mass = np.where(np.isfinite(log_evidence), mass, np.nan)
    # What is observed beside the data; a factor of the guide's there is of its density alone.
    joint, weight = (
        each[0] / draws.scale.sum() for each in (draws.shared_joint, draws.shared_weights)
    )
    log_evidence, elbo, ceiling = log_evidence + joint, elbo + weight, ceiling + weight
    with np.errstate(invalid="ignore"):
        gap, is_bound = log_evidence - elbo, ~(ceiling > log_evidence + _ROUNDING)
    return PosteriorGap(
        log_evidence=log_evidence,
        elbo=np.asarray(elbo),
        gap=np.asarray(gap),
        support_mass=np.asarray(mass),
        is_bound=np.asarray(is_bound),
        whole_log_evidence=float((draws.scale * log_evidence).sum()),
        whole_elbo=float((draws.scale * elbo).sum()),
        **(draws.notes | ({"clamped": ()} if np.isfinite(elbo).all() else {})),
    )


def _means(per_datum: PerDatum, is_seen: np.ndarray, num_draws: int) -> dict[str, Any]:
    """Means over the data; errors are of those that observe anything."""
    means = {name: float(np.mean(values)) for name, values in per_datum._asdict().items()}
    means["mse"] = _mean_if_any(per_datum.mse[is_seen])
    means["psnr"] = _mean_if_any(np.minimum(per_datum.psnr[is_seen], _MOST_PSNR))
    means["ess"] = means["ess"] / num_draws
    return means


def _mean_if_any(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _observed_means(draws: Draws) -> dict[str, NamedArray]:
    """Means of the observations that belong to one datum each; a Categorical's are all NaN."""
    return {
        name: mean
        for name, mean in draws["mean"].items()
        if set(draws.plates) <= set(mean.dims) and not np.isnan(mean.values).all()
    }


def _axes_within(array: NamedArray, draws: Draws) -> tuple[int, ...]:
    """Axes of a drawn array that belong to one datum."""
    return tuple(axis for axis, dim in enumerate(array.dims, 1) if dim not in draws.plates)
