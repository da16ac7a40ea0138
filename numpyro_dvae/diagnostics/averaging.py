"""Draws with weights that make them the posterior's, and means over them.

NumPy alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.verdicts import ImportanceDiagnostics

__all__ = ["Weighted", "joint_log_weights_of", "mean_probs", "weighted_draws", "weights_in_dims"]


class Weighted(NamedTuple):
    """Draws whose weights make them the posterior's."""

    latents: Mapping[str, np.ndarray]
    summed: Mapping[str, np.ndarray]  # of sites that are summed out, their probabilities given each
    weights: np.ndarray  # (K, *plates), of sum 1 over the first axis
    plates: tuple[str, ...]


def joint_log_weights_of(draws: Draws) -> np.ndarray:
    """Log importance weight of each draw, of each datum.

    Where data share latents, the weight of all together, repeated for each datum.
    """
    log_weights = draws.importance_weights
    is_drawn = any((site.values != site.values[:1]).any() for site in draws["given"].values())
    if not is_drawn and np.ptp(draws.shared_importance_weights) == 0:
        return log_weights
    whole = draws.whole_importance_weights.reshape(-1, *[1] * (log_weights.ndim - 1))
    return np.broadcast_to(whole, log_weights.shape)


def weighted_draws(
    draws: Draws, log_weights: np.ndarray, report: ImportanceDiagnostics
) -> Weighted:
    """The draws; where the data share latents, those that the report is of.

    A draw of all latents at once weighs what all data together say of it: few would count.
    """
    if report.has_shared_latents and report.draws is not None:
        kept = report.draws
        return Weighted(kept.values, kept.summed, _normalised(kept.log_weights), ())
    latents, summed = (
        {name: site.values for name, site in draws[reading].items()}
        for reading in ("latent", "summed")
    )
    return Weighted(latents, summed, _normalised(log_weights), draws.plates)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights of the draws of each datum, of sum 1."""
    weights = np.exp(log_weights - log_weights.max(0))
    return weights / weights.sum(0)


def weights_in_dims(
    weights: np.ndarray, plates: tuple[str, ...], dims: tuple[str, ...]
) -> np.ndarray:
    """Weights ``(K, *plates)`` in the dims of a site, 1 where it has more.

    Where it has fewer, as a site that the data share, those of one datum: they are those of all
    together then, or the site is the same in all draws.
    """
    for axis, plate in reversed(list(enumerate(plates, 1))):
        if plate not in dims:
            weights, plates = weights.take(0, axis), tuple(p for p in plates if p != plate)
    moved = weights.transpose(0, *(1 + plates.index(dim) for dim in dims if dim in plates))
    sizes = iter(moved.shape[1:])
    return moved.reshape([len(moved), *(next(sizes) if dim in plates else 1 for dim in dims)])


def mean_probs(name: str, draws: Draws, weighted: Weighted | None) -> np.ndarray:
    """Probabilities ``(*dims, V)`` of a site that is summed out, in the mean over draws.

    Draws that the model cannot have tell none.
    """
    site = draws["summed"][name]
    values = site.values if weighted is None else weighted.summed[name]
    possible = ~np.isnan(values)
    if weighted is None:
        weights = possible.astype(np.float64)
    else:
        weights = (
            weights_in_dims(weighted.weights, weighted.plates, site.dims[:-1])[..., None] * possible
        )
    with np.errstate(invalid="ignore"):  # where no draw is possible
        return np.asarray((weights * np.where(possible, values, 0.0)).sum(0) / weights.sum(0))
