"""The parts of a discrete VAE beside its networks: priors, likelihoods, closed forms.

- a prior is a module that returns a distribution over "z" with event dim 1, when called;
- a likelihood is a module that maps the decoder's outputs and the number of event dims to
  a distribution over "x".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import linen as nn
from jax.scipy.special import logit
from jaxtyping import Array, Float, Integer
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import AutoregressiveCategorical, Categorical
from numpyro_dvae.nets import CausalTransformer, register

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

    target: str  # the name of the mutable state that holds the parameter
    statistic: Callable[[Any, Array], Array]  # of (distribution, value), for each entry
    solve: Callable[[Array, Array, Array], Array]  # (total, count, old) -> new parameter:


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

    def link(self, mean: Float[Array | np.ndarray, "*event"]) -> Float[Array, "*event"]:
        """Outputs at which x has this mean, which is kept in [0.01, 0.99]."""
        return logit(jnp.clip(jnp.asarray(mean), _RAREST, 1.0 - _RAREST))


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
        scale = jnp.sqrt(self._variance(raw))
        if scale.ndim:  # else one for all: there is less to do than for copies of it
            scale = jnp.broadcast_to(scale, event_shape)
        return dist.Normal(_precise(outputs), scale).to_event(event_dim)

    def link(self, mean: Float[Array | np.ndarray, "*event"]) -> Float[Array, "*event"]:
        """Outputs at which x has this mean: the mean."""
        return jnp.asarray(mean)

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
