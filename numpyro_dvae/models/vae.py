"""Discrete variational autoencoders as NumPyro models: a prior, a decoder, a likelihood.

`DiscreteVAE` has the sites "z" (codes, event dim 1) and "x" (the datum) under the plate
"data" at dim -1. Its parts are networks of their own, so a learnt prior or another
likelihood is a matter of passing it in:

- a prior is a module that returns a distribution over "z" with event dim 1, when called;
- a likelihood is a module that maps the decoder's outputs and the number of event dims to
  a distribution over "x".

Parameters live outside, as everywhere in NumPyro: "model.decoder$params", and "model.prior$params"
and "model.likelihood$params" where those have any. `SVI` makes them; with trained ones, run
``numpyro.handlers.substitute(model.reconstruct, data=params)(z)``.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped
from numpyro.distributions import Distribution
from numpyro.handlers import substitute
from numpyro.primitives import mutable

from numpyro_dvae.models.parts import (
    AutoregressivePrior,
    BernoulliLikelihood,
    BernoulliPrior,
    CategoricalPrior,
    ClosedForm,
    GaussianLikelihood,
    UniformPrior,
)
from numpyro_dvae.nets import MLPDecoder, register

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


class DiscreteVAE:
    """Model ``p(z) p(x | z)`` of data with discrete latents.

    Args:
        decoder: Network from codes ``(*batch, L)`` to outputs ``(*batch, *shape of x)``. One
            that takes relaxed codes ``(*batch, L, V)`` has a method `batch_shape`, as `MLPDecoder`.
        prior: Module that returns p(z), as `UniformPrior`.
        likelihood: Module that turns outputs into p(x | z), as `BernoulliLikelihood`.

    Each is a flax module, or a callable without parameters. Call the model as ``model(x)`` to
    condition on data, as ``model(x, index, num_data)`` on a minibatch, rows `index` of `num_data`,
    or as ``model(num_data=10)`` to sample from it. Where the mask `observed`, of the shape of `x`,
    is False, `x` is missing and leaves the likelihood.
    """

    def __init__(self, decoder: Callable, prior: Callable, likelihood: Callable) -> None:
        self.decoder, self.prior, self.likelihood = decoder, prior, likelihood

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
    ) -> Shaped[Array, "*particles_B_event"]:
        """Sample the sites "z" and, unless given, "x"; returns "x"."""
        x = None if x is None else jnp.asarray(x)
        prior = register("model.prior", self.prior)(*_kept("model.prior", self.prior))
        with data_plate(_plate_size(x, index, num_data), index):
            z = numpyro.sample("z", prior, infer=_asking("model.prior", self.prior))
            z = jnp.asarray(z)
            _check_length(z.shape[len(self._batch(z)) :], prior.event_shape)
            outputs, event_dim = self._outputs(z)
            likelihood = self._likelihood(outputs, event_dim)
            if x is not None:
                _check_data(x, outputs.shape[outputs.ndim - event_dim :])
            if observed is not None:
                likelihood = _masked(likelihood, jnp.asarray(observed))
                x = None if x is None else jnp.where(observed, x, 0.0)
            infer = _asking("model.likelihood", self.likelihood)
            return numpyro.sample("x", likelihood, obs=x, infer=infer)

    def reconstruct(
        self, z: Shaped[Array | np.ndarray, "*batch L"]
    ) -> Float[Array, "*batch_event"]:
        """The mean of p(x | z)."""
        return self._likelihood(*self._outputs(jnp.asarray(z))).mean

    def _likelihood(self, outputs: Array, event_dim: int) -> Distribution:
        inputs = (outputs, event_dim, *_kept("model.likelihood", self.likelihood))
        return register("model.likelihood", self.likelihood, *inputs)(*inputs)

    def _outputs(self, z: Array) -> tuple[Array, int]:
        """The decoder's outputs and how many of their dims make one datum."""
        outputs = register("model.decoder", self.decoder, z)(z)
        batch = self._batch(z)
        if outputs.shape[: len(batch)] != batch:
            raise ValueError(
                f"`decoder` must map codes {z.shape} to outputs that begin with the batch "
                f"shape {batch}; got {outputs.shape}. Let it keep all leading dims."
            )
        return outputs, outputs.ndim - len(batch)

    def _batch(self, z: Array) -> Sequence[int]:
        """The leading dims of codes, or of vectors in their place."""
        return getattr(self.decoder, "batch_shape", _batch_of_codes)(z)


