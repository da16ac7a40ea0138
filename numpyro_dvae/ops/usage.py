"""How many of its codes a batch uses, without an array over all of them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

__all__ = ["codes_in_use"]


def codes_in_use(
    codes: Integer[Array, "*shape"], mask: Bool[Array, "*#shape"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The number of codes that occur, and their perplexity.

    That is how many equally frequent codes would have the entropy of theirs, all latents together.

    Args:
        codes: Of all data and latents that share a table.
        mask: Which of them count; None is all.
    """
    flat = codes.reshape(-1).astype(int)
    if mask is not None:
        flat = jnp.where(jnp.broadcast_to(mask, codes.shape).reshape(-1), flat, -1)
    row = jnp.sort(flat)
    counts = jnp.searchsorted(row, row, side="right") - jnp.searchsorted(row, row)
    weights = (row >= 0).astype(float)
    total = jnp.maximum(weights.sum(), 1)
    return (weights / counts).sum(), total / jnp.exp((weights * jnp.log(counts)).sum() / total)
