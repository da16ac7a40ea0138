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
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.collect import collect, collect_given_shared
from numpyro_dvae.diagnostics.draws import Draws, count_numbers
from numpyro_dvae.diagnostics.errors import bound_error, mean_and_error
from numpyro_dvae.diagnostics.usage import MOST_LISTED, States, is_restricted, states_of
from numpyro_dvae.diagnostics.verdicts import Given, ImportanceDiagnostics, WholeBounds
from numpyro_dvae.diagnostics.weighing import (
    as_whole,
    evidences,
    is_given,
    is_separable,
    over_shared,
    weighted,
    with_halves,
    with_loss,
    with_notes,
    with_picked,
    with_whole,
)
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.bounds import importance_weighted_bound
from numpyro_dvae.ops.importance import ParetoTail, khat_threshold, pareto_tail
from numpyro_dvae.ops.tempering import effective_sample_size

__all__ = [
    "NUM_SHARED",
    "diagnose",
    "diagnose_weights",
    "importance_diagnostics",
]

NUM_SHARED = 100  # draws of what the data share, if they share latents
_MOST_KEPT = 2**26  # numbers of the data, times draws, up to which latents are kept
_PICKED = 1000  # draws that are kept where the data share latents, at all draws of these together
_LEAST_PARTICLES = 25  # a fifth of them are the tail, which needs 5


@checked
def importance_diagnostics(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_particles: int = 1000,
    num_shared: int = NUM_SHARED,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> ImportanceDiagnostics:
    """Judge the guide, datum by datum, by the importance weights of its draws.

    Latents that the data share, such as the means of a mixture, have no weight of one datum: they
    are drawn `num_shared` times, and the latents of each datum `num_particles` times at each.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_particles: K, draws per datum; at least 25. More show rarer states.
        num_shared: Draws of what the data share, if they share latents; 100, or at least 25.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate.

    Returns:
        Bounds, effective sample size, k̂, largest weight and verdict of each datum and of what they
        share, and bounds on the whole; `print` it.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    _check_count("num_particles", num_particles)
    _check_count("num_shared", num_shared)
    keys, wanted = jax.random.split(rng_key), _wanted(data, num_particles)
    draws = collect(
        keys[0], result, data, num_particles, wanted, params=params, batch_size=batch_size
    )
    if draws["given"] and num_shared > num_particles:
        draws = collect(keys[0], result, data, num_shared, wanted, params=params)
    return diagnose(keys[1], draws, result, data, num_shared, num_particles, params)[0]


def diagnose(
    rng_key: Array,
    draws: Draws,
    result: Any,
    data: tuple,
    num_shared: int,
    num_draws: int,
    params: Mapping[str, Any] | None,
) -> tuple[ImportanceDiagnostics, np.ndarray | None]:
    """Judge the weights of draws that were made; of more draws, where the data share latents.

    Args:
        rng_key: Key of more draws.
        draws: Of all latents.
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        num_shared: At how many of the draws of what the data share more draws are made.
        num_draws: Draws of the latents of each datum at each.
        params: Parameters by name, in place of those of `result`.

    Returns:
        The report, and log evidences of each datum, see `evidences`; None if a datum has none.
    """
    if not draws["given"] and is_separable(draws):
        report = with_notes(draws, with_whole(draws, diagnose_weights(draws)))
        no_evidence = report.is_at_a_point  # but a density with the point
        return report, None if no_evidence else evidences(draws.importance_weights, report)
    if draws["given"]:
        num_shared = min(num_shared, draws.num_draws)
        look = partial(_given_shared, max(1, _PICKED // num_shared), draws)
        found = collect_given_shared(
            rng_key, result, data, draws, num_shared, num_draws, look, params=params
        )
        parts = [part for part in found if part is not None]
        if len(parts) == num_shared:
            report = with_notes(draws, over_shared(draws, parts, _judge))
            bounds = np.stack([part.given.iwae for part in parts])
            return report, None if report.is_at_a_point else bounds
    restricted = np.asarray(is_restricted(draws).any())
    weights = draws.whole_importance_weights
    report = _judge(weights, States(np.asarray(draws.num_draws), restricted=restricted))
    report = as_whole(with_loss(report, weights, draws.whole_weights))
    return with_notes(draws, report)._replace(draws=weighted(draws, weights)), None


def _given_shared(
    count: int, outer: Draws, draws: Draws, place: int
) -> ImportanceDiagnostics | None:
    """A report given what the data share; None if a datum has no weight of its own then."""
    if not (is_given(draws, outer, place) and is_separable(draws)):
        return None
    report = with_halves(draws, diagnose_weights(draws))
    return with_picked(count, draws, report, place)


def diagnose_weights(draws: Draws) -> ImportanceDiagnostics:
    """Judge the weights of each datum."""
    weights = draws.importance_weights
    report = _judge(weights, states_of(draws))
    return with_loss(report, weights, draws.log_weights)


def _judge(log_weights: np.ndarray, states: States) -> ImportanceDiagnostics:
    """A report of log weights ``(K, *shape)``; the whole is the mean of one, if that is all."""
    centred, origin = _centred(log_weights)
    bound, ess, tail = jax.device_get(_judged(jnp.asarray(centred)))
    bound = np.asarray(bound + origin)
    elbo, elbo_error = mean_and_error(log_weights)
    is_one = (states.num == 1) & ~states.is_sole & ~states.restricted
    iwae_error = bound_error(ess, len(log_weights), np.asarray(is_one))
    return ImportanceDiagnostics(
        elbo=elbo,
        iwae=bound,
        ess=ess,
        khat=tail.khat,
        largest_weight=tail.largest_weight,
        num_tail_weights=tail.num_distinct,
        num_states=states.num,
        num_possible=states.possible,
        is_sole=states.is_sole,
        is_listable=np.rint(states.of_model) <= MOST_LISTED,  # to the digits of single precision
        restricted=states.restricted,
        num_particles=len(log_weights),
        khat_threshold=khat_threshold(len(log_weights)),
        elbo_error=elbo_error,
        iwae_error=iwae_error,
        whole=WholeBounds(np.nan, np.nan, np.nan, np.nan),
        given=Given(elbo, bound),
    )


def _centred(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log weights less the largest of each datum, and that; 0 where none is finite."""
    largest = np.max(log_weights, axis=0)
    origin = np.where(np.isfinite(largest), largest, 0.0)
    return np.asarray(log_weights - origin), origin


def _wanted(data: tuple, num_particles: int) -> tuple[str, ...]:
    """Latents are kept for expectations, unless they may be too many."""
    few = count_numbers(data) * num_particles <= _MOST_KEPT
    return ("outside", "latent") if few else ("outside",)


def _check_count(name: str, count: int) -> None:
    if count < _LEAST_PARTICLES:
        raise ValueError(
            f"`{name}` must be at least {_LEAST_PARTICLES}, for the largest weights to be a "
            f"tail; got {count}."
        )


@jax.jit
def _judged(log_weights: Array) -> tuple[Array, Array, ParetoTail]:
    bound = importance_weighted_bound(log_weights)
    return bound, effective_sample_size(log_weights), pareto_tail(log_weights)
