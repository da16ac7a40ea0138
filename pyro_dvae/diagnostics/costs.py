"""Rate, distortion and ELBO of each datum, of what the data share, and of all together.

NumPy alone, so but for the package's name this file is the same in both packages.

References:
    [1] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

import math

import numpy as np

from pyro_dvae.diagnostics.draws import Draws
from pyro_dvae.diagnostics.reports import SharedCost, WholeCost

__all__ = [
    "beta_elbo_of",
    "bound_error",
    "distortion_of",
    "error_of_means",
    "mean_and_error",
    "rate_of",
    "rates_of",
    "shared_cost_of",
    "whole_cost_of",
]


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