class CodeModel:
    """A prior alone, with the site "z" under the plate "data": fit it to the codes of data.

    This is the second stage of a VQ-VAE. Its parameters have the names of those of a `DiscreteVAE`
    with the same prior. Call it as ``model(codes)``, or ``model(num_data=10)`` for samples.

    Args:
        prior: Module that returns p(z), given labels if it is an `AutoregressivePrior` of classes.
    """

    def __init__(self, prior: Callable) -> None:
        self.prior = prior

    def __call__(
        self,
        codes: Shaped[Array | np.ndarray, "B L"] | None = None,
        labels: Integer[Array | np.ndarray, "B"] | None = None,
        *,
        num_data: int | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
        """Sample or observe the site "z"."""
        codes = None if codes is None else jnp.asarray(codes)
        prior = register("model.prior", self.prior)
        prior = prior() if labels is None else prior(labels)
        if codes is not None:
            _check_length(codes.shape[1:], prior.event_shape)
        with numpyro.plate("data", _plate_size(codes, None, num_data, "codes"), dim=-1):
            return numpyro.sample("z", prior, obs=codes)


def mnist_vae(mean: Float[Array | np.ndarray, "28 28"] | None = None) -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images.

    The decoder starts at the `mean` of the training images, if given.
    """
    likelihood = BernoulliLikelihood()
    start = None if mean is None else likelihood.link(mean)
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256), start=start)
    return DiscreteVAE(decoder, UniformPrior(8, 256), likelihood)


def _batch_of_codes(z: Array) -> Sequence[int]:
    return z.shape[:-1]


def _kept(name: str, part: Any) -> tuple[Array, ...]:
    """The parameter of a prior or likelihood that a loss sets in closed form."""
    if getattr(part, "learn", None) != "closed_form":
        return ()
    return (mutable(part.closed_form(name).target, part.start()),)


def _asking(name: str, part: Any) -> dict[str, Any]:
    """What a site's `infer` says of a prior or likelihood of any make."""
    if getattr(part, "learn", None) != "closed_form":
        return {}
    return {"closed_form": part.closed_form(name)}


def _masked(likelihood: Distribution, observed: Array) -> Distribution:
    """The likelihood with an entry for every observed cell of a datum."""
    if not isinstance(likelihood, dist.Independent):
        raise ValueError(
            "`observed` masks the entries of a datum, which the likelihood must hold as "
            f"independent, by .to_event(n); got {type(likelihood).__name__}."
        )
    base, event_dim = likelihood.base_dist, likelihood.reinterpreted_batch_ndims
    return base.mask(observed).to_event(event_dim)


def data_plate(size: int, index: Any) -> numpyro.plate:
    """The plate of the data, with the rows `index` where these are given."""
    if index is None:
        return numpyro.plate("data", size, dim=-1)
    with substitute(data={"data": jnp.asarray(index)}):
        return numpyro.plate("data", size, subsample_size=len(index), dim=-1)


def _plate_size(x: Array | None, index: Any, num_data: int | None, name: str = "x") -> int:
    """Data in the plate: those of `x`, or `num_data` with the rows `index`, or without `x`."""
    if index is not None:
        if num_data is None or (x is not None and len(x) != len(index)):
            raise ValueError(
                "`index` says which rows of `num_data` the data in `x` are, one each; got "
                f"{len(index)} rows, num_data={num_data} and "
                f"{'no x' if x is None else f'x of shape {x.shape}'}."
            )
        return num_data
    if x is None and num_data is None:
        raise ValueError(
            f"Without `{name}` the model must be told `num_data`, how many data to sample."
        )
    size = num_data if x is None else len(x) if x.ndim else 0
    if not size or size < 1 or num_data not in (None, size):
        found = f"num_data={num_data}" if x is None else f"{name} of shape {x.shape}"
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


def _check_data(x: Array, event_shape: Sequence[int]) -> None:
    """Whether the data are what the decoder makes."""
    if x.shape[1:] != tuple(event_shape):
        raise ValueError(
            f"`x` must have shape (data, {', '.join(map(str, event_shape))}) to be observed at "
            f'site "x"; got {x.shape}. Reshape the data, or give the decoder that '
            "`output_shape`."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f'`x` at site "x" must hold floating-point numbers; got {x.dtype}. Convert it first, '
            "as in x.astype(float) / 255 or (x > 127).astype(float)."
        )
