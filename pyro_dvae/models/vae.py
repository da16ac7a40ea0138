"""Discrete variational autoencoders as Pyro models: a prior, a decoder, a likelihood.

`DiscreteVAE` has the sites "z" (codes, event dim 1) and "x" (the datum) under the plate
"data" at dim -1. Its parts are networks of their own, so a learnt prior or another
likelihood is a matter of passing it in:

- a prior is a module that returns a distribution over "z" with event dim 1, when called;
- a likelihood is a module that maps the decoder's outputs and the number of event dims to
  a distribution over "x".

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.models.parts import (
    AutoregressivePrior,
    BernoulliLikelihood,
    BernoulliPrior,
    CategoricalPrior,
    ClosedForm,
    GaussianLikelihood,
    UniformPrior,
)
from pyro_dvae.nets import MLPDecoder, register

__all__ = [
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "BernoulliPrior",
    "CategoricalPrior",
    "ClosedForm",
    "CodeModel",
    "DiscreteVAE",
    "GaussianLikelihood",
    "UniformPrior",
    "mnist_vae",
]


class DiscreteVAE(nn.Module):
    """Model ``p(z) p(x | z)`` of data with discrete latents.

    Args:
        decoder: Network from codes ``(*batch, L)`` to outputs ``(*batch, *shape of x)``. One
            that takes relaxed codes ``(*batch, L, V)`` has a method `batch_shape`, as `MLPDecoder`.
        prior: Module that returns p(z), as `UniformPrior`.
        likelihood: Module that turns outputs into p(x | z), as `BernoulliLikelihood`.

    Call it as ``model(x)`` to condition on data, as ``model(x, index, num_data)`` on a minibatch,
    rows `index` of `num_data`, or as ``model(num_data=10)`` to sample from it. Where the mask
    `observed`, of the shape of `x`, is False, `x` is missing and leaves the likelihood.
    """

    def __init__(self, decoder: nn.Module, prior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.decoder, self.prior, self.likelihood = decoder, prior, likelihood

    def forward(
        self,
        x: Shaped[Tensor, "B *event"] | None = None,
        index: Int[Tensor, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Tensor, "B *event"] | None = None,
    ) -> Float[Tensor, "*particles_B_event"]:
        """Sample the sites "z" and, unless given, "x"; returns "x"."""
        register("model", self)
        prior = self.prior()
        with pyro.plate("data", _plate_size(x, index, num_data), subsample=index, dim=-1):
            z = pyro.sample("z", prior, infer=_asking(self.prior))
            _check_length(z.shape[len(self._batch(z)) :], prior.event_shape)
            outputs, event_dim = self._outputs(z)
            likelihood = self.likelihood(outputs, event_dim)
            if x is not None:
                _check_data(x, outputs.shape[outputs.dim() - event_dim :])
            if observed is not None:
                likelihood = _masked(likelihood, observed)
                x = None if x is None else torch.where(observed, x, 0.0)
            return pyro.sample("x", likelihood, obs=x, infer=_asking(self.likelihood))

    def reconstruct(self, z: Shaped[Tensor, "*batch L"]) -> Float[Tensor, "*batch_event"]:
        """The mean of p(x | z)."""
        return self.likelihood(*self._outputs(z)).mean

    def _outputs(self, z: Tensor) -> tuple[Tensor, int]:
        """The decoder's outputs and how many of their dims make one datum."""
        outputs = self.decoder(z)
        batch = self._batch(z)
        if tuple(outputs.shape[: len(batch)]) != tuple(batch):
            raise ValueError(
                f"`decoder` must map codes {tuple(z.shape)} to outputs that begin with the batch "
                f"shape {tuple(batch)}; got {tuple(outputs.shape)}. Let it keep all leading dims."
            )
        return outputs, outputs.dim() - len(batch)

    def _batch(self, z: Tensor) -> Sequence[int]:
        """The leading dims of codes, or of vectors in their place."""
        return getattr(self.decoder, "batch_shape", _batch_of_codes)(z)


