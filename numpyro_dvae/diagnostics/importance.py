"""Is the guide near the posterior? The weights ``w = p(x, z) / q(z | x)`` of its draws tell.

They are all equal if the guide is exact. The effective sample size ``(Σ w)² / Σ w²`` is K times
``(E w)² / E w²``, that is ``K exp(-D₂(p ‖ q))`` with Rényi's divergence of order 2; the Pareto
shape k̂ of the largest weights says whether K draws are enough to see it [1]. Discrete latents
tie weights, which makes a plain k̂ meaningless; see `ops.importance`. The effective sample size
does not mind draws where the posterior has nothing, as long as the others are right; the ELBO does,
so the verdict asks for both.

References:
    [1] Yao, Vehtari, Simpson & Gelman. Yes, but did it work? Evaluating variational inference.
        ICML, 2018.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.collect import collect
from numpyro_dvae.diagnostics.draws import Draws
from numpyro_dvae.diagnostics.summaries import is_restricted, num_states_of
from numpyro_dvae.diagnostics.verdicts import ImportanceDiagnostics
from numpyro_dvae.ops.bounds import importance_weighted_bound
from numpyro_dvae.ops.importance import ParetoTail, khat_threshold, pareto_tail
from numpyro_dvae.ops.tempering import effective_sample_size

__all__ = ["bound_and_sample_size", "diagnose_weights", "importance_diagnostics"]

_LEAST_PARTICLES = 25  # a fifth of them are the tail, which needs 5


def importance_diagnostics(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_particles: int = 1000,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> ImportanceDiagnostics:
    """Judge the guide, datum by datum, by the importance weights of its draws.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_particles: K, draws per datum; at least 25. More show rarer states.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate.

    Returns:
        Bounds, effective sample size, k̂, largest weight and verdict of each datum; `print` it.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    _check_num_particles(num_particles)
    draws = collect(
        rng_key, result, data, num_particles, ("outside",), params=params, batch_size=batch_size
    )
    return diagnose_weights(draws)


def diagnose_weights(draws: Draws) -> ImportanceDiagnostics:
    """Judge the weights of draws that were made."""
    log_weights = draws.log_weights
    centred, origin = _centred(log_weights)
    bound, ess, tail = jax.device_get(_judge(jnp.asarray(centred)))
    return ImportanceDiagnostics(
        elbo=log_weights.mean(0),
        iwae=bound + origin,
        ess=ess,
        khat=tail.khat,
        largest_weight=tail.largest_weight,
        num_tail_weights=tail.num_distinct,
        num_states=num_states_of(draws),
        restricted=is_restricted(draws),
        num_particles=draws.num_draws,
        khat_threshold=khat_threshold(draws.num_draws),
    )


def bound_and_sample_size(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The importance-weighted bound of K draws in nats, and their effective sample size."""
    centred, origin = _centred(log_weights)
    bound, ess = jax.device_get(_weigh(jnp.asarray(centred)))
    return bound + origin, ess


def _centred(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log weights less the largest of each datum, and that; 0 where none is finite."""
    largest = np.max(log_weights, axis=0)
    origin = np.where(np.isfinite(largest), largest, 0.0)
    return log_weights - origin, origin


def _check_num_particles(num_particles: int) -> None:
    if num_particles < _LEAST_PARTICLES:
        raise ValueError(
            f"`num_particles` must be at least {_LEAST_PARTICLES}, for the largest weights to be a "
            f"tail; got {num_particles}."
        )


@jax.jit
def _weigh(log_weights: Array) -> tuple[Array, Array]:
    return importance_weighted_bound(log_weights), effective_sample_size(log_weights)


@jax.jit
def _judge(log_weights: Array) -> tuple[Array, Array, ParetoTail]:
    bound = importance_weighted_bound(log_weights)
    return bound, effective_sample_size(log_weights), pareto_tail(log_weights)
