"""Discrete variational autoencoders as NumPyro models: a prior, a decoder, a likelihood.

`DiscreteVAE` has the sites "z" (the latents of a datum, event dim 1) and "x" (the datum) under the
plate "data" at dim -1. `Prior`, `Decoder` and `Likelihood` say what it asks of its parts, so that a
learnt prior or another likelihood is a matter of passing it in.

Parameters live outside, as everywhere in NumPyro: "model.decoder$params", and "model.prior$params"
and "model.likelihood$params" where those have any. `SVI` makes them; with trained ones, run
``numpyro.handlers.substitute(model.reconstruct, data=params)(z)``.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026. Table of networks and settings for MNIST.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped
from numpyro.distributions import Distribution, constraints
from numpyro.primitives import mutable

from numpyro_dvae.models.closed_forms import ClosedForm
from numpyro_dvae.models.likelihoods import BernoulliLikelihood, Likelihood
from numpyro_dvae.models.plates import data_plate, plate_size
from numpyro_dvae.models.priors import Prior, UniformPrior
from numpyro_dvae.nets import MLPDecoder, register
from numpyro_dvae.nets.inputs import check_codes, check_floats
from numpyro_dvae.nets.registration import own_name

__all__ = ["CodeModel", "Decoder", "DiscreteVAE", "mnist_vae"]


@runtime_checkable
class Decoder(Protocol):
    """What a model asks of a decoder.

    One that takes relaxed codes ``(*batch, L, V)`` beside codes has a method ``batch_shape(z)``
    that tells which of the dims of `z` are the batch's, as `nets.MLPDecoder`.
    """

    def __call__(self, z: Array) -> Array:
        """Outputs ``(*batch, *outputs)`` of codes ``(*batch, L)``, as the likelihood reads."""


class DiscreteVAE:
    """Model ``p(z) p(x | z)`` of data with discrete latents.

    Call it as ``model(x)`` to condition on data, as ``model(x, index, num_data)`` on a minibatch,
    rows `index` of `num_data`, or as ``model(num_data=10)`` to sample from it. Where the mask
    `observed`, of the shape of `x`, is False, `x` is missing and leaves the likelihood. A prior of
    classes takes `labels`, one for each datum: ``model(num_data=3, labels=...)`` draws of classes.

    Args:
        decoder: Network from codes ``(*batch, L)`` to outputs ``(*batch, *outputs)``: what the
            likelihood reads, of whatever shape, as means and scales ``(*shape of x, 2)``.
        prior: Returns p(z) when called, as `UniformPrior`.
        likelihood: Turns outputs into p(x | z), as `BernoulliLikelihood`.

    Each is a flax module, or a callable without parameters.
    """

    def __init__(self, decoder: Decoder, prior: Prior, likelihood: Likelihood) -> None:
        _check_codes(decoder, prior)
        self.decoder, self.prior, self.likelihood = decoder, prior, likelihood

    def __call__(
        self,
        x: Shaped[Array | np.ndarray, "B *event"] | None = None,
        index: Int[Array | np.ndarray, "B"] | None = None,
        num_data: int | None = None,
        observed: Bool[Array | np.ndarray, "B *event"] | None = None,
        labels: Integer[Array | np.ndarray, "rows"] | None = None,
    ) -> Shaped[Array, "*particles_B_event"]:
        """Sample the sites "z" and, unless given, "x".

        Args:
            x: Data; floating-point numbers, or integers where the likelihood is of such.
            index: Which of all data those in `x` are; None if they are all.
            num_data: The number of all data, of a minibatch or to be sampled.
            observed: Where `x` is there; None is everywhere.
            labels: The class of each datum, for a prior of classes.

        Returns:
            The value of "x".

        Raises:
            ValueError: If arguments, parts and data do not fit together.
        """
        x = None if x is None else jnp.asarray(x)
        inputs = _held("model.prior", self.prior) if labels is None else (labels,)
        prior = register("model.prior", self.prior)(*inputs)
        size = plate_size(x, index, num_data, "x")
        _check_labels(labels, size if index is None else len(index))
        with data_plate(size, index):
            z = numpyro.sample("z", prior, infer=_infer({"model.prior": self.prior}))
            z = jnp.asarray(z)
            _check_length(z.shape[len(self._batch(z)) :], prior.event_shape)
            outputs, event_dim = self._outputs(z)
            likelihood = self._likelihood(outputs, event_dim)
            if x is not None:
                _check_data(x, likelihood)
            if observed is not None:
                likelihood = _masked(likelihood, jnp.asarray(observed))
                x = None if x is None else jnp.where(observed, x, jnp.zeros_like(x))
            parts = {"model.likelihood": self.likelihood, "model.decoder": self.decoder}
            return numpyro.sample("x", likelihood, obs=x, infer=_infer(parts))

    @property
    def num_codes(self) -> int | None:
        """Values of a latent, V, where the decoder or the prior tells."""
        return _codes_of_decoder(self.decoder) or _codes_of_prior(self.prior)

    def reconstruct(
        self, z: Shaped[Array | np.ndarray, "*batch L"]
    ) -> Shaped[Array, "*batch_event"]:
        """The mean of p(x | z), ``(*batch, *shape of x)``; of categories, the most likely ones."""
        return _mean(self._likelihood(*self._outputs(jnp.asarray(z))))

    def _likelihood(self, outputs: Array, event_dim: int) -> Distribution:
        inputs = (outputs, event_dim, *_held("model.likelihood", self.likelihood))
        return register("model.likelihood", self.likelihood, *inputs)(*inputs)

    def _outputs(self, z: Array) -> tuple[Array, int]:
        """The decoder's outputs and how many of their dims make one datum."""
        inputs = (z, *_held("model.decoder", self.decoder))
        outputs = register("model.decoder", self.decoder, *inputs)(*inputs)
        batch = self._batch(z)
        if outputs.shape[: len(batch)] != batch:
            raise ValueError(
                f"`decoder` must map codes {z.shape} to outputs that begin with the batch "
                f"shape {batch}; got {outputs.shape}. Let it keep all leading dims."
            )
        return outputs, outputs.ndim - len(batch)

    def _batch(self, z: Array) -> Sequence[int]:
        """The leading dims of codes, or of relaxed codes."""
        return getattr(self.decoder, "batch_shape", _batch_of_codes)(z)


