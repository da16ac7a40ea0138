"""Codes drawn around an encoder's vectors: the stochastic quantiser of SQ-VAE [1], under any loss.

In place of the nearest code, code k of a latent has the logit ``-|z - b_k|² / 2 s²``, with z the
encoder's vector, b_k that of the code and s a scale that is learnt: while s is large, codes are
drawn from all around; as it falls, the nearest one is certain. The guide has a posterior as any
other, so that each loss and each relaxation trains it, and the codebook by it.

References:
    [1] Takida et al. SQ-VAE: variational Bayes on discrete representation with self-annealed
        stochastic quantization. ICML, 2022. Equation 6.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.grids import check_grid, from_grid
from pyro_dvae.nets.quantizers import Quantizer
from pyro_dvae.nets.registration import run_encoder
from pyro_dvae.ops.arguments import checked

__all__ = ["CodebookEncoder"]


class CodebookEncoder(nn.Module):
    """An encoder of logits by a codebook: ``IndependentGuide(CodebookEncoder(...))``.

    Args:
        network: From data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, or on a grid.
        codebook: `Codebook` with vectors that learn by gradient, `LinearCodebook` or one without
            parameters; the model's decoder may hold the same one, as `CodebookDecoder`.
        scale: s at the start, in the units of the vectors.
        grid: Sizes of the grid that the latents lie on, where the network returns one.
        channels_first: Whether the width of vectors is before the grid.

    Raises:
        ValueError: If `scale` is not positive, or the codebook follows moving averages, or is put
            together of several.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        codebook: Quantizer,
        *,
        scale: float = 1.0,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        check_head(codebook, scale)
        self.network, self.codebook = network, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first), channels_first
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch L V"]:
        """Logits of every code of every latent."""
        outputs = run_encoder(self.network, x)
        vectors = from_grid(outputs, self.grid, self.channels_first, "network")
        return self.codebook.logits(vectors, self.log_scale.exp())


def check_head(codebook: Quantizer, scale: float) -> None:
    """Whether a codebook can be one of logits, and s one to start at.

    Raises:
        ValueError: If not.
    """
    if not 0.0 < scale < math.inf:
        raise ValueError(f"`scale` must be positive and finite; got {scale}.")
    if getattr(codebook, "decay", None) is not None:
        raise ValueError(
            "`codebook` must learn by gradient, as logits to its vectors train it; got one of "
            "moving averages. Use decay=None."
        )
    if codebook.num_blocks > 1 or codebook.by_scale:
        raise ValueError(
            f"`codebook` must be a single one, of which codes are drawn at once; got "
            f"{type(codebook).__name__}, whose stages depend on what was drawn before."
        )
