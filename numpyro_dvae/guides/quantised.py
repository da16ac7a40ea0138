"""A guide that quantises vectors: each latent is the code of the vector nearest to an input."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Bool, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import Categorical
from numpyro_dvae.guides.amortised import AmortisedGuide
from numpyro_dvae.models.plates import data_mask
from numpyro_dvae.nets import Codebook, FiniteScalars, register

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
    """

    def __init__(self, encoder: Callable, codebook: Codebook | FiniteScalars) -> None:
        self.encoder, self.codebook = encoder, codebook

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot; the codebook stays as it is."""
        return self._quantize(x, learn=False)

    def posterior_of_step(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """The same; in training, moving averages of the codebook advance."""
        return self._quantize(x, learn=True)

    def _quantize(self, x: Array | np.ndarray, *, learn: bool) -> Distribution:
        x = jnp.asarray(x)
        inputs = register("guide.encoder", self.encoder, x)(x)
        quantized = self.codebook.quantize(inputs, learn=learn, mask=_mask_of_latents())
        numpyro.deterministic("z.inputs", quantized.inputs)
        numpyro.deterministic("z.vectors", quantized.vectors)
        certain = jax.nn.one_hot(quantized.codes, self.codebook.num_codes)
        return Categorical(logits=jnp.log(certain)).to_event(1)


def _mask_of_latents() -> Bool[Array, "#B 1"] | None:
    """Which latents the program's mask leaves in."""
    mask = data_mask()
    return None if mask is None else mask[..., None]