class CodeModel:
    """A prior alone, with the site "z" under the plate "data": fit it to the codes of data.

    This is the second stage of a VQ-VAE. Its parameters have the names of those of a `DiscreteVAE`
    with the same prior. Call it as ``model(codes)``, or ``model(num_data=10)`` for samples.

    Args:
        prior: Returns p(z) when called, with labels if it is an `AutoregressivePrior` of classes.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    def __call__(
        self,
        codes: Shaped[Array | np.ndarray, "B L"] | None = None,
        labels: Integer[Array | np.ndarray, "B"] | None = None,
        *,
        num_data: int | None = None,
    ) -> Shaped[Array, "*particles_B L"]:
        """Sample or observe the site "z".

        Args:
            codes: Codes of data; None to sample some.
            labels: The class of each datum, for a prior of classes.
            num_data: How many data to sample.

        Returns:
            The value of "z".

        Raises:
            ValueError: If the codes are not as many as the prior's, or no codes of it; or if their
                number is not told.
        """
        codes = None if codes is None else jnp.asarray(codes)
        prior = register("model.prior", self.prior)
        prior = prior() if labels is None else prior(labels)
        if codes is not None:
            _check_length(codes.shape[1:], prior.event_shape)
            check_codes(codes, _codes_of_prior(self.prior), "codes")
        with data_plate(plate_size(codes, None, num_data, "codes"), None):
            return numpyro.sample("z", prior, obs=codes)


def mnist_vae(mean: Float[Array | np.ndarray, "28 28"] | None = None) -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images.

    Args:
        mean: The mean of the training images, which the decoder then starts at.
    """
    likelihood = BernoulliLikelihood()
    start = None if mean is None else likelihood.link(mean)
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256), start=start)
    return DiscreteVAE(decoder, UniformPrior(8, 256), likelihood)


