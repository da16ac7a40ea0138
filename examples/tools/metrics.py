"""Metrics of a discrete VAE on test images, from plain arrays of log-densities and codes."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

__all__ = ["Draws", "summarize"]

_LEAST_MSE = 1e-10  # caps a perfect image at 100 dB


class Draws(NamedTuple):
    """K draws of the codes for each of B images; log-densities in nats, of shape (K, B)."""

    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_q: np.ndarray
    codes: np.ndarray  # (B, L), the first draw
    errors: np.ndarray  # (B,), mean squared error of the first draw's reconstruction


def summarize(batches: Iterable[Draws], *, beta: float, num_codes: int) -> dict[str, float]:
    """Return means per image, in nats; see the README for what each of them tells.

    `elbo` and `beta_elbo` average over the draws, `iwae` is the importance-weighted bound of
    all K, `ess` the effective sample size of these weights as a fraction of K, `psnr` the mean
    over images of each one's, `code_usage` the fraction of codes that occur.
    """
    parts = list(batches)
    likelihood, prior, log_q = (
        np.concatenate([np.asarray(part[i], np.float64) for part in parts], 1) for i in range(3)
    )
    codes = np.concatenate([part.codes for part in parts]).astype(np.int64)
    errors = np.concatenate([part.errors for part in parts]).astype(np.float64)
    log_weights = likelihood + prior - log_q
    num_particles = len(log_weights)
    log_squares = logsumexp(2 * log_weights, 0)
    ess = np.exp(2 * logsumexp(log_weights, 0) - log_squares) / num_particles
    used = [len(np.unique(column)) for column in codes.T]
    return {
        "elbo": log_weights.mean(),
        "beta_elbo": (likelihood + beta * (prior - log_q)).mean(),
        "iwae": (logsumexp(log_weights, 0) - np.log(num_particles)).mean(),
        "iwae_particles": num_particles,
        "rate_bits": (log_q - prior).mean() / np.log(2),
        "mse": errors.mean(),
        "psnr": (-10 * np.log10(np.maximum(errors, _LEAST_MSE))).mean(),
        "ess": ess.mean(),
        "code_usage": float(np.mean(used)) / num_codes,
        "beta": beta,
    }