class CodeModel(nn.Module):
    """A prior alone, with the site "z" under the plate "data": fit it to the codes of data.

    This is the second stage of a VQ-VAE. Its parameters have the names of those of a `DiscreteVAE`
    with the same prior. Call it as ``model(codes)``, or ``model(num_data=10)`` for samples.

    Args:
        prior: Module that returns p(z), given labels if it is an `AutoregressivePrior` of classes.
    """

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self,
        codes: Shaped[Tensor, "B L"] | None = None,
        labels: Integer[Tensor, "B"] | None = None,
        *,
        num_data: int | None = None,
    ) -> Shaped[Tensor, "*particles_B L"]:
        """Sample or observe the site "z"."""
        register("model", self)
        prior = self.prior() if labels is None else self.prior(labels)
        if codes is not None:
            _check_length(codes.shape[1:], prior.event_shape)
        with pyro.plate("data", _plate_size(codes, None, num_data, "codes"), dim=-1):
            return pyro.sample("z", prior, obs=codes)


def mnist_vae(mean: Float[Tensor, "28 28"] | None = None) -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images.

    The decoder starts at the `mean` of the training images, if given.
    """
    likelihood = BernoulliLikelihood()
    start = None if mean is None else likelihood.link(mean)
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256), start=start)
    return DiscreteVAE(decoder, UniformPrior(8, 256), likelihood)


def _batch_of_codes(z: Tensor) -> Sequence[int]:
    return z.shape[:-1]


def _asking(part: nn.Module) -> Any:
    """What a site's `infer` says of a prior or likelihood of any make."""
    form = getattr(part, "closed_form", None)
    return {} if form is None else {"closed_form": form}


def _masked(likelihood: Distribution, observed: Tensor) -> Distribution:
    """The likelihood with an entry for every observed cell of a datum."""
    if not isinstance(likelihood, dist.Independent):
        raise ValueError(
            "`observed` masks the entries of a datum, which the likelihood must hold as "
            f"independent, by .to_event(n); got {type(likelihood).__name__}."
        )
    base, event_dim = likelihood.base_dist, likelihood.reinterpreted_batch_ndims
    return base.mask(observed).to_event(event_dim)


def _plate_size(
    x: Tensor | None, index: Tensor | None, num_data: int | None, name: str = "x"
) -> int:
    """Data in the plate: those of `x`, or `num_data` with the rows `index`, or without `x`."""
    if index is not None:
        if num_data is None or (x is not None and len(x) != len(index)):
            raise ValueError(
                "`index` says which rows of `num_data` the data in `x` are, one each; got "
                f"{len(index)} rows, num_data={num_data} and "
                f"{'no x' if x is None else f'x of shape {tuple(x.shape)}'}."
            )
        return num_data
    if x is None and num_data is None:
        raise ValueError(
            f"Without `{name}` the model must be told `num_data`, how many data to sample."
        )
    size = num_data if x is None else len(x) if x.dim() else 0
    if not size or size < 1 or num_data not in (None, size):
        found = f"num_data={num_data}" if x is None else f"{name} of shape {tuple(x.shape)}"
        raise ValueError(
            f"`{name}` must hold at least one datum on its first axis, and `num_data` is for "
            f"sampling without `{name}`; got {found} and num_data={num_data}."
        )
    return size


def _check_length(found: Sequence[int], wanted: Sequence[int]) -> None:
    """Whether codes, or vectors in their place, are as many as the prior's."""
    if tuple(found[:1]) != tuple(wanted):
        raise ValueError(
            f'`prior` at site "z" is of {wanted[0]} latents, but the codes are {found[0]} per '
            "datum. Give prior, guide and decoder the same number of latents."
        )


def _check_data(x: Tensor, event_shape: Sequence[int]) -> None:
    """Whether the data are what the decoder makes."""
    if tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"`x` must have shape (data, {', '.join(map(str, event_shape))}) to be observed at "
            f'site "x"; got {tuple(x.shape)}. Reshape the data, or give the decoder that '
            "`output_shape`."
        )
    if not x.is_floating_point():
        raise ValueError(
            f'`x` at site "x" must hold floating-point numbers; got {x.dtype}. Convert it first, '
            "as in x.float() / 255 or (x > 127).float()."
        )
