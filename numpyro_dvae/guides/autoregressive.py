"""A guide that draws the latents of a datum one after the other, each given those before it.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import AutoregressiveCategorical
from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.guides.independent import IndependentGuide
from numpyro_dvae.nets import CausalTransformer, MLPEncoder, PatchEncoder, register
from numpyro_dvae.nets.grids import check_grid
from numpyro_dvae.nets.registration import run_encoder
from numpyro_dvae.ops.arguments import checked

__all__ = ["AutoregressiveGuide", "mnist_guide"]


class AutoregressiveGuide(AmortisedGuide):
    """Latents drawn one after the other, each given x and those before it.

    Args:
        encoder: Network from data ``(*batch, *event)`` to a context ``(*batch, P, D)``, as
            `PatchEncoder`.
        transformer: Network over codes with cross-attention to the context, as
            `CausalTransformer`.
        grid: Sizes of the grid that the context lies on, as (4, 4), where the encoder returns one,
            as convolutions do: ``(*batch, *grid, D)``.
        channels_first: Whether it returns ``(*batch, D, *grid)``.

    Raises:
        ValueError: If the grid is none; on a call, if it is another than that of the context.
    """

    @checked
    def __init__(
        self,
        encoder: Callable,
        transformer: CausalTransformer,
        *,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        self.encoder, self.transformer = encoder, transformer
        self.grid, self.channels_first = check_grid(grid, channels_first, encoder), channels_first

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), the joint distribution of the codes."""
        x = jnp.asarray(x)
        context = self.by_latent(run_encoder(self.encoder, x))
        codes = jnp.zeros((*context.shape[:-2], self.transformer.num_latents), int)
        transformer = register("guide.transformer", self.transformer, codes, context)
        return AutoregressiveCategorical(transformer, context)


@checked
def mnist_guide(*, autoregressive: bool = True) -> AutoregressiveGuide | IndependentGuide:
    """A guide for `models.mnist_vae`: 8 codes of 256 values, 28 x 28 images.

    Args:
        autoregressive: Whether it is the published one [1]: 8 patches, one encoder and one decoder
            block of width 64. Otherwise it is a perceptron with one hidden layer of 256.
    """
    if not autoregressive:
        return IndependentGuide(MLPEncoder((28, 28), 8, 256, output_scale=0.1))
    encoder = PatchEncoder((28, 28), 8, embed_dim=64)
    return AutoregressiveGuide(encoder, CausalTransformer(8, 256, embed_dim=64))
