"""Codes at several scales: a codebook for each, and a decoder of all (VQ-VAE-2 [1]).

References:
    [1] Razavi, van den Oord & Vinyals. Generating diverse high-fidelity images with VQ-VAE-2.
        NeurIPS, 2019.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_dvae.nets.decoders import CodebookDecoder, folded
from pyro_dvae.nets.grids import are_sizes, check_grid, to_grid
from pyro_dvae.nets.quantizers import Quantized, Quantizer
from pyro_dvae.nets.stacks import Stack, check_parts, stacked
from pyro_dvae.ops.arguments import checked

__all__ = ["HierarchicalCodebook", "HierarchicalDecoder"]


class HierarchicalCodebook(Stack):
    """Codebooks at several scales, of which the first has the fewest latents [3].

    `guides.HierarchicalGuide` quantises one scale after the other. The decoder gets the vectors of
    all latents in a row, coarse ones first.

    Args:
        codebooks: Two or more, of the same width and number of codes.
        sizes: Latents of each, for instance (16, 64) for grids of 4 x 4 and 8 x 8.

    Raises:
        ValueError: If the codebooks differ, or there is not one size for each.
    """

    by_scale = True

    def __init__(self, codebooks: Sequence[Quantizer], sizes: Sequence[int]) -> None:
        check_parts(codebooks)
        if not are_sizes(sizes) or len(sizes) != len(codebooks):
            raise ValueError(
                f"`sizes` must be one positive number of latents for each of {len(codebooks)} "
                f"codebooks, as (16, 64) for grids of 4 x 4 and 8 x 8; got {sizes}."
            )
        super().__init__(codebooks, codebooks[0].embed_dim)
        self.sizes = tuple(sizes)

    def quantize(
        self,
        inputs: Float[Tensor, "*batch n D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
    ) -> Quantized:
        """All scales at once, where none depends on another."""
        parts = zip(self.codebooks, self._split(inputs, -2), strict=True)
        return stacked([part.quantize(block, learn=learn, mask=mask) for part, block in parts])

    def _joined(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, -2)

    def _sizes(self, num_latents: int) -> list[int]:
        parts = zip(self.sizes, self.codebooks, strict=True)
        sizes = [size * codebook.num_blocks for size, codebook in parts]
        if num_latents != sum(sizes):
            raise ValueError(
                f"HierarchicalCodebook has {sizes} latents of its scales; got {num_latents} in all."
            )
        return sizes


class HierarchicalDecoder(CodebookDecoder):
    """A decoder of codes at several scales: its network is called with the vectors of each.

    Args:
        codebook: `HierarchicalCodebook`, the one that the guide has.
        network: From vectors ``(*batch, L_k, D)`` of each scale, coarse ones first, to outputs; on
            grids from ``(N, *grid, D)`` of each, with all batch dims folded into N.
        grids: Sizes of the grid of each scale, as ((4, 4), (8, 8)); None is in a row.
        channels_first: Whether the network has the width of vectors before the grid.

    Raises:
        ValueError: If there is not one grid for each scale, of as many places as it has latents.
    """

    @checked
    def __init__(
        self,
        codebook: HierarchicalCodebook,
        network: nn.Module,
        *,
        grids: Sequence[Sequence[int]] | None = None,
        channels_first: bool = False,
    ) -> None:
        self.grids = check_grids(grids, codebook.sizes, channels_first)
        super().__init__(codebook, network)
        self.channels_first, self.sizes = channels_first, codebook.sizes

    def _outputs(self, vectors: Tensor, batch: tuple[int, ...]) -> Tensor:
        sizes = self.sizes
        ends = [sum(sizes[:place]) for place in range(len(self.grids) + 1)]
        scales = [vectors[..., low:high, :] for low, high in pairwise(ends)]
        grids = [grid for grid in self.grids if grid is not None]
        if not grids:
            return self.network(*scales)
        parts = zip(scales, grids, strict=True)
        scales = [to_grid(scale, grid, self.channels_first) for scale, grid in parts]
        scales = [folded(scale, len(batch)) for scale in scales]
        outputs = self.network(*scales)
        return outputs.reshape(*batch, *outputs.shape[1:])


def check_grids(
    grids: Sequence[Sequence[int]] | None, sizes: Sequence[int], channels_first: bool
) -> tuple[tuple[int, ...] | None, ...]:
    """The grid of each scale.

    Raises:
        ValueError: If there is not one for each, of as many places as it has latents.
    """
    if grids is None:
        check_grid(None, channels_first)
        return (None,) * len(sizes)
    if isinstance(grids, Sequence) and all(grid is None or are_sizes(grid) for grid in grids):
        found = tuple(check_grid(grid, channels_first) for grid in grids)
        if tuple(math.prod(grid or ()) for grid in found) == tuple(sizes):
            return found
    raise ValueError(
        f"`grids` must be one for each scale, of {tuple(sizes)} places, as ((4, 4), (8, 8)) is of "
        f"(16, 64); got {grids}."
    )
