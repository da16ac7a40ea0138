"""A guide whose latents are independent given the datum."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import Categorical, precise
from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.nets.grids import check_grid
from numpyro_dvae.nets.registration import run_encoder
from numpyro_dvae.ops.arguments import checked

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
        encoder: Callable,
        *,
        binary: bool = False,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        self.encoder, self.binary = encoder, binary
        self.grid, self.channels_first = check_grid(grid, channels_first, encoder), channels_first

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        x = jnp.asarray(x)
        logits = run_encoder(self.encoder, x)
        if not self.binary:
            return Categorical(logits=self.by_latent(logits)).to_event(1)
        if self.grid is not None:
            logits = self.by_latent(logits)[..., 0]
        return dist.Bernoulli(logits=precise(logits)).to_event(1)
