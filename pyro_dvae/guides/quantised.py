"""A guide that quantises vectors: each latent is the code of the vector nearest to an input."""

from collections.abc import Callable, Sequence
from typing import Literal

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
from pyro_dvae.nets.registration import run_encoder
from pyro_dvae.ops.codepaths import Route, diveq, rotation_trick, straight_through_codes

__all__ = ["VectorQuantizedGuide"]

Gradient = Literal["straight_through", "rotation", "diveq"] | Callable[[Tensor, Tensor], Route]


class VectorQuantizedGuide(AmortisedGuide):
    """The codes of quantised vectors: a posterior with all its mass on one state.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors), "z.vectors"
    (those of the codes) and "z.path" (the latter, with a gradient to the former). In training,
    moving averages of the codebook advance whenever the guide runs as a program.

    Args:
        encoder: Network from data ``(*batch, *event)`` to vectors ``(*batch, L, D)``, as
            `MLPEncoder` with D for V.
        codebook: `Codebook` or `FiniteScalars`; the model's decoder holds the same one, as
            `CodebookDecoder`.
        gradient: How the encoder gets one past the choice of its codes: "straight_through",
            "rotation" or "diveq", see `ops.codepaths`; or a function from vectors before and after
            to a `Route`.
        grid: Sizes of the grid that the latents lie on, as (8, 8), where the encoder returns one:
            ``(*batch, *grid, D)``.
        channels_first: Whether it returns ``(*batch, D, *grid)``.

    Raises:
        ValueError: If `gradient` is none of these, or the grid is none; on a call, if the grid is
            another than that of the vectors.
    """

    def __init__(
        self,
        encoder: nn.Module,
        codebook: Codebook | FiniteScalars,
        *,
        gradient: Gradient = "rotation",
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.codebook = encoder, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first), channels_first
        self.gradient = _route_of(gradient)

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot; the codebook stays as it is."""
        return self._quantize(x, learn=False)

    def posterior_of_step(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """The same; in training, moving averages of the codebook advance."""
        return self._quantize(x, learn=self.training and torch.is_grad_enabled())

    def _quantize(self, x: Tensor, *, learn: bool) -> Distribution:
        inputs = self.by_latent(run_encoder(self.encoder, x))
        quantized = self.codebook.quantize(inputs, learn=learn, mask=_mask_of_latents())
        route = self.gradient(quantized.inputs, quantized.vectors)
        for name, value in route._asdict().items():
            pyro.deterministic(f"z.{name}", value)
        codes = quantized.codes
        return CertainCategorical(self.codebook.num_codes, codes, inputs).to_event(1)


def _route_of(gradient: Gradient) -> Callable[[Tensor, Tensor], Route]:
    """The function that an argument `gradient` means."""
    named = {"straight_through": straight_through_codes, "rotation": rotation_trick, "diveq": diveq}
    if callable(gradient):
        return gradient
    if gradient not in named:
        raise ValueError(
            f"`gradient` must be one of {sorted(named)}, or a function of vectors before and after "
            f"to a Route; got {gradient!r}."
        )
    return named[gradient]


def _mask_of_latents() -> Bool[Tensor, "#B 1"] | None:
    """Which latents the program's mask leaves in."""
    mask = data_mask()
    return None if mask is None else mask[..., None]
