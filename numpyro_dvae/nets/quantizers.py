"""What guides and decoders ask of a codebook, be it one table, a rule without a table, or several.

A quantiser turns vectors ``(*batch, L, D)`` into codes ``(*batch, n)`` and these into vectors
``(*batch, n, d)``. A single one has n = L and d = D. One that is put together of several
(`nets.stacks`) has a block of latents for each, and `join` makes the decoder's vectors of them.

A model calls it with its codes. What these are is told by what they are, not by their size:

- codes ``(*batch, n)`` are integers;
- relaxed codes ``(*batch, n, V)``, real vectors over the codes, are mixed: ``z @ table``;
- vectors ``(*batch, n, d)`` are what a program gets in place of its codes while `infer.VQ_ELBO`
  runs it, and nothing else is.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Shaped

from numpyro_dvae.nets.inputs import check_codes, codes_or_beyond
from numpyro_dvae.nets.registration import gets_vectors, given_numbers
from numpyro_dvae.ops.assignments import assignment_logits, mean_entropy, own_entropies
from numpyro_dvae.ops.refusing import refuse_gradient

__all__ = ["Quantized", "Quantizer"]

_NOT_LEARNT = (
    "The table of a Codebook with `decay` follows the vectors that VectorQuantizedGuide hands it "
    "under VQ_ELBO; this loss trains the model on codes, and the table would never move. Use "
    "decay=None, a parameter that any loss trains, or codebook.eval() to keep the table as it is."
)


class Quantized(NamedTuple):
    """Vectors before and after quantisation, ``(*batch, D)``, and their codes ``(*batch,)``."""

    inputs: Float[Array, "*batch D"]  # they take the gradient of the loss
    codes: Integer[Array, "*batch"]
    vectors: Float[Array, "*batch D"]  # of the codes; their gradient goes to the codebook


class Quantizer:
    """A codebook; one of one's own defines `quantize` and `rows`."""

    num_codes: int  # V
    embed_dim: int  # D, of the inputs
    num_blocks: int = 1  # n / L
    by_scale: bool = False  # whether its latents are of several scales
    by_rule: bool = False  # whether inputs are rounded, rather than codes looked up in a table
    training: bool = True  # whether state follows what is quantised
    holder: tuple[Any, int] | None = None  # the codebook of several that it is a part of, and where

    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch n d"]:
        """The vectors of codes, or of what stands for them.

        Raises:
            ValueError: If integers are no codes; if real numbers are neither relaxed codes nor the
                vectors of `VQ_ELBO`; when a loss wants the gradient of codes whose table follows
                moving averages.
        """
        is_real = jnp.issubdtype(z.dtype, jnp.floating)
        if is_real and gets_vectors():
            return z
        if is_real:
            check_relaxed(z.shape, self.num_codes)
        check_codes(z, self.num_codes, "z")
        vectors = self.mix(z) if is_real else self.look_up(z)
        if getattr(self, "decay", None) is None or not self.training:
            return vectors
        return refuse_gradient(vectors, given_numbers(vectors.dtype), _NOT_LEARNT)

    def look_up(self, codes: Shaped[Array, "*batch n"]) -> Float[Array, "*batch n d"]:
        """The rows of codes."""
        rows = self.rows()
        return rows.at[codes_or_beyond(codes, len(rows))].get(mode="fill", fill_value=jnp.nan)

    def train(self, mode: bool = True) -> "Quantizer":
        """Let state follow where programs run from now on, as it does at first."""
        self.training = mode
        return self

    def eval(self) -> "Quantizer":
        """Freeze the state where programs run from now on; compiled ones stay as they are."""
        return self.train(False)

    @abstractmethod
    def rows(self) -> Float[Array, "V D"]:
        """The vectors of all codes, with a gradient to what they are made of."""

    @abstractmethod
    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The codes of vectors.

        Args:
            inputs: The vectors.
            learn: Whether state follows them, as moving averages do.
            mask: Which of them it follows; None is all.
        """

    @property
    def code_dim(self) -> int:
        """Width of the vector of one code, d."""
        return self.embed_dim

    def mix(self, weights: Float[Array, "*batch n V"]) -> Float[Array, "*batch n d"]:
        """The vectors of relaxed codes: means of all rows, so weighed."""
        return weights @ self.rows()

    def logits(
        self, inputs: Float[Array, "*batch n d"], scale: float | Float[Array, ""]
    ) -> Float[Array, "*batch n V"]:
        """``-|z - e_k|² / 2 s²`` of each code, see `ops.assignments`."""
        return assignment_logits(inputs, self.rows(), scale)

    def entropies(
        self,
        inputs: Float[Array, "*batch n d"],
        scale: float | Float[Array, ""],
        mask: Bool[Array, "*#batch #n"] | None = None,
    ) -> Float[Array, "*batch n"]:
        """The entropy of each latent's code, less that of the mean code of its table, in nats.

        The mean is over the inputs of a mask, see `ops.assignments`.
        """
        logits = self.logits(inputs, scale)
        return own_entropies(logits) - mean_entropy(logits, mask)

    def join(self, vectors: Float[Array, "*batch n d"]) -> Float[Array, "*batch L D"]:
        """What a decoder makes of vectors."""
        return vectors

    def blocks(self, values: Shaped[Array, "*batch n"]) -> list[Array]:
        """Numbers of latents ``(*batch, n)``, apart by the table that they are of."""
        return [values]


def check_relaxed(shape: Sequence[int], num_codes: int) -> None:
    """Whether real numbers of a shape are relaxed codes.

    Raises:
        ValueError: If not.
    """
    if len(shape) < 2 or shape[-1] != num_codes:
        raise ValueError(
            f"`z` must be integers (*batch, L), or relaxed codes (*batch, L, {num_codes}); "
            f"got real numbers of shape {tuple(shape)}. Vectors go to the network itself."
        )
