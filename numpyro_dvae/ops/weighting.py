"""Weights of the particles of a policy search, and their control variate.

A policy search asks for the distribution that gains most of ``E_q[R] + β H(q)`` while
it stays near the guide q_θ. With η the price of a nat of KL(q ‖ q_θ) and T = η + β,

    q*(z) ∝ exp((R(z) + η log q_θ(z)) / T) = q_θ(z) exp((R(z) - β log q_θ(z)) / T),

one natural-gradient (mirror descent) step of size 1/T [1]. Particles drawn from q_θ represent
this target by self-normalised weights ``w_k ∝ exp(scores_k / T)``, where
``scores = R - β log q_θ``. A constant added to R changes neither.

Shapes: particles lead, as in ``(K, *batch)``;
rewards, scores, β and T are in nats.

References:
    [1] Discrete variational autoencoding via policy search. ICLR, 2026.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

__all__ = ["centered_weights", "count_copies", "fill_impossible", "policy_weights"]


def policy_weights(
    scores: Float[Array, "K *batch"], temperature: float | Float[Array, "*#batch"]
) -> Float[Array, "K *batch"]:
    """Weights ``∝ exp(scores / T)``, summing to 1 over axis 0 and carrying no gradient.

    The scores are measured from their top before the division, which keeps their last
    digits when T is small.

    Example:
        >>> policy_weights(jnp.array([0.0, 2.0]), 2.0)
        Array([0.26894143, 0.7310586 ], dtype=float32)
    """
    scores = jax.lax.stop_gradient(scores)
    return jax.nn.softmax((scores - jnp.max(scores, axis=0)) / temperature, axis=0)


def centered_weights(weights: Float[Array, "K *batch"]) -> Float[Array, "K *batch"]:
    """Weights less 1/K: the same expected gradient, since E[∇ log q] = 0, with less noise.

    Example:
        >>> centered_weights(jnp.array([0.25, 0.75]))
        Array([-0.25,  0.25], dtype=float32)
    """
    return weights - 1.0 / weights.shape[0]


def count_copies(codes: Shaped[Array, "K *batch D"]) -> Int[Array, "K *batch"]:
    """How many of the K particles hold the same D codes as this one, itself included.

    Example:
        >>> count_copies(jnp.array([[1, 0], [1, 1], [1, 0]]))
        Array([2, 1, 2], dtype=int32)
    """
    # One particle at a time: all pairs at once may need K times the memory of the codes.
    return jax.lax.map(lambda particle: jnp.sum(jnp.all(codes == particle, -1), 0), codes)


def fill_impossible(
    scores: Float[Array, "K *batch"], probs: Float[Array, "K *batch"] | None = None
) -> Float[Array, "K *batch"]:
    """Scores with the mean of the possible particles in place of -inf; 0 where none is possible.

    An estimator that compares scores then gets its gradient from the possible particles alone.

    Args:
        scores: Of each particle; those of -inf are replaced, without gradient.
        probs: Weights of the mean; all alike if left out.
    """
    possible = scores != -jnp.inf
    fixed = jax.lax.stop_gradient(scores)
    weights = possible.astype(scores.dtype)
    weights = weights if probs is None else weights * jax.lax.stop_gradient(probs)
    total = (weights * jnp.where(possible, fixed, 0.0)).sum(axis=0)
    mass = weights.sum(axis=0)
    mean = total / jnp.where(mass > 0, mass, 1.0)
    return jnp.where(possible, scores, mean)
