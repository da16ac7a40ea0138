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
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.codebooks import Codebook
from pyro_dvae.nets.grids import check_grid, from_grid
from pyro_dvae.nets.inputs import check_width
from pyro_dvae.nets.quantizers import Quantizer
from pyro_dvae.nets.registration import mask_of_latents, run_encoder
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.processes import ragged_rows, total

__all__ = ["CodebookEncoder"]

_LEAST = 1e-6  # added to a standard deviation


class CodebookEncoder(nn.Module):
    """An encoder of logits by a codebook: ``IndependentGuide(CodebookEncoder(...))``.

    Args:
        network: From data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, or on a grid.
        codebook: `Codebook` with vectors that learn by gradient, `LinearCodebook` or one without
            parameters; the model's decoder may hold the same one, as `CodebookDecoder`.
        scale: s at the start, in the units of the vectors; None is half of the standard deviation
            of those of the first batch, at some of which the codebook starts.
        grid: Sizes of the grid that the latents lie on, where the network returns one.
        channels_first: Whether the width of vectors is before the grid.

    Raises:
        ValueError: If `scale` is not positive, or the codebook follows moving averages, or is put
            together of several.
    """

    is_known: Tensor

    @checked
    def __init__(
        self,
        network: nn.Module,
        codebook: Quantizer,
        *,
        scale: float | None = None,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        check_head(codebook, scale)
        self.network, self.codebook = network, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first, network), channels_first
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale or 1.0)))
        self._scale = scale
        self.register_buffer("is_known", torch.tensor(False))
        self._is_known = False  # without asking the device

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch L V"]:
        """Logits of every code of every latent."""
        outputs = run_encoder(self.network, x)
        vectors = from_grid(outputs, self.grid, self.channels_first, "network")
        check_width(vectors, self.codebook.embed_dim, "network")
        if self.training and torch.is_grad_enabled():
            self._begin(vectors)
        return self.codebook.logits(vectors, self.log_scale.exp())

    @torch.no_grad()
    def _begin(self, vectors: Tensor) -> None:
        """Start codes and scale where the vectors of the first batch are that no mask silences."""
        if not self._is_known and not self.is_known:
            mask = mask_of_latents()
            if mask is not None and not total(mask.sum()):
                return
            if isinstance(self.codebook, Codebook):
                self.codebook.begin(vectors, mask)
            if self._scale is None:
                self.log_scale.copy_(spread_of(vectors, mask).log())
            self.is_known.fill_(True)
        self._is_known = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._is_known = False
        super()._load_from_state_dict(*args, **kwargs)


def spread_of(
    vectors: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*#batch"] | None
) -> Float[Tensor, ""]:
    """Half of the standard deviation of vectors, in the mean over their channels; never 0."""
    kept = vectors if mask is None else vectors[mask.expand(vectors.shape[:-1])]
    flat = ragged_rows(kept.reshape(-1, vectors.shape[-1]))
    return 0.5 * (flat.var(0, correction=0).mean().sqrt() + _LEAST)


def check_head(codebook: Quantizer, scale: float | None) -> None:
    """Whether a codebook can be one of logits, and s one to start at.

    Raises:
        ValueError: If not.
    """
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"`scale` must be positive and finite, or None; got {scale}.")
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
