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

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped
from numpyro.distributions import Distribution
from numpyro.handlers import substitute
from numpyro.primitives import mutable

from numpyro_dvae.distributions import AutoregressiveCategorical, Categorical
from numpyro_dvae.nets import CausalTransformer, MLPDecoder, register

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


class ClosedForm(NamedTuple):
    """How a site's parameter follows from a posterior, for ``infer={"closed_form": ...}``.

    A loss that knows its posterior over all data (`infer.Truncated_ELBO`) then sets the parameter
    whenever it has seen all N data; other losses leave it as it is.
    """

    target: str  # the name of the mutable state that holds the parameter
    statistic: Callable[[Any, Array], Array]  # of (distribution, value), for each entry
    solve: Callable[[Array, Array, Array], Array]  # (total, count, old) -> new parameter:
    # total and count are of the shape of a datum, sums over the data that no mask takes out of the
    # statistic's posterior mean and of 1


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


class UniformPrior(nn.Module):
    """Independent codes, each uniform over its values: nothing to learn.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    num_latents: int
    num_codes: int

    def __call__(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return Categorical(logits=jnp.zeros((self.num_latents, self.num_codes))).to_event(1)


class CategoricalPrior(nn.Module):
    """Independent codes, each with learnt probabilities; they start uniform.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    num_latents: int
    num_codes: int

    @nn.compact
    def __call__(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        shape = self.num_latents, self.num_codes
        logits = self.param("logits", lambda _: jnp.zeros(shape, jnp.float32))
        return Categorical(logits=logits).to_event(1)


class AutoregressivePrior:
    """Codes drawn one after the other by a causal transformer, given a class if there are any.

    Parameters: "model.prior.transformer$params", and "model.prior.classes$params" with classes.

    Args:
        transformer: `CausalTransformer` with cross_attention=False, or True with classes.
        num_classes: Classes, whose embeddings are the context; None for a prior of all data, the
            only kind that a `DiscreteVAE` takes.
    """

    def __init__(self, transformer: CausalTransformer, *, num_classes: int | None = None) -> None:
        _check_attention(transformer.cross_attention, num_classes)
        self.transformer, self.num_classes = transformer, num_classes

    def __call__(self, labels: Integer[Array | np.ndarray, "*batch"] | None = None) -> Distribution:
        """The prior over "z", event shape (L,), one for each label."""
        _check_labels(labels is not None, self.num_classes)
        context: Array | None = None
        batch: tuple[int, ...] = ()
        if labels is not None and self.num_classes is not None:
            labels, width = jnp.asarray(labels), self.transformer.embed_dim
            classes = nn.Embed(self.num_classes, width, embedding_init=nn.initializers.normal(1.0))
            context = register("model.prior.classes", classes, labels)(labels)[..., None, :]
            batch = labels.shape
        codes = jnp.zeros((*batch, self.transformer.num_latents), int)
        transformer = register("model.prior.transformer", self.transformer, codes, context)
        return AutoregressiveCategorical(transformer, context)


class BernoulliPrior(nn.Module):
    """Independent binary latents.

    Args:
        num_latents: Latents per datum, L.
        probability: That of a 1, in (0, 1); where it starts if learnt.
        learn: Whether each latent's probability is learnt; "closed_form" sets it to the mean of
            the posterior, see `ClosedForm`. It is then in the mutable state "model.prior$logits".
    """

    num_latents: int
    _: KW_ONLY
    probability: float = 0.5
    learn: bool | Literal["closed_form"] = False

    def __post_init__(self) -> None:
        _check_learn(self.learn)
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"`probability` must be strictly in (0, 1); got {self.probability}.")
        super().__post_init__()

    def __call__(self, kept: Float[Array, " L"] | None = None) -> Distribution:
        """The prior over "z", event shape (L,); `kept` are logits that have a closed form."""
        logits = self.start() if kept is None else kept
        if self.learn is True:
            logits = self._learnt(logits)
        return dist.Bernoulli(logits=logits).to_event(1)

    def start(self) -> Float[Array, " L"]:
        """The logits at first."""
        logit = math.log(self.probability / (1.0 - self.probability))
        return jnp.full((self.num_latents,), logit)

    def closed_form(self, target: str) -> ClosedForm:
        """``probability = mean of z``."""
        return ClosedForm(f"{target}$logits", lambda _, value: value, _logit_of_mean)

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("logits", lambda _: start.astype(jnp.float32))


class BernoulliLikelihood(nn.Module):
    """Binary data; the decoder's outputs are logits."""

    def __call__(self, outputs: Array, event_dim: int) -> Distribution:
        """p(x | z) with the last `event_dim` dims independent."""
        return dist.Bernoulli(logits=_precise(outputs)).to_event(event_dim)


