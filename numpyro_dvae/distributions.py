"""Draws of codes at the price of one uniform each, and their log-probabilities.

`jax.random.categorical` draws a Gumbel for every code of every latent of every particle. The
inverse of the cumulative distribution needs one uniform per latent, and its table is shared by
all particles. Shapes: particles lead, ``(K, *batch)``; logits are ``(*batch, V)`` with V codes.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["log_prob_of_codes", "sample_codes"]


def log_prob_of_codes(
    logits: Float[Array, "*batch V"], codes: Int[Array, "*sample_batch"]
) -> Float[Array, "*sample_batch"]:
    """Log-probabilities of codes of shape ``(*sample, *batch)`` under logits ``(*batch, V)``.

    Forward and backward each cost one pass over `logits`, not one per particle.
    """
    batch = logits.shape[:-1]
    if codes.shape[codes.ndim - len(batch) :] != batch:
        raise ValueError(
            f"`codes` must end in the batch shape of `logits`, {batch}; got {codes.shape}. Put "
            "particles on the left."
        )
    index = jnp.moveaxis(codes.reshape(-1, *batch), 0, -1)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)
    return jnp.moveaxis(picked, -1, 0).reshape(codes.shape)


def sample_codes(
    logits: Float[Array, "*batch V"], uniforms: Float[Array, "K *batch"]
) -> Int[Array, "K *batch"]:
    """Turn one uniform in [0, 1) per code into draws from ``softmax(logits)``.

    Inverts the cumulative distribution in two levels, blocks of codes and codes of a block, so K
    draws cost one pass over `logits` and some sqrt(V) each. A code of zero probability is never
    drawn. NaN logits give code 0; their log-probability is NaN and shows.
    """
    logits = jax.lax.stop_gradient(logits)
    mass = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    width = math.isqrt(logits.shape[-1] - 1) + 1
    mass = jnp.pad(mass, [(0, 0)] * (mass.ndim - 1) + [(0, -mass.shape[-1] % width)])
    blocks = mass.reshape(*mass.shape[:-1], -1, width)
    totals = jnp.sum(blocks, axis=-1)

    def draw(uniform: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
        block, rest = _first_above(totals, uniform * jnp.sum(totals, axis=-1))
        row = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
        return block * width + _first_above(row, rest)[0]

    return jax.vmap(draw)(uniforms.astype(mass.dtype))


def _first_above(
    mass: Float[Array, "*batch n"], target: Float[Array, "*batch"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """First entry of positive mass whose cumulative mass exceeds the target, and what is left."""
    upper = jnp.triu(jnp.ones((mass.shape[-1],) * 2, mass.dtype))
    cumulative = jnp.matmul(mass, upper, precision="highest")
    # Rounding may leave the sums a little out of order, so the top is sought, not assumed last.
    top = jnp.max(jnp.where(mass > 0, cumulative, 0), axis=-1)
    target = jnp.minimum(target, jnp.nextafter(top, jnp.zeros_like(top)))
    index = jnp.argmax((mass > 0) & (cumulative > target[..., None]), axis=-1)
    before = jnp.take_along_axis(cumulative - mass, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(target - before, 0)
