"""Guides q(z | x): independent codes, codes drawn one after the other, quantised vectors.

All are called with the model's arguments, ``guide(x)`` or, on a minibatch,
``guide(x, index, num_data)``, and have the one site "z" (event dim 1) under the plate "data" at
dim -1. `posterior(x)` gives the distribution itself.

Parameters live outside, as everywhere in NumPyro: "guide.encoder$params" and
"guide.transformer$params". `SVI` makes them; with trained ones, run
``numpyro.handlers.substitute(guide.posterior, data=params)(x)``.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Int, Shaped
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import AutoregressiveCategorical, Categorical
from numpyro_dvae.models.vae import data_plate
from numpyro_dvae.nets import CausalTransformer, MLPEncoder, PatchEncoder, register

__all__ = ["AutoregressiveGuide", "IndependentGuide", "VectorQuantizedGuide", "mnist_guide"]


class IndependentGuide:
    """Latents independent given x; the non-autoregressive encoder.

    Args:
        encoder: Network from data ``(*batch, *event)`` to logits ``(*batch, L, V)``, or
            ``(*batch, L)`` for binary latents.
        binary: Whether the latents are Bernoulli rather than categorical.
    """

    def __init__(self, encoder: Callable, *, binary: bool = False) -> None:
        self.encoder, self.binary = encoder, binary

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
        """Sample the site "z"; where `observed` is False the encoder sees 0."""
        return _sample(self, x, index, num_data, observed)

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        x = jnp.asarray(x)
        logits = register("guide.encoder", self.encoder, x)(x)
        if not self.binary:
            return Categorical(logits=logits).to_event(1)
        precise = jnp.promote_types(logits.dtype, jnp.float32)  # networks may be in bfloat16
        return dist.Bernoulli(logits=logits.astype(precise)).to_event(1)


class AutoregressiveGuide:
    """Latents drawn one after the other, each given x and those before it.

    Args:
        encoder: Network from data to a context ``(*batch, P, D)``, as `PatchEncoder`.
        transformer: Network over codes with cross-attention, as `CausalTransformer`.
    """

    def __init__(self, encoder: Callable, transformer: CausalTransformer) -> None:
        self.encoder, self.transformer = encoder, transformer

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
        """Sample the site "z"; where `observed` is False the encoder sees 0."""
        return _sample(self, x, index, num_data, observed)

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), the joint distribution of the codes."""
        x = jnp.asarray(x)
        context = register("guide.encoder", self.encoder, x)(x)
        codes = jnp.zeros((*context.shape[:-2], self.transformer.num_latents), int)
        transformer = register("guide.transformer", self.transformer, codes, context)
        return AutoregressiveCategorical(transformer, context)


class VectorQuantizedGuide:
    """The codes of quantised vectors: a posterior with all its mass on one state.

    Args:
        encoder: Network from data to vectors ``(*batch, L, D)``, as `MLPEncoder` with D for V.
        codebook: `Codebook` or `FiniteScalars`; the model's decoder holds the same one, as
            `CodebookDecoder`.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors) and
    "z.vectors" (those of the codes).
    """

    def __init__(self, encoder: Callable, codebook: Any) -> None:
        self.encoder, self.codebook = encoder, codebook

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
        """Sample the site "z"; moving averages of the codebook advance in the mutable state."""
        return _sample(
            self, x, index, num_data, observed, functools.partial(self._posterior, learn=True)
        )

    def posterior(self, x: Shaped[Array | np.ndarray, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot."""
        return self._posterior(x, learn=False)

    def _posterior(self, x: Array | np.ndarray, *, learn: bool) -> Distribution:
        x = jnp.asarray(x)
        inputs = register("guide.encoder", self.encoder, x)(x)
        quantized = self.codebook.quantize(inputs, learn=learn)
        numpyro.deterministic("z.inputs", quantized.inputs)
        numpyro.deterministic("z.vectors", quantized.vectors)
        certain = jax.nn.one_hot(quantized.codes, self.codebook.num_codes)
        return Categorical(logits=jnp.log(certain)).to_event(1)


def mnist_guide(*, autoregressive: bool = True) -> AutoregressiveGuide | IndependentGuide:
    """A guide for `models.mnist_vae`: 8 codes of 256 values, 28 x 28 images.

    The published one [1] is autoregressive: 8 patches, one encoder and one decoder block of
    width 64. The independent one is a perceptron with one hidden layer of 256.
    """
    if not autoregressive:
        return IndependentGuide(MLPEncoder((28, 28), 8, 256, output_scale=0.1))
    encoder = PatchEncoder((28, 28), 8, embed_dim=64)
    return AutoregressiveGuide(encoder, CausalTransformer(8, 256, embed_dim=64))


def _sample(
    guide: IndependentGuide | AutoregressiveGuide | VectorQuantizedGuide,
    x: Shaped[Array | np.ndarray, "..."] | None,
    index: Int[Array | np.ndarray, "B"] | None,
    num_data: int | None,
    observed: Bool[Array | np.ndarray, "..."] | None,
    posterior_of: Callable[[Any], Distribution] | None = None,
) -> Array:
    """Sample "z" from ``guide.posterior(x)``, or ``posterior_of(x)``, under the plate."""
    if x is None or x.ndim < 1 or len(x) == 0:
        found = "None" if x is None else f"shape {x.shape}"
        raise ValueError(
            f"A guide needs data `x` with at least one datum on its first axis; got {found}. To "
            "sample from the prior, call the model alone."
        )
    if index is None and num_data not in (None, len(x)):
        raise ValueError(
            f"`num_data` is for sampling without `x`, or beside `index`; got {num_data} with "
            f"{len(x)} data."
        )
    if index is not None and (num_data is None or len(index) != len(x)):
        raise ValueError(
            "`index` says which rows of `num_data` the data in `x` are, one each; got "
            f"{len(index)} rows, num_data={num_data} and x of shape {x.shape}."
        )
    if observed is not None:
        x = jnp.where(jnp.asarray(observed), x, 0.0)
    posterior = (posterior_of or guide.posterior)(x)
    if posterior.batch_shape != x.shape[:1]:
        raise ValueError(
            f'q(z | x) at site "z" must have batch shape ({len(x)},) and event shape (latents,); '
            f"got {posterior.batch_shape} and {posterior.event_shape}. Let the "
            "encoder return (*batch, latents, codes), or (*batch, latents) with `binary`."
        )
    with data_plate(num_data or len(x), index):
        return numpyro.sample("z", posterior)