def _batch_of_codes(z: Array) -> Sequence[int]:
    return z.shape[:-1]


def _infer(parts: Mapping[str, Any]) -> Any:
    """What a site's `infer` says of prior, likelihood or decoder, which may be of any make."""
    forms = (_closed_form(name, part) for name, part in parts.items())
    found = tuple(form for form in forms if form is not None)
    return {"closed_form": found} if found else {}


def _held(name: str, part: Any) -> tuple[Array, ...]:
    """The parameter of a part that has a closed form: it is in the mutable state.

    Where it is held already, its start stays out of the program that is compiled: a program of
    another start is then the same.
    """
    form = _closed_form(name, part)
    if form is None:
        return ()
    held = mutable(form.target)
    return (mutable(form.target, part.start()) if held is None else held,)


def _closed_form(name: str, part: Any) -> ClosedForm | None:
    form_of = getattr(part, "closed_form", None)
    return None if form_of is None else form_of(own_name(part, name))


def _masked(likelihood: Distribution, observed: Array) -> Distribution:
    """The likelihood with an entry for every observed cell of a datum."""
    if not isinstance(likelihood, dist.Independent):
        raise ValueError(
            "`observed` masks the entries of a datum, which the likelihood must hold as "
            f"independent, by .to_event(n); got {type(likelihood).__name__}."
        )
    base, event_dim = likelihood.base_dist, likelihood.reinterpreted_batch_ndims
    return base.mask(observed).to_event(event_dim)


def _check_codes(decoder: Any, prior: Any) -> None:
    """Whether the prior is of the codes that the decoder's codebook has, where both tell."""
    wanted, found = _codes_of_decoder(decoder), _codes_of_prior(prior)
    if wanted is not None and found is not None and found != wanted:
        raise ValueError(
            f"`prior` is of {found} codes, but the codebook of `decoder` has {wanted}. Give both "
            "the same number."
        )


def _codes_of_decoder(decoder: Any) -> int | None:
    """Those of its codebook, where it has one."""
    return getattr(getattr(decoder, "codebook", None), "num_codes", None)


def _codes_of_prior(prior: Any) -> int | None:
    """Those of its transformer, where it has one."""
    return getattr(getattr(prior, "transformer", prior), "num_codes", None)


def _check_length(found: Sequence[int], wanted: Sequence[int]) -> None:
    """Whether the latents that were sampled or given are as many as the prior's."""
    if tuple(found[:1]) != tuple(wanted):
        raise ValueError(
            f'`prior` at site "z" is of {wanted[0]} latents, but the codes are {found[0]} per '
            "datum. Give prior, guide and decoder the same number of latents."
        )


def _check_labels(labels: Any, num_rows: int) -> None:
    """Whether there is one label for each datum of the batch."""
    if labels is not None and tuple(labels.shape) != (num_rows,):
        raise ValueError(
            f"`labels` must be one for each of {num_rows} data; got shape {tuple(labels.shape)}."
        )


def _check_data(x: Array, likelihood: Distribution) -> None:
    """Whether the data are what the likelihood is of."""
    event_shape = tuple(likelihood.event_shape)
    if x.shape[1:] != event_shape:
        raise ValueError(
            f"`x` must have shape (data, {', '.join(map(str, event_shape))}) to be observed at "
            f'site "x"; got {x.shape}. Reshape the data (are channels last?), or '
            "give the decoder that output shape."
        )
    if not _is_of_integers(likelihood):
        check_floats(x, '`x` at site "x"')


def _is_of_integers(likelihood: Distribution) -> bool:
    """Whether the values of a distribution are integers, beyond 0 and 1."""
    support: Any = likelihood.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support.is_discrete and not isinstance(support, type(constraints.boolean))


def _mean(likelihood: Distribution) -> Array:
    """The mean, or the most likely value of entries that are categories, which have none."""
    fn: Any = likelihood
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.CategoricalLogits | dist.CategoricalProbs):
        return jnp.argmax(fn.probs, -1)
    return likelihood.mean
