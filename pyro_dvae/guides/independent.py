"""A guide whose latents are independent given the datum."""

import pyro.distributions as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import Categorical, precise
from pyro_dvae.guides.amortised import AmortisedGuide

__all__ = ["IndependentGuide"]


class IndependentGuide(AmortisedGuide):
    """Latents independent given x; the non-autoregressive encoder.

    Args:
        encoder: Network from data ``(*batch, *event)`` to logits ``(*batch, L, V)``, or
            ``(*batch, L)`` for binary latents.
        binary: Whether the latents are Bernoulli rather than categorical.
    """

    def __init__(self, encoder: nn.Module, *, binary: bool = False) -> None:
        super().__init__()
        self.encoder, self.binary = encoder, binary

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        logits = self.encoder(x)
        if not self.binary:
            return Categorical(logits=logits).to_event(1)
        return dist.Bernoulli(logits=precise(logits)).to_event(1)
