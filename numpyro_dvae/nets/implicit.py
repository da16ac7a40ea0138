"""Codebooks that are not a table to learn: signs of channels, and a linear map of fixed vectors.

References:
    [1] Yu et al. Language model beats diffusion: tokenizer is key to visual generation. ICLR, 2024.
    [2] Zhao, Xiong & Krähenbühl. Image and video tokenization with binary spherical quantization.
        ICLR, 2025.
    [3] Zhu et al. Addressing representation collapse in vector quantized models with one linear
        layer. ICCV, 2025.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from numpyro_dvae.nets.inputs import nan_beyond
from numpyro_dvae.nets.quantizers import Quantized, Quantizer
from numpyro_dvae.nets.registration import declare, own_name
from numpyro_dvae.ops.arguments import check_counts, checked
from numpyro_dvae.ops.assignments import mean_entropy_of_bits
from numpyro_dvae.ops.bounds import bernoulli_entropy
from numpyro_dvae.ops.quantizing import nearest_codes
from numpyro_dvae.ops.signs import on_sphere, quantize_signs, sign_vectors

__all__ = ["BinaryCodes", "LinearCodebook"]

_MOST_BITS = 30  # of a code that is an int32
_SEED = 0  # of the fixed vectors: the same in all processes and runs, so that none has to be stored


class BinaryCodes(Quantizer):
    """A codebook without parameters: the sign of each channel is a bit of the code [1].

    Such codes want a penalty of their entropies: `VectorQuantizedGuide(entropy=0.1)`.

    Args:
        num_bits: Channels, D; there are 2**D codes.
        spherical: Whether inputs and codes are on the unit sphere [2].
        scale: The channels are ``scale`` or ``-scale``; on a sphere, the radius is `scale`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    by_rule = True

    @checked
    def __init__(self, num_bits: int, *, spherical: bool = False, scale: float = 1.0) -> None:
        _check_bits(num_bits, scale, _MOST_BITS)
        self.num_codes, self.embed_dim = 2**num_bits, num_bits
        self.spherical, self.scale = spherical, scale

    @property
    def height(self) -> float:
        """What channels are, up to the sign."""
        return self.scale / math.sqrt(self.embed_dim) if self.spherical else self.scale

    def rows(self) -> Float[Array, "V D"]:
        """The vectors of all codes."""
        return self.look_up(jnp.arange(self.num_codes))

    def look_up(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes."""
        codes = codes.astype(int)
        vectors = sign_vectors(codes, self.embed_dim, self.height)
        return nan_beyond(vectors, codes, self.num_codes)

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The vectors of the signs of `inputs`, which commit to them; there is nothing to learn."""
        inputs = on_sphere(inputs) * self.scale if self.spherical else inputs
        vectors, codes = quantize_signs(inputs, self.height)
        return Quantized(inputs, codes, jax.lax.stop_gradient(vectors))

    def entropies(
        self,
        inputs: Float[Array, "*batch n D"],
        scale: float | Float[Array, ""],
        mask: Bool[Array, "*#batch #n"] | None = None,
    ) -> Float[Array, "*batch n"]:
        """The same as of a table, from the bits: no input has a number for each code."""
        log_odds = inputs * (2 * self.height / scale**2)
        return bernoulli_entropy(log_odds).sum(-1) - mean_entropy_of_bits(log_odds, mask)


class LinearCodebook(Quantizer):
    """A codebook ``C W`` of fixed Gaussian vectors C and a matrix W to learn (SimVQ [3]).

    A gradient to the vector of one code moves them all, so that none is left behind.

    Args:
        num_codes: Vectors, V, at least 2.
        embed_dim: Width of a vector, D.

    Raises:
        ValueError: If there are fewer than 2 codes.
    """

    @checked
    def __init__(self, num_codes: int, embed_dim: int) -> None:
        if num_codes < 2:
            raise ValueError(f"`num_codes` must be at least 2; got {num_codes}.")
        check_counts(embed_dim=embed_dim)
        self.num_codes, self.embed_dim = num_codes, embed_dim
        self.name: str | None = None

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes."""
        shape, bound = (self.embed_dim, self.embed_dim), 1 / math.sqrt(self.embed_dim)
        basis = declare(
            f"{own_name(self, 'codebook')}$basis",
            lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
        )
        fixed = jax.random.normal(jax.random.key(_SEED), (self.num_codes, self.embed_dim))
        return fixed * bound @ basis

    def rows(self) -> Float[Array, "V D"]:
        """The table."""
        return self.table

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The nearest codes of vectors; the matrix learns by gradient alone."""
        rows = self.table
        codes = nearest_codes(inputs, rows)
        return Quantized(inputs, codes, rows[codes])


def _check_bits(num_bits: int, scale: float, most: int) -> None:
    if not 1 <= num_bits <= most:
        raise ValueError(
            f"`num_bits` must be 1 to {most}, which an integer holds; got {num_bits}. Use several "
            "codebooks, grouped, for more."
        )
    if not 0.0 < scale < math.inf:
        raise ValueError(f"`scale` must be positive and finite; got {scale}.")
