"""Soft assignments of vectors to the codes of a table, and whether they are sure and varied.

An encoder's vector z chooses code k with probability

    q(k | z) ∝ exp(-|z - e_k|² / 2 s²),

that of the codes' Gaussians of width s, all as likely [1]. As s falls the nearest code is chosen
with certainty. Two entropies in nats tell of such choices [2]: that of a single one, which falls as
inputs near their codes, and that of the mean of all, which rises as codes are used alike. Their
difference, ``E H[q] - γ H[E q]``, is a penalty that keeps codes in use. Where a code is that of
independent bits, q is the product of theirs: H[q] is the sum of their entropies, and E q of all
codes is one product of matrices, of the codes that either half of the bits makes.

Shapes: vectors are ``(*batch, D)``, tables ``(V, D)``.

References:
    [1] Takida et al. SQ-VAE: variational Bayes on discrete representation with self-annealed
        stochastic quantization. ICML, 2022.
    [2] Yu et al. Language model beats diffusion: tokenizer is key to visual generation. ICLR, 2024.
        Equation 5.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_dvae.ops.bounds import categorical_entropy
from numpyro_dvae.ops.dtypes import precise
from numpyro_dvae.ops.quantizing import squared_distances

__all__ = ["assignment_logits", "mean_entropy", "mean_entropy_of_bits", "own_entropies"]


def assignment_logits(
    inputs: Float[Array, "*batch D"],
    table: Float[Array, "V width"],
    scale: float | Float[Array, ""],
) -> Float[Array, "*batch V"]:
    """``-|z - e_k|² / 2 s²`` for every code, up to which q(k | z) is normalised.

    Args:
        inputs: z.
        table: The vectors of the codes.
        scale: s, in the units of the vectors.
    """
    return squared_distances(inputs, table) / (-2.0 * scale**2)


def own_entropies(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """``H[q(k | z)]`` of each input, in nats."""
    return categorical_entropy(logits)


def mean_entropy(
    logits: Float[Array, "*batch V"], mask: Bool[Array, "*#batch"] | None = None
) -> Float[Array, ""]:
    """``H[mean of q(k | z)]`` over all inputs, or those of a mask, in nats; 0 of none."""
    log_probs = jax.nn.log_softmax(logits, -1).reshape(-1, logits.shape[-1])
    if mask is None:
        log_mean = jax.nn.logsumexp(log_probs, 0) - math.log(len(log_probs))
    else:
        kept = jnp.broadcast_to(mask, logits.shape[:-1]).reshape(-1)
        count = jnp.maximum(kept.sum(), 1).astype(log_probs.dtype)
        log_probs = jnp.where(kept[:, None], log_probs, -jnp.inf)
        log_mean = jax.nn.logsumexp(log_probs, 0) - jnp.log(count)
    mean = jnp.exp(log_mean)
    return -jnp.sum(mean * jnp.where(mean > 0, log_mean, 0.0))


def mean_entropy_of_bits(
    logits: Float[Array, "*batch D"], mask: Bool[Array, "*#batch"] | None = None
) -> Float[Array, ""]:
    """`mean_entropy` of codes of D independent bits, from the log-odds that each bit is 1."""
    flat = precise(logits).reshape(-1, logits.shape[-1])
    kept = jnp.ones_like(flat[:, 0])
    if mask is not None:
        kept = jnp.broadcast_to(mask, logits.shape[:-1]).reshape(-1).astype(kept.dtype)
        flat = jnp.where(kept[:, None] > 0, flat, 0.0)
    one, other = (_codes_of_bits(half) for half in jnp.array_split(flat, 2, -1))
    mean = (kept[:, None] * one).T @ other / jnp.maximum(kept.sum(), 1)
    return -jnp.sum(mean * jnp.log(jnp.where(mean == 0, 1.0, mean)))


def _codes_of_bits(logits: Float[Array, "N D"]) -> Float[Array, "N V"]:
    """The probability of every code."""
    probs = jnp.ones((len(logits), 1), logits.dtype)
    for bit in logits.T[..., None]:
        probs = jnp.concatenate([probs * jax.nn.sigmoid(-bit), probs * jax.nn.sigmoid(bit)], -1)
    return probs
