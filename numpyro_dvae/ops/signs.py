"""Quantise vectors by the signs of their channels: codebooks without a table to look up.

Each of C channels is rounded to +1 or -1 [1], so that there are 2^C codes. On the unit sphere [2]
a vector is first scaled to length 1 and its code lies on the sphere as well, at ±1 / √C: the error
is bounded then, and all codes are as far from the origin.

Shapes: codes are the trailing batch, vectors have one axis more. The first channel changes fastest,
as in `quantizing.levels_to_codes`.

References:
    [1] Yu et al. Language model beats diffusion: tokenizer is key to visual generation. ICLR, 2024.
    [2] Zhao, Xiong & Krähenbühl. Image and video tokenization with binary spherical quantization.
        ICLR, 2025.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.relaxing import with_slope

__all__ = ["on_sphere", "quantize_signs", "sign_vectors"]


def on_sphere(inputs: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """The direction of each vector, of length 1; 0 stays 0, with the gradient of 0."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(inputs), -1, keepdims=True))
    is_zero = largest == 0  # by their largest, squares neither over- nor underflow
    scaled = inputs / jnp.where(is_zero, 1.0, largest)
    squares = jnp.sum(scaled**2, -1, keepdims=True)
    return jnp.where(is_zero, 0.0, scaled / jnp.sqrt(jnp.where(is_zero, 1.0, squares)))


@checked
def quantize_signs(
    inputs: Float[Array, "*batch C"], scale: float = 1.0
) -> tuple[Float[Array, "*batch C"], Integer[Array, "*batch"]]:
    """Round each channel to ``scale`` or ``-scale``; 0 is rounded down.

    Returns:
        The vectors, with the gradient of the inputs, and their codes.
    """
    positive = inputs > 0
    vectors = jnp.where(positive, scale, -scale).astype(inputs.dtype)
    places = 2 ** jnp.arange(inputs.shape[-1])
    return with_slope(vectors, inputs), jnp.sum(positive * places, -1)


@checked
def sign_vectors(
    codes: Integer[Array, "*batch"], num_channels: int, scale: float = 1.0
) -> Float[Array, "*batch C"]:
    """The vectors of codes, of channels ``scale`` and ``-scale``."""
    places = 2 ** jnp.arange(num_channels)
    positive = codes[..., None] // places % 2 == 1
    return jnp.where(positive, scale, -scale).astype(float)
