"""Rate, distortion and ELBO of draws [1]: of each datum, of what the data share, and of all.

What the data share is split evenly among them, so that sums over the data, each times what it
counts in the loss, are as the loss has them.
NumPy alone, so but for the package's name this file is the same in both packages.

References:
    [1] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

import numpy as np

from numpyro_dvae.diagnostics.costs import SharedCost, WholeCost
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.errors import mean_and_error
from numpyro_dvae.ops.bounds import NATS_PER_BIT

__all__ = [
    "beta_elbo_of",
    "distortion_of",
    "distortions_of",
    "log_weights_of",
    "rate_of",
    "rates_of",
    "shared_cost_of",
    "whole_cost_of",
]


def log_weights_of(draws: Draws) -> np.ndarray:
    """Log p - log q of each draw and datum, ``(K, *plates)``, as `rates_of` and the loss."""
    return draws.log_weights + _part(draws, draws.shared_weights)


def rates_of(draws: Draws) -> np.ndarray:
    """Log q - log p(z) of each draw and datum in bits, ``(K, *plates)``.

    What the data share is split evenly among them.
    """
    log_q = draws.record("log_q").astype(np.float64)
    shared = draws.shared("shared_q") - draws.shared("shared_prior")
    return (log_q - draws.record("log_prior") + _part(draws, shared)) / NATS_PER_BIT


def distortions_of(draws: Draws) -> np.ndarray:
    """Minus log p(x | z) of each draw and datum in nats, ``(K, *plates)``; as `rates_of`."""
    log_p = draws.record("log_likelihood").astype(np.float64)
    return 0.0 - log_p - _part(draws, draws.shared("shared_likelihood"))


def _part(draws: Draws, shared: np.ndarray) -> np.ndarray:
    """What a datum has of a number that all share, so that the sum is as the loss has it."""
    return shared.reshape(-1, *[1] * draws.scale.ndim) / draws.scale.sum()


def rate_of(draws: Draws) -> np.ndarray:
    """Log q - log p(z) of each datum in bits, in the mean over the draws."""
    return np.asarray(rates_of(draws).mean(0))


def distortion_of(draws: Draws) -> np.ndarray:
    """Minus log p(x | z) of each datum in nats, in the mean over the draws."""
    return np.asarray(distortions_of(draws).mean(0))


def shared_cost_of(draws: Draws) -> SharedCost | None:
    """What the data share costs; None if they share no site."""
    if not draws.shared_sites:
        return None
    rates = (draws.shared("shared_q") - draws.shared("shared_prior")) / NATS_PER_BIT
    rate, rate_error = mean_and_error(rates)
    distortion, distortion_error = mean_and_error(0.0 - draws.shared("shared_likelihood"))
    numbers = (rate, distortion, rate_error, distortion_error)
    return SharedCost(draws.shared_sites, *map(float, numbers))


def whole_cost_of(draws: Draws) -> WholeCost:
    """What all data cost, as the loss sums them."""
    rate, distortion = (float((draws.scale * of(draws)).sum()) for of in (rate_of, distortion_of))
    elbo, error = mean_and_error(draws.whole_weights)
    return WholeCost(rate, distortion, float(elbo), float(error))


def beta_elbo_of(draws: Draws, beta: float) -> np.ndarray:
    """The ELBO of each datum in nats, its rate weighed by `beta`."""
    return np.asarray(-distortion_of(draws) - beta * NATS_PER_BIT * rate_of(draws))