class GaussianLikelihood(nn.Module):
    """Real data; the decoder's outputs are means, the variance is a parameter.

    Args:
        variance: Where the variance starts.
        shape: Its shape, which broadcasts against a datum: () for one variance, the shape of
            a datum for one per pixel.
        bounds: Least and greatest variance, kept by a sigmoid on the log scale (gradients
            vanish towards the bounds and nowhere else); None leaves it free. Published for
            ImageNet: (0.01, 1).
        learn: Whether the variance is learnt; "closed_form" sets it to the posterior's mean
            square error, within the bounds, see `ClosedForm`. It is then in the mutable state
            "model.likelihood$raw".
    """

    _: KW_ONLY
    variance: float = 0.5
    shape: Sequence[int] = ()
    bounds: tuple[float, float] | None = None
    learn: bool | Literal["closed_form"] = True

    def __post_init__(self) -> None:
        _check_learn(self.learn)
        object.__setattr__(self, "shape", tuple(self.shape))
        low, high = (0.0, math.inf) if self.bounds is None else self.bounds
        if not 0.0 <= low < self.variance < high:
            raise ValueError(
                f"`variance` must lie strictly between the `bounds`, at least (0, inf); got "
                f"{self.variance} and {self.bounds}."
            )
        super().__post_init__()

    def __call__(
        self, outputs: Array, event_dim: int, kept: Float[Array, "*shape"] | None = None
    ) -> Distribution:
        """p(x | z) with the last `event_dim` dims independent; `kept` has a closed form."""
        event_shape = outputs.shape[outputs.ndim - event_dim :]
        raw = self.start() if kept is None else kept
        if self.learn is True:
            raw = self._learnt(raw)
        scale = jnp.broadcast_to(jnp.sqrt(self._variance(raw)), event_shape)
        return dist.Normal(_precise(outputs), scale).to_event(event_dim)

    def start(self) -> Float[Array, "*shape"]:
        """The raw parameter at first."""
        return _raw(jnp.full(self.shape, self.variance), self.bounds)

    def closed_form(self, target: str) -> ClosedForm:
        """``variance = mean of (x - mean)^2``."""

        def solve(total: Array, count: Array, old: Array) -> Array:
            total, count = _sum_to(total, old.shape), _sum_to(count, old.shape)
            return jnp.where(count > 0, _raw(total / count, self.bounds), old)

        return ClosedForm(f"{target}$raw", lambda fn, x: jnp.square(x - fn.mean), solve)

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("raw", lambda _: start.astype(jnp.float32))

    def _variance(self, raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The variance that the raw parameter stands for."""
        if self.bounds is None:
            return jnp.exp(raw)
        low, high = (math.log(bound) for bound in self.bounds)
        return jnp.exp(low + (high - low) * nn.sigmoid(raw))


def mnist_vae() -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images."""
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256))
    return DiscreteVAE(decoder, UniformPrior(8, 256), BernoulliLikelihood())


def _batch_of_codes(z: Array) -> Sequence[int]:
    return z.shape[:-1]


def _precise(outputs: Array) -> Array:
    """At least float32: half precision is for networks, not for log-densities."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _raw(
    variance: Float[Array, "*shape"], bounds: tuple[float, float] | None
) -> Float[Array, "*shape"]:
    """The raw parameter that gives `variance`, or the bound next to it."""
    if bounds is None:
        return jnp.log(variance)
    low, high = (math.log(bound) for bound in bounds)
    fraction = _clamped((jnp.log(variance) - low) / (high - low))
    return jnp.log(fraction) - jnp.log1p(-fraction)


def _clamped(probs: Array) -> Array:
    """Probabilities whose logits are finite."""
    eps = jnp.finfo(probs.dtype).eps
    return jnp.clip(probs, eps, 1.0 - eps)


def _logit_of_mean(total: Array, count: Array, old: Array) -> Array:
    mean = _clamped(total / count)
    return jnp.where(count > 0, jnp.log(mean) - jnp.log1p(-mean), old)


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)


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


def _check_learn(learn: bool | str) -> None:
    if learn not in (True, False, "closed_form"):
        raise ValueError(f'`learn` must be True, False or "closed_form"; got {learn!r}.')


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


def _check_attention(cross_attention: bool, num_classes: int | None) -> None:
    """Whether a prior's transformer takes what the prior has for a context."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, or None; got {num_classes}.")
    if cross_attention != (num_classes is not None):
        raise ValueError(
            f"`transformer` must have cross_attention={num_classes is not None} with "
            f"num_classes={num_classes}; got cross_attention={cross_attention}."
        )


def _check_labels(given: bool, num_classes: int | None) -> None:
    if given != (num_classes is not None):
        raise ValueError(
            f"`labels` must be {'given' if num_classes else 'None'} for a prior with "
            f"num_classes={num_classes}."
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
