"""Guides q(z | x): independent codes, codes drawn one after the other, quantised vectors.

All are called with the model's arguments, ``guide(x)`` or, on a minibatch,
``guide(x, index, num_data)``, and have the one site "z" (event dim 1) under the plate "data" at
dim -1. `posterior(x)` gives the distribution itself.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from pyro_dvae.distributions import AutoregressiveCategorical, Categorical
from pyro_dvae.nets import CausalTransformer, MLPEncoder, PatchEncoder, register

__all__ = ["AutoregressiveGuide", "IndependentGuide", "VectorQuantizedGuide", "mnist_guide"]


class IndependentGuide(nn.Module):
    """Latents independent given x; the non-autoregressive encoder.

    Args:
        encoder: Network from data ``(*batch, *event)`` to logits ``(*batch, L, V)``, or
            ``(*batch, L)`` for binary latents.
        binary: Whether the latents are Bernoulli rather than categorical.
    """

    def __init__(self, encoder: nn.Module, *, binary: bool = False) -> None:
        super().__init__()
        self.encoder, self.binary = encoder, binary

    def forward(
        self,
        x: Shaped[Tensor, "B *event"] | None = None,
        index: Int[Tensor, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Tensor, "B *event"] | None = None,
    ) -> Shaped[Tensor, "*particles_B L"]:
        """Sample the site "z"; where `observed` is False the encoder sees 0."""
        return _sample(self, x, index, num_data, observed)

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one factor per latent."""
        logits = self.encoder(x)
        if not self.binary:
            return Categorical(logits=logits).to_event(1)
        precise = torch.promote_types(logits.dtype, torch.float32)  # networks may be in bfloat16
        return dist.Bernoulli(logits=logits.to(precise)).to_event(1)


class AutoregressiveGuide(nn.Module):
    """Latents drawn one after the other, each given x and those before it.

    Args:
        encoder: Network from data to a context ``(*batch, P, D)``, as `PatchEncoder`.
        transformer: Network over codes with cross-attention, as `CausalTransformer`.
    """

    def __init__(self, encoder: nn.Module, transformer: CausalTransformer) -> None:
        super().__init__()
        self.encoder, self.transformer = encoder, transformer

    def forward(
        self,
        x: Shaped[Tensor, "B *event"] | None = None,
        index: Int[Tensor, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Tensor, "B *event"] | None = None,
    ) -> Shaped[Tensor, "*particles_B L"]:
        """Sample the site "z"; where `observed` is False the encoder sees 0."""
        return _sample(self, x, index, num_data, observed)

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), the joint distribution of the codes."""
        return AutoregressiveCategorical(self.transformer, self.encoder(x))


class VectorQuantizedGuide(nn.Module):
    """The codes of quantised vectors: a posterior with all its mass on one state.

    Args:
        encoder: Network from data to vectors ``(*batch, L, D)``, as `MLPEncoder` with D for V.
        codebook: `Codebook` or `FiniteScalars`; the model's decoder holds the same one, as
            `CodebookDecoder`.

    `VQ_ELBO` trains it, by the deterministic sites "z.inputs" (the encoder's vectors) and
    "z.vectors" (those of the codes).
    """

    def __init__(self, encoder: nn.Module, codebook: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.codebook: Any = codebook

    def forward(
        self,
        x: Shaped[Tensor, "B *event"] | None = None,
        index: Int[Tensor, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Tensor, "B *event"] | None = None,
    ) -> Shaped[Tensor, "*particles_B L"]:
        """Sample the site "z"; in training, moving averages of the codebook advance."""
        learn = self.training and torch.is_grad_enabled()
        return _sample(
            self, x, index, num_data, observed, functools.partial(self._posterior, learn=learn)
        )

    def posterior(self, x: Shaped[Tensor, "*batch_event"]) -> Distribution:
        """q(z | x), one-hot."""
        return self._posterior(x, learn=False)

    def _posterior(self, x: Tensor, *, learn: bool) -> Distribution:
        quantized = self.codebook.quantize(self.encoder(x), learn=learn)
        pyro.deterministic("z.inputs", quantized.inputs)
        pyro.deterministic("z.vectors", quantized.vectors)
        certain = one_hot(quantized.codes, self.codebook.num_codes)
        return Categorical(logits=certain.to(torch.float32).log()).to_event(1)


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
    x: Tensor | None,
    index: Tensor | None,
    num_data: int | None,
    observed: Tensor | None,
    posterior_of: Callable[[Tensor], Distribution] | None = None,
) -> Tensor:
    """Sample "z" from ``guide.posterior(x)``, or ``posterior_of(x)``, under the plate."""
    register("guide", guide)
    if x is None or x.dim() < 1 or len(x) == 0:
        found = "None" if x is None else f"shape {tuple(x.shape)}"
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
            f"{len(index)} rows, num_data={num_data} and x of shape {tuple(x.shape)}."
        )
    if observed is not None:
        x = torch.where(observed, x, 0.0)
    posterior = cast("dist.TorchDistribution", (posterior_of or guide.posterior)(x))
    if tuple(posterior.batch_shape) != tuple(x.shape[:1]):
        raise ValueError(
            f'q(z | x) at site "z" must have batch shape ({len(x)},) and event shape (latents,); '
            f"got {tuple(posterior.batch_shape)} and {tuple(posterior.event_shape)}. Let the "
            "encoder return (*batch, latents, codes), or (*batch, latents) with `binary`."
        )
    with pyro.plate("data", num_data or len(x), subsample=index, dim=-1):
        return pyro.sample("z", posterior)
