"""Soft assignments of vectors to the codes of a table, and whether they are sure and varied.

An encoder's vector z chooses code k with probability

    q(k | z) ∝ exp(-|z - e_k|² / 2 s²),

that of the codes' Gaussians of width s, all as likely [1]. As s falls the nearest code is chosen
with certainty. Two entropies in nats tell of such choices [2]: that of a single one, which falls as
inputs near their codes, and that of the mean of all, which rises as codes are used alike. Their
difference, ``E H[q] - γ H[E q]``, is a penalty that keeps codes in use.

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
from numpyro_dvae.ops.quantizing import squared_distances

__all__ = ["assignment_logits", "mean_entropy", "own_entropies"]


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
