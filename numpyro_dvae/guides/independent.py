"""A guide whose latents are independent given the datum."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import Categorical, precise
from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.nets import register

__all__ = ["IndependentGuide"]


class IndependentGuide(AmortisedGuide):
    """Latents independent given x; the non-autoregressive encoder.

    Args:
        encoder: Network from data ``(*batch, *event)`` to logits ``(*batch, L, V)``, or
            ``(*batch, L)`` for binary latents.
        binary: Whether the latents are Bernoulli rather than categorical.
    """

    def __init__(self, encoder: Callable, *, binary: bool = False) -> None:
        self.encoder, self.binary = encoder, binary

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        x = jnp.asarray(x)
        logits = register("guide.encoder", self.encoder, x)(x)
        if not self.binary:
            return Categorical(logits=logits).to_event(1)
        return dist.Bernoulli(logits=precise(logits)).to_event(1)
