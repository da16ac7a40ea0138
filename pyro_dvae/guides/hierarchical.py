"""A guide that quantises at several scales, each given those that are coarser (VQ-VAE-2 [1]).

References:
    [1] Razavi, van den Oord & Vinyals. Generating diverse high-fidelity images with VQ-VAE-2.
        NeurIPS, 2019.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.guides.quantised import Gradient, VectorQuantizedGuide
from pyro_dvae.nets.grids import from_grid, to_grid
from pyro_dvae.nets.hierarchical import HierarchicalCodebook, check_grids
from pyro_dvae.nets.inputs import check_width
from pyro_dvae.nets.registration import mask_of_latents
from pyro_dvae.nets.stacks import stacked
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.codepaths import Route

__all__ = ["HierarchicalGuide"]


class HierarchicalGuide(VectorQuantizedGuide):
    """The codes of all scales, one site of them: those of the coarsest come first.

    Args:
        encoders: A network for each scale. The first is called with the data, ``(*batch, *event)``,
            each next one with the data and the vectors of all scales before; they return
            vectors ``(*batch, L_k, D)``, or on the grid of their scale.
        codebook: `HierarchicalCodebook`; the model's decoder holds the same one, as
            `HierarchicalDecoder`.
        gradient: See `VectorQuantizedGuide`.
        noise_variance: See `VectorQuantizedGuide`.
        entropy: See `VectorQuantizedGuide`.
        entropy_scale: See `VectorQuantizedGuide`.
        grids: Sizes of the grid of each scale, as ((4, 4), (8, 8)), on which encoders return
            vectors and are given them; None is in a row.
        channels_first: Whether the width of vectors is before the grid.

    Raises:
        ValueError: If there is not one encoder, and one grid, for each scale.
    """

    @checked
    def __init__(
        self,
        encoders: Sequence[nn.Module],
        codebook: HierarchicalCodebook,
        *,
        gradient: Gradient | None = None,
        noise_variance: float = 0.005,
        entropy: float = 0.0,
        entropy_scale: float = 0.07,
        grids: Sequence[Sequence[int]] | None = None,
        channels_first: bool = False,
    ) -> None:
        self.grids = check_grids(grids, codebook.sizes, channels_first)
        is_list = isinstance(encoders, Sequence | nn.ModuleList)
        if not is_list or len(encoders) != len(codebook.sizes):
            raise ValueError(
                f"`encoders` must be one for each of {len(codebook.sizes)} scales; got "
                f"{len(encoders) if is_list else type(encoders).__name__}."
            )
        super().__init__(
            nn.ModuleList(encoders),
            codebook,
            gradient=gradient,
            noise_variance=noise_variance,
            entropy=entropy,
            entropy_scale=entropy_scale,
        )
        self.channels_first = channels_first

    def quantized(self, x: Tensor, *, learn: bool) -> Distribution:
        """What `posterior` returns; if `learn`, the state of the codebook advances."""
        stack: Any = self.codebook
        mask, above, parts, routes = mask_of_latents(), list[Any](), list[Any](), list[Any]()
        scales = zip(cast("Any", self.encoder), stack.codebooks, self.grids, strict=True)
        for encoder, codebook, grid in scales:
            inputs = encoder(x, *above)
            inputs = from_grid(inputs, grid, self.channels_first, "encoder")
            check_width(inputs, codebook.embed_dim, "encoder")
            parts.append(codebook.quantize(inputs, learn=learn, mask=mask))
            routes.append(self._route(parts[-1], learn))
            vectors = codebook.join(routes[-1].path)
            above.append(vectors if grid is None else to_grid(vectors, grid, self.channels_first))
        route = Route(*(torch.cat(arrays, -2) for arrays in zip(*routes, strict=True)))
        return self.publish(stacked(parts), route, mask)
