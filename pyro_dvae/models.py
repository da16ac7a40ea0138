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

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from pyro_dvae.distributions import AutoregressiveCategorical, Categorical
from pyro_dvae.nets import CausalTransformer, MLPDecoder, register

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

    target: Tensor  # the buffer that holds the parameter
    statistic: Callable[[Any, Tensor], Tensor]  # of (distribution, value), for each entry
    solve: Callable[[Tensor, Tensor, Tensor], Tensor]  # (total, count, old) -> new parameter:
    # total and count are of the shape of a datum, sums over the data that no mask takes out of the
    # statistic's posterior mean and of 1


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


class UniformPrior(nn.Module):
    """Independent codes, each uniform over its values: nothing to learn.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    logits: Tensor

    def __init__(self, num_latents: int, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(num_latents, num_codes), persistent=False)

    def forward(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return Categorical(logits=self.logits).to_event(1)


class CategoricalPrior(nn.Module):
    """Independent codes, each with learnt probabilities; they start uniform.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    def __init__(self, num_latents: int, num_codes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_latents, num_codes))

    def forward(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return Categorical(logits=self.logits).to_event(1)


class AutoregressivePrior(nn.Module):
    """Codes drawn one after the other by a causal transformer, given a class if there are any.

    Args:
        transformer: `CausalTransformer` with cross_attention=False, or True with classes.
        num_classes: Classes, whose embeddings are the context; None for a prior of all data, the
            only kind that a `DiscreteVAE` takes.
    """

    def __init__(self, transformer: CausalTransformer, *, num_classes: int | None = None) -> None:
        super().__init__()
        _check_attention(transformer.cross_attention, num_classes)
        self.transformer, self.num_classes = transformer, num_classes
        width = transformer.embed_dim
        self.classes = None if num_classes is None else nn.Embedding(num_classes, width)

    def forward(self, labels: Integer[Tensor, "*batch"] | None = None) -> Distribution:
        """The prior over "z", event shape (L,), one for each label."""
        _check_labels(labels is not None, self.num_classes)
        if self.classes is None or labels is None:
            return AutoregressiveCategorical(self.transformer)
        context = self.classes(labels.long())[..., None, :]
        return AutoregressiveCategorical(self.transformer, context)


class BernoulliPrior(nn.Module):
    """Independent binary latents.

    Args:
        num_latents: Latents per datum, L.
        probability: That of a 1, in (0, 1); where it starts if learnt.
        learn: Whether each latent's probability is learnt; "closed_form" sets it to the mean of
            the posterior, see `ClosedForm`.
    """

    def __init__(
        self,
        num_latents: int,
        *,
        probability: float = 0.5,
        learn: bool | Literal["closed_form"] = False,
    ) -> None:
        super().__init__()
        _check_learn(learn)
        if not 0.0 < probability < 1.0:
            raise ValueError(f"`probability` must be strictly in (0, 1); got {probability}.")
        logits = torch.full((num_latents,), math.log(probability / (1.0 - probability)))
        self.learn = learn
        self.logits = nn.Parameter(logits) if learn is True else nn.Buffer(logits)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``probability = mean of z``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.logits, lambda _, value: value, _logit_of_mean)

    def forward(self) -> Distribution:
        """The prior over "z", event shape (L,)."""
        return dist.Bernoulli(logits=self.logits).to_event(1)


class BernoulliLikelihood(nn.Module):
    """Binary data; the decoder's outputs are logits."""

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
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
            square error, within the bounds, see `ClosedForm`.
    """

    def __init__(
        self,
        *,
        variance: float = 0.5,
        shape: Sequence[int] = (),
        bounds: tuple[float, float] | None = None,
        learn: bool | Literal["closed_form"] = True,
    ) -> None:
        super().__init__()
        _check_learn(learn)
        low, high = (0.0, math.inf) if bounds is None else bounds
        if not 0.0 <= low < variance < high:
            raise ValueError(
                f"`variance` must lie strictly between the `bounds`, at least (0, inf); got "
                f"{variance} and {bounds}."
            )
        self.bounds, self.learn = bounds, learn
        raw = self._raw(torch.full(tuple(shape), variance))
        self.raw = nn.Parameter(raw) if learn is True else nn.Buffer(raw)

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """The variance now."""
        if self.bounds is None:
            return self.raw.exp()
        low, high = (math.log(bound) for bound in self.bounds)
        return (low + (high - low) * functional.sigmoid(self.raw)).exp()

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z) with the last `event_dim` dims independent."""
        scale = self.variance.sqrt().expand(outputs.shape[outputs.dim() - event_dim :])
        return dist.Normal(_precise(outputs), scale).to_event(event_dim)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``variance = mean of (x - mean)^2``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.raw, lambda fn, x: (x - fn.mean).square_(), self._raw_of_mean)

    def _raw_of_mean(self, total: Tensor, count: Tensor, old: Tensor) -> Tensor:
        """The raw parameter of the mean square error; the old one where nothing is observed."""
        total, count = total.sum_to_size(old.shape), count.sum_to_size(old.shape)
        return torch.where(count > 0, self._raw(total / count), old)

    def _raw(self, variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The raw parameter that gives `variance`, or the bound next to it."""
        if self.bounds is None:
            return variance.log()
        low, high = (math.log(bound) for bound in self.bounds)
        fraction = (variance.log() - low) / (high - low)
        return _clamped(fraction).logit()


def mnist_vae() -> DiscreteVAE:
    """The published MNIST model [1]: 8 codes of 256 values, binary 28 x 28 images."""
    decoder = MLPDecoder(8, 256, (28, 28), embed_dim=64, hidden=(64, 256))
    return DiscreteVAE(decoder, UniformPrior(8, 256), BernoulliLikelihood())


def _batch_of_codes(z: Tensor) -> Sequence[int]:
    return z.shape[:-1]


def _precise(outputs: Tensor) -> Tensor:
    """At least float32: half precision is for networks, not for log-densities."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _clamped(probs: Tensor) -> Tensor:
    """Probabilities whose logits are finite."""
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp(eps, 1.0 - eps)


def _logit_of_mean(total: Tensor, count: Tensor, old: Tensor) -> Tensor:
    return torch.where(count > 0, _clamped(total / count).logit(), old)


def _asking(part: nn.Module) -> Any:
    """What a site's `infer` says of a prior or likelihood of any make."""
    form = getattr(part, "closed_form", None)
    return {} if form is None else {"closed_form": form}


def _check_learn(learn: bool | str) -> None:
    if learn not in (True, False, "closed_form"):
        raise ValueError(f'`learn` must be True, False or "closed_form"; got {learn!r}.')


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
