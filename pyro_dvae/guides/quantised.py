"""A guide that quantises vectors: each latent is the code of the vector nearest to an input."""

from collections.abc import Sequence

import pyro
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import CertainCategorical
from pyro_dvae.guides.amortised import AmortisedGuide
from pyro_dvae.models.plates import data_mask
from pyro_dvae.nets import Codebook, FiniteScalars
from pyro_dvae.nets.grids import check_grid
from pyro_dvae.nets.inputs import run_encoder

__all__ = ["VectorQuantizedGuide"]


class VectorQuantizedGuide(AmortisedGuide):
    """The codes of quantised vectors: a posterior with all its mass on one state.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors) and
    "z.vectors" (those of the codes). In training, moving averages of the codebook advance whenever
    the guide runs as a program.

    Args:
        encoder: Network from data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, as
            `MLPEncoder` with D for V.
        codebook: `Codebook` or `FiniteScalars`; the model's decoder holds the same one, as
            `CodebookDecoder`.
        grid: Sizes of the grid that the latents lie on, as (8, 8), where the encoder returns one:
            ``(*batch, *grid, D)``.
        channels_first: Whether it returns ``(*batch, D, *grid)``.

    Raises:
        ValueError: If the grid is none; on a call, if it is another than that of the vectors.
    """

    def __init__(
        self,
        encoder: nn.Module,
        codebook: Codebook | FiniteScalars,
        *,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.codebook = encoder, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first), channels_first

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot; the codebook stays as it is."""
        return self._quantize(x, learn=False)

    def posterior_of_step(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """The same; in training, moving averages of the codebook advance."""
        return self._quantize(x, learn=self.training and torch.is_grad_enabled())

    def _quantize(self, x: Tensor, *, learn: bool) -> Distribution:
        inputs = self.by_latent(run_encoder(self.encoder, x))
        quantized = self.codebook.quantize(inputs, learn=learn, mask=_mask_of_latents())
        pyro.deterministic("z.inputs", quantized.inputs)
        pyro.deterministic("z.vectors", quantized.vectors)
        codes = quantized.codes
        return CertainCategorical(self.codebook.num_codes, codes, inputs).to_event(1)


def _mask_of_latents() -> Bool[Tensor, "#B 1"] | None:
    """Which latents the program's mask leaves in."""
    mask = data_mask()
    return None if mask is None else mask[..., None]
