"""Rate and distortion of the data, and the gap to the exact posterior where it can be listed.

References:
    [1] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.draws import Store
from numpyro_dvae.diagnostics.reports import PosteriorGap, RateDistortion
from numpyro_dvae.diagnostics.trained import collect, collect_states

__all__ = ["posterior_gap", "rate_distortion"]


def rate_distortion(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 1,
    data_range: float = 1.0,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> RateDistortion:
    """What the latents cost and what they leave out: rate in bits, distortion, MSE, PSNR [1].

    A reconstruction is the mean of p(x | z) at a draw of the guide.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum.
        data_range: Span of the data's values, to which the PSNR refers: 1 for images in [0, 1].
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Rate, distortion, MSE and PSNR of each datum, in the mean over the draws.
    """
    if not data_range > 0:
        raise ValueError(f"`data_range` must be positive; got {data_range}.")
    store = collect(
        rng_key,
        result,
        data,
        num_draws,
        ("mean", "observed"),
        params=params,
        batch_size=batch_size,
    )
    record = {name: variable.values for name, variable in store["record"].items()}
    errors = _squared_errors(store)
    with np.errstate(divide="ignore"):  # a perfect reconstruction has a PSNR of infinity
        psnr = 10 * np.log10(data_range**2 / errors)
    return RateDistortion(
        rate=(record["log_q"] - record["log_prior"]).mean(0, dtype=np.float64) / math.log(2),
        distortion=-record["log_likelihood"].mean(0, dtype=np.float64),
        mse=errors.mean(0),
        psnr=psnr.mean(0),
    )


def posterior_gap(
    rng_key: Array,
    result: Any,
    *data: Any,
    max_states: int = 2**16,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> PosteriorGap:
    """The exact evidence, ELBO and gap ``KL(q(z | x) ‖ p(z | x))`` of each datum, by enumeration.

    For a truncated guide, q is the posterior restricted to a set, and the gap is minus the log of
    the posterior mass of that set, `support_mass`.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide), without continuous latents.
        *data: What model and guide are called with.
        max_states: Largest number of joint states of a datum that is accepted.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Log evidence, ELBO, gap and mass of the guide's support of each datum.

    Raises:
        ValueError: If there are too many states, or continuous latents.
    """
    store = collect_states(rng_key, result, data, max_states, params=params, batch_size=batch_size)
    record = {name: v.values.astype(np.float64) for name, v in store["record"].items()}
    log_p, log_q = record["log_likelihood"] + record["log_prior"], record["log_q"]
    possible = np.isfinite(log_q)
    nothing = np.zeros_like(log_p)
    # States that differ in masked sites alone share one term, in parts given by their draws.
    parts = np.subtract(record["log_draw"], log_q, out=nothing.copy(), where=possible)
    top = log_p.max(0)
    with np.errstate(invalid="ignore"):  # an impossible datum has an evidence of -inf
        log_evidence = np.log(np.exp(log_p - top + parts).sum(0)) + top
        posterior = np.exp(log_p + parts - log_evidence)
    weights = np.subtract(log_p, log_q, out=nothing, where=possible)
    elbo = (np.exp(record["log_draw"]) * weights).sum(0)
    mass = np.where(possible, posterior, 0.0).sum(0)
    return PosteriorGap(log_evidence, elbo, log_evidence - elbo, mass)


def _squared_errors(store: Store) -> np.ndarray:
    """Mean over all that a datum observes, ``(K, *plates)``; NaN if no site tells its mean."""
    total, count = 0.0, 0
    for name, mean in store["mean"].items():
        data = store["observed"][name]
        if not set(store.plates) <= set(mean.dims):
            continue
        axes = tuple(1 + i for i, dim in enumerate(mean.dims) if dim not in store.plates)
        errors = (mean.values - data.values) ** 2
        total = total + errors.sum(axes, dtype=np.float64)
        count += math.prod(errors.shape[axis] for axis in axes)
    shape = store["record"]["log_q"].values.shape
    return np.broadcast_to(total / count if count else np.nan, shape)
