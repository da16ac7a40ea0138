"""A guide whose latents are independent given the datum."""

from collections.abc import Sequence

import pyro.distributions as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import Categorical, precise
from pyro_dvae.guides.amortised import AmortisedGuide
from pyro_dvae.nets.grids import check_grid
from pyro_dvae.nets.registration import run_encoder
from pyro_dvae.ops.arguments import checked

__all__ = ["IndependentGuide"]


class IndependentGuide(AmortisedGuide):
    """Latents independent given x; the non-autoregressive encoder.

    Args:
        encoder: Network from data ``(*batch, *event)`` to logits ``(*batch, L, V)``, or
            ``(*batch, L)`` for binary latents.
        binary: Whether the latents are Bernoulli rather than categorical.
        grid: Sizes of the grid that the latents lie on, as (8, 8), where the encoder returns one:
            ``(*batch, *grid, V)``.
        channels_first: Whether it returns ``(*batch, V, *grid)``.

    Raises:
        ValueError: If the grid is none; on a call, if it is another than that of the logits.
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        *,
        binary: bool = False,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.binary = encoder, binary
        self.grid, self.channels_first = check_grid(grid, channels_first, encoder), channels_first

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        logits = run_encoder(self.encoder, x)
        if not self.binary:
            return Categorical(logits=self.by_latent(logits)).to_event(1)
        if self.grid is not None:
            logits = self.by_latent(logits)[..., 0]
        return dist.Bernoulli(logits=precise(logits)).to_event(1)
