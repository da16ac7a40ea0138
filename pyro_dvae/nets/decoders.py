"""A decoder of codes by a codebook: it looks up their vectors, or is handed them.

What a decoder is called with is told by what it is, not by its size or type:

- codes ``(*batch, L)`` are integers;
- relaxed codes ``(*batch, L, V)``, real vectors over the codes, are mixed: ``z @ table``;
- vectors ``(*batch, L, D)`` are what a program gets in place of its codes while `infer.VQ_ELBO`
  runs it, and nothing else is.
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.grids import check_grid, to_grid
from pyro_dvae.nets.quantizers import Quantizer
from pyro_dvae.nets.registration import gets_vectors
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.refusing import refuse_gradient

__all__ = ["CodebookDecoder"]

_NOT_LEARNT = (
    "The table of a Codebook with `decay` follows the vectors that VectorQuantizedGuide hands it "
    "under VQ_ELBO; this loss trains the model on codes, and the table would never move. Use "
    "decay=None, a parameter that any loss trains, or codebook.eval() to keep the table as it is."
)


class CodebookDecoder(nn.Module):
    """A decoder of codes: it puts their vectors through a network.

    Without a grid the network gets the vectors of a datum side by side, ``(*batch, L * D)``. On a
    grid it gets ``(N, *grid, D)``, or ``(N, D, *grid)`` with `channels_first`, and particles and
    all other batch dims are folded into N.

    Args:
        codebook: `Codebook` or any other quantiser, the one that the guide has.
        network: From vectors to outputs: as `MLPDecoder` with L * D latents and `num_codes` None,
            or on a grid as a convolution.
        grid: Sizes of the grid that the L latents lie on, line by line, as (8, 8).
        channels_first: Whether the network has the width of vectors before the grid.

    Raises:
        ValueError: If the grid is none, or another than that of the codes.
    """

    @checked
    def __init__(
        self,
        codebook: Quantizer,
        network: nn.Module,
        *,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.codebook, self.network = codebook, network
        self.grid, self.channels_first = check_grid(grid, channels_first), channels_first

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Outputs for codes ``(*batch, L)`` or ``(*batch, *grid)``, or for what stands for them."""
        batch = tuple(self.batch_shape(z))
        vectors = self._vectors(z.reshape(*batch, -1) if self._on_grid(z) else z)
        vectors = self.codebook.join(vectors)
        outputs = self._outputs(vectors, batch)
        if gets_vectors() or not _follows(self.codebook):
            return outputs
        return refuse_gradient(outputs, outputs, _NOT_LEARNT)

    def _outputs(self, vectors: Tensor, batch: tuple[int, ...]) -> Tensor:
        """What the network makes of vectors, in a row or on the grid."""
        if self.grid is None:
            vectors = vectors.reshape(*batch, -1)
            return self.network(vectors)
        vectors = folded(to_grid(vectors, self.grid, self.channels_first), len(batch))
        outputs = self.network(vectors)
        return outputs.reshape(*batch, *outputs.shape[1:])

    def batch_shape(self, z: Shaped[Tensor, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes, relaxed codes or vectors."""
        if gets_vectors() or z.is_floating_point():
            return z.shape[: z.dim() - 2]
        return z.shape[: z.dim() - (len(self.grid or ()) if self._on_grid(z) else 1)]

    def _on_grid(self, z: Tensor) -> bool:
        """Whether codes are given on the grid, rather than in a row."""
        if self.grid is None or gets_vectors() or z.is_floating_point():
            return False
        in_a_row = z.shape[-1:] == (math.prod(self.grid),)
        return not in_a_row and tuple(z.shape[-len(self.grid) :]) == self.grid

    def _vectors(self, z: Tensor) -> Tensor:
        """The vectors ``(*batch, L, D)`` of codes, or of what stands for them."""
        if gets_vectors():
            return z
        if not z.is_floating_point():
            return self.codebook(z)
        num_codes = self.codebook.num_codes
        if z.shape[-1] != num_codes or z.dim() < 2:
            raise ValueError(
                f"`z` must be integers (*batch, L), or relaxed codes (*batch, L, {num_codes}); "
                f"got real numbers of shape {tuple(z.shape)}. Vectors go to `network` itself."
            )
        return self.codebook.mix(z)


def folded(vectors: Shaped[Tensor, "..."], num_dims: int) -> Shaped[Tensor, "N ..."]:
    """The first dims as one."""
    shape = vectors.shape
    return vectors.reshape(math.prod(shape[:num_dims]), *shape[num_dims:])


def _follows(codebook: Any) -> bool:
    """Whether the table of a codebook is moving averages, which no gradient trains."""
    return getattr(codebook, "decay", None) is not None and codebook.training
