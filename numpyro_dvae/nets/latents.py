"""What the decoders with a table of their own are called with: codes, or what stands for them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from numpyro_dvae.nets.inputs import check_codes
from numpyro_dvae.nets.registration import gets_vectors

__all__ = ["latents_batch"]


def latents_batch(
    z: Shaped[Array, "*batch_latents"], num_latents: int, num_codes: int | None, instead: str
) -> Sequence[int]:
    """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

    Integers are codes; real numbers are relaxed codes where their shape is that of such.

    Args:
        z: What a decoder is called with.
        num_latents: Latents per datum, L.
        num_codes: Values of a latent, V; None where real numbers are decoded as they are.
        instead: The decoder to use with a codebook, for the error.

    Raises:
        ValueError: If `z` does not hold L latents, holds integers that are no codes, or vectors of
            another's table.
    """
    if num_codes is not None and gets_vectors():
        raise ValueError(
            f"{instead.partition('(')[0]} has a table of its own, but the guide hands it vectors "
            f"of another. Use CodebookDecoder(codebook, {instead})."
        )
    is_real = jnp.issubdtype(z.dtype, jnp.floating)
    if is_real and z.shape[-2:] == (num_latents, num_codes):
        return z.shape[:-2]
    if z.shape[-1:] != (num_latents,):
        raise ValueError(f"`z` must end in {num_latents} latents; got shape {z.shape}.")
    check_codes(z, num_codes, "z")
    return z.shape[:-1]
