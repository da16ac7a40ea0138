"""A guide that quantises vectors: each latent is the code of the vector nearest to an input."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Bool, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import CertainCategorical
from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.models.plates import data_mask
from numpyro_dvae.nets import Codebook, FiniteScalars
from numpyro_dvae.nets.grids import check_grid
from numpyro_dvae.nets.registration import run_encoder

__all__ = ["VectorQuantizedGuide"]


class VectorQuantizedGuide(AmortisedGuide):
    """The codes of quantised vectors: a posterior with all its mass on one state.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors) and
    "z.vectors" (those of the codes). Moving averages of the codebook advance in the mutable state
    whenever the guide runs as a program that holds one.

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
        encoder: Callable,
        codebook: Codebook | FiniteScalars,
        *,
        grid: Sequence[int] | None = None,
        channels_first: bool = False,
    ) -> None:
        self.encoder, self.codebook = encoder, codebook
        self.grid, self.channels_first = check_grid(grid, channels_first), channels_first

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot; the codebook stays as it is."""
        return self._quantize(x, learn=False)

    def posterior_of_step(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """The same; in training, moving averages of the codebook advance."""
        return self._quantize(x, learn=True)

    def _quantize(self, x: Array | np.ndarray, *, learn: bool) -> Distribution:
        x = jnp.asarray(x)
        inputs = self.by_latent(run_encoder(self.encoder, x))
        quantized = self.codebook.quantize(inputs, learn=learn, mask=_mask_of_latents())
        numpyro.deterministic("z.inputs", quantized.inputs)
        numpyro.deterministic("z.vectors", quantized.vectors)
        codes = quantized.codes
        return CertainCategorical(self.codebook.num_codes, codes, inputs).to_event(1)


def _mask_of_latents() -> Bool[Array, "#B 1"] | None:
    """Which latents the program's mask leaves in."""
    mask = data_mask()
    return None if mask is None else mask[..., None]
