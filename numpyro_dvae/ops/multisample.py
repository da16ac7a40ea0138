"""Bounds of several particles at once: learning signals (VIMCO) and antithetic pairs (DisARM).

With log weights l the bound of K particles is ``L = log (1/K) Σ exp l_k``. VIMCO [1] credits a
particle with what the bound owes to it: L less the bound with ``exp l_k`` replaced by a mean of
the other weights, which does not depend on particle k.

DisARM [2], [3] draws binary latents in pairs from one uniform u, ``z = 1[u < p]`` and
``z' = 1[1 - u <= p]``, so that they differ as often as they can. The expectation over u given the
pair leaves, for f the score of a draw,

    ½ (f(z) - f(z')) (z - z') max(p, 1 - p) = ½ (f(z) - f(z')) max(p, 1 - p) d(log q(z) - log q(z'))

as the gradient to a logit, where d is the derivative by that logit.

Shapes: particles lead, as in ``(K, *batch)``; log weights and scores are in nats.

References:
    [1] Mnih & Rezende. Variational inference for Monte Carlo objectives. ICML, 2016.
    [2] Dong, Mnih & Tucker. DisARM: an antithetic gradient estimator for binary latent
        variables. NeurIPS, 2020.
    [3] Yin, Ho, Yan, Qian & Zhou. Probabilistic best subset selection by gradient-based
        optimization (U2G). arXiv 2006.06448, 2020.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_dvae.ops.arguments import checked

__all__ = [
    "BASELINES",
    "antithetic_advantages",
    "antithetic_draw",
    "antithetic_factor",
    "log_sum_of_others",
    "multisample_signal",
]

BASELINES = ("geometric", "arithmetic")


@checked
def multisample_signal(
    log_weights: Float[Array, "K *batch"], baseline: str = "geometric"
) -> Float[Array, "K *batch"]:
    """What the bound ``log (1/K) Σ w`` owes to each particle, in nats (Mnih & Rezende [1]).

    Args:
        log_weights: Log weights of K >= 2 particles; -inf gives a particle no weight.
        baseline: What stands in for a particle's weight: the "geometric" or the "arithmetic"
            mean of the others'.

    Returns:
        The bound less the bound without the particle; no gradient. +inf for a particle that
        alone has weight, NaN where none has.

    Raises:
        ValueError: If `baseline` is another word, or K < 2.

    Example:
        >>> multisample_signal(jnp.array([0.0, 2.0]))
        Array([-0.5662191,  1.4337809], dtype=float32)
    """
    if baseline not in BASELINES:
        raise ValueError(f"`baseline` must be one of {BASELINES}; got {baseline!r}.")
    log_weights = jax.lax.stop_gradient(log_weights)
    others = log_sum_of_others(log_weights)
    if baseline == "arithmetic":
        stand_in = others - math.log(log_weights.shape[0] - 1)
    else:
        stand_in = _mean_of_others(log_weights)
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.logaddexp(others, stand_in)


def log_sum_of_others(log_values: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
    """``log Σ_{j≠k} exp l_j`` for each k, at the cost of two sums.

    The others of the largest are summed by themselves; for any other k the largest stays in
    the sum, so that taking ``exp l_k`` from it cancels nothing.
    """
    num_particles = log_values.shape[0]
    if num_particles < 2:
        raise ValueError(
            f"Each particle needs another one: K >= 2 on axis 0; got {log_values.shape}."
        )
    top, first = jnp.max(log_values, axis=0), jnp.argmax(log_values, axis=0)
    is_top = jnp.arange(num_particles).reshape(-1, *[1] * first.ndim) == first
    of_top = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, log_values), axis=0)
    scaled = jnp.exp(log_values - jnp.where(jnp.isneginf(top), 0.0, top))
    rest = jnp.where(is_top, 1.0, jnp.sum(scaled, axis=0) - scaled)
    return jnp.where(is_top, of_top, top + jnp.log(rest))


def _mean_of_others(log_values: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
    """Mean of the other entries; -inf if one of them is."""
    lost = jnp.isneginf(log_values)
    finite = jnp.where(lost, 0.0, log_values)
    means = (jnp.sum(finite, axis=0) - finite) / (log_values.shape[0] - 1)
    return jnp.where(jnp.sum(lost, axis=0) > lost, -jnp.inf, means)


def antithetic_draw(
    probs: Float[Array, "*#shape"], uniforms: Float[Array, "*#shape"], mirrored: bool | Array
) -> Bool[Array, "*shape"]:
    """One half of a pair of Bernoulli draws: from u in [0, 1), or from 1 - u if `mirrored`.

    A probability of 0 never gives a 1, and one of 1 never a 0, at any u.
    """
    return jnp.where(mirrored, uniforms >= 1.0 - probs, uniforms < probs)


def antithetic_factor(probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``max(p, 1 - p)``, what a logit's share of the score is multiplied by; no gradient.

    Example:
        >>> antithetic_factor(jnp.array([0.2, 0.5, 0.9]))
        Array([0.8, 0.5, 0.9], dtype=float32)
    """
    probs = jax.lax.stop_gradient(probs)
    return jnp.maximum(probs, 1.0 - probs)


def antithetic_advantages(scores: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
    """Each score less its partner's, which is K/2 places further; no gradient."""
    scores = jax.lax.stop_gradient(scores)
    return scores - jnp.roll(scores, scores.shape[0] // 2, axis=0)
