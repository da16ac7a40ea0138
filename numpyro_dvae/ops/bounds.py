"""Bounds on the log evidence, and entropies and KL divergences in closed form.

With K particles z_k from a guide q, ``log w_k = log p(x, z_k) - log q(z_k)``: the mean of
log w estimates the ELBO, the log of the mean of w the tighter importance-weighted bound
(IWAE) [1]. Entropies and KLs come from logits and are exact where a probability is 0
(0 · log 0 = 0), with the true gradients there, so a saturated network trains on.

Shapes: particles lead, as in ``(K, *batch)``; the codes of a categorical come last; a
Bernoulli's functions work elementwise. All values are in nats, of which a bit is `NATS_PER_BIT`.

References:
    [1] Burda, Grosse & Salakhutdinov. Importance weighted autoencoders. ICLR, 2016.
"""

import math

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

__all__ = [
    "NATS_PER_BIT",
    "bernoulli_entropy",
    "bernoulli_kl",
    "categorical_entropy",
    "categorical_kl",
    "importance_weighted_bound",
]

NATS_PER_BIT = math.log(2)  # a number of bits times this is one of nats


def importance_weighted_bound(
    log_weights: Float[Array, "K *batch"],
) -> Float[Array, "*batch"]:
    """Log of the mean weight of K particles; in expectation between the ELBO and log p(x).

    Example:
        >>> importance_weighted_bound(jnp.array([1.0, 1.0, 1.0]))
        Array(1., dtype=float32)
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def categorical_entropy(logits: Float[Array, "*batch codes"]) -> Float[Array, "*batch"]:
    """Entropy of categoricals, in [0, log codes]; a logit of -inf is a code of no mass.

    Example:
        >>> categorical_entropy(jnp.array([0.0, 0.0, -jnp.inf]))
        Array(0.6931472, dtype=float32)
    """
    return jnp.sum(_entropy_terms(jax.nn.log_softmax(logits)), axis=-1)


def bernoulli_entropy(logits: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Entropy of Bernoullis, in [0, log 2]; 0 at logits of ±inf."""
    return _entropy_terms(log_sigmoid(logits)) + _entropy_terms(log_sigmoid(-logits))


def categorical_kl(
    q_logits: Float[Array, "*batch codes"], p_logits: Float[Array, "*#batch codes"]
) -> Float[Array, "*batch"]:
    """KL(q ‖ p) of categoricals; +inf where q has mass and p has none."""
    log_q, log_p = jax.nn.log_softmax(q_logits), jax.nn.log_softmax(p_logits)
    return jnp.sum(_kl_terms(log_q, log_p), axis=-1)


def bernoulli_kl(
    q_logits: Float[Array, "*batch"], p_logits: Float[Array, "*#batch"]
) -> Float[Array, "*batch"]:
    """KL(q ‖ p) of Bernoullis; +inf where q has mass and p has none.

    Example:
        >>> bernoulli_kl(jnp.array([1.0]), jnp.array([0.0]))
        Array([0.11094406], dtype=float32)
    """
    ones = _kl_terms(log_sigmoid(q_logits), log_sigmoid(p_logits))
    return ones + _kl_terms(log_sigmoid(-q_logits), log_sigmoid(-p_logits))


def _entropy_terms(log_probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-p log p, 0 where p = 0, and with a gradient of 0 there to log p."""
    return -jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0.0, log_probs)


def _kl_terms(
    log_q: Float[Array, "*shape"], log_p: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """Terms q (log q - log p), 0 where q = 0 even if p = 0, +inf where p alone is 0."""
    ratios = jnp.where(jnp.isneginf(log_q), 0.0, log_q - log_p)
    # exp(log_q) may underflow to 0, and 0 · inf would be NaN.
    return jnp.where(jnp.isposinf(ratios), ratios, jnp.exp(log_q) * ratios)
