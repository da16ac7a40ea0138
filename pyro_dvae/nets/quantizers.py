"""What guides and decoders ask of a codebook, be it one table, a rule without a table, or several.

A quantiser turns vectors ``(*batch, L, D)`` into codes ``(*batch, n)`` and these into vectors
``(*batch, n, d)``. A single one has n = L and d = D. One that is put together of several
(`nets.stacks`) has a block of latents for each, and `join` makes the decoder's vectors of them.
"""

from abc import abstractmethod
from typing import NamedTuple

from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.assignments import assignment_logits

__all__ = ["Quantized", "Quantizer"]


class Quantized(NamedTuple):
    """Vectors before and after quantisation, ``(*batch, D)``, and their codes ``(*batch,)``."""

    inputs: Float[Tensor, "*batch D"]  # they take the gradient of the loss
    codes: Integer[Tensor, "*batch"]
    vectors: Float[Tensor, "*batch D"]  # of the codes; their gradient goes to the codebook


@checked
class Quantizer(nn.Module):
    """A codebook; one of one's own defines `quantize` and `rows`."""

    num_codes: int  # V
    embed_dim: int  # D, of the inputs
    num_blocks: int = 1  # n / L
    by_scale: bool = False  # whether its latents are of several scales
    by_rule: bool = False  # whether inputs are rounded, rather than codes looked up in a table

    def forward(self, codes: Shaped[Tensor, "*batch n"]) -> Float[Tensor, "*batch n d"]:
        """The vectors of codes."""
        return nn.functional.embedding(codes.long(), self.rows())

    @abstractmethod
    def rows(self) -> Float[Tensor, "V D"]:
        """The vectors of all codes, with a gradient to what they are made of."""

    @abstractmethod
    def quantize(
        self,
        inputs: Float[Tensor, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
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

    def mix(self, weights: Float[Tensor, "*batch n V"]) -> Float[Tensor, "*batch n d"]:
        """The vectors of relaxed codes: means of all rows, so weighed."""
        rows = self.rows()
        return weights.to(rows.dtype) @ rows

    def logits(
        self, inputs: Float[Tensor, "*batch n d"], scale: float | Float[Tensor, ""]
    ) -> Float[Tensor, "*batch n V"]:
        """``-|z - e_k|² / 2 s²`` of each code, see `ops.assignments`."""
        return assignment_logits(inputs, self.rows(), scale)

    def join(self, vectors: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch L D"]:
        """What a decoder makes of vectors."""
        return vectors

    def blocks(self, values: Shaped[Tensor, "*batch n"]) -> list[Tensor]:
        """Numbers of latents ``(*batch, n)``, apart by the table that they are of."""
        return [values]
