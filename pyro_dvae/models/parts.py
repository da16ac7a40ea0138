"""The parts of a discrete VAE beside its networks: priors, likelihoods, closed forms.

- a prior is a module that returns a distribution over "z" with event dim 1, when called;
- a likelihood is a module that maps the decoder's outputs and the number of event dims to
  a distribution over "x".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from pyro_dvae.distributions import AutoregressiveCategorical, Categorical
from pyro_dvae.nets import CausalTransformer

__all__ = [
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "BernoulliPrior",
    "CategoricalPrior",
    "ClosedForm",
    "GaussianLikelihood",
    "UniformPrior",
]

_RAREST = 0.01  # least and, from one, greatest mean of a binary entry that outputs start at


class ClosedForm(NamedTuple):
    """How a site's parameter follows from a posterior, for ``infer={"closed_form": ...}``.

    A loss that knows its posterior over all data (`infer.Truncated_ELBO`) then sets the parameter
    whenever it has seen all N data; other losses leave it as it is.
    """

    target: Tensor  # the buffer that holds the parameter
    statistic: Callable[[Any, Tensor], Tensor]  # of (distribution, value), for each entry
    solve: Callable[[Tensor, Tensor, Tensor], Tensor]  # (total, count, old) -> new parameter:


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

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
        """Outputs at which x has this mean, which is kept in [0.01, 0.99]."""
        return torch.logit(mean, eps=_RAREST)


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

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
        """Outputs at which x has this mean: the mean."""
        return mean

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


def _precise(outputs: Tensor) -> Tensor:
    """At least float32: half precision is for networks, not for log-densities."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _clamped(probs: Tensor) -> Tensor:
    """Probabilities whose logits are finite."""
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp(eps, 1.0 - eps)


def _logit_of_mean(total: Tensor, count: Tensor, old: Tensor) -> Tensor:
    return torch.where(count > 0, _clamped(total / count).logit(), old)


def _check_learn(learn: bool | str) -> None:
    if learn not in (True, False, "closed_form"):
        raise ValueError(f'`learn` must be True, False or "closed_form"; got {learn!r}.')


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
