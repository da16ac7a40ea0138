"""A decoder of codes by a codebook: it looks up their vectors, or is handed them.

What a decoder is called with goes through the codebook, which tells codes, relaxed codes and
vectors apart (`nets.quantizers`).
"""

import math
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.grids import check_grid, to_grid
from pyro_dvae.nets.quantizers import Quantizer
from pyro_dvae.ops.arguments import checked

__all__ = ["CodebookDecoder"]


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
        self.grid = check_grid(grid, channels_first, network, at_end=False)
        self.channels_first = channels_first

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Outputs for codes ``(*batch, L)`` or ``(*batch, *grid)``, or for what stands for them."""
        batch = tuple(self.batch_shape(z))
        vectors = self.codebook(z.reshape(*batch, -1) if self._on_grid(z) else z)
        vectors = self.codebook.join(vectors)
        return self._outputs(vectors, batch)

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
        if z.is_floating_point():
            return z.shape[: z.dim() - 2]
        return z.shape[: z.dim() - (len(self.grid or ()) if self._on_grid(z) else 1)]

    def _on_grid(self, z: Tensor) -> bool:
        """Whether codes are given on the grid, rather than in a row."""
        if self.grid is None or z.is_floating_point():
            return False
        in_a_row = z.shape[-1:] == (math.prod(self.grid),)
        return not in_a_row and tuple(z.shape[-len(self.grid) :]) == self.grid


def folded(vectors: Shaped[Tensor, "..."], num_dims: int) -> Shaped[Tensor, "N ..."]:
    """The first dims as one."""
    shape = vectors.shape
    return vectors.reshape(math.prod(shape[:num_dims]), *shape[num_dims:])
