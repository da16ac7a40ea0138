"""Priors p(z): what a model knows of the latents of a datum before it sees the datum."""

import math
from dataclasses import KW_ONLY
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import linen as nn
from jaxtyping import Array, Float, Integer
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import (
    AutoregressiveCategorical,
    Categorical,
    UniformCategorical,
    precise,
)
from numpyro_dvae.models.closed_forms import ClosedForm, Learn, check_learn, logit_of_mean
from numpyro_dvae.nets import CausalTransformer, register
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["AutoregressivePrior", "BernoulliPrior", "CategoricalPrior", "Prior", "UniformPrior"]


@runtime_checkable
class Prior(Protocol):
    """What a model asks of a prior.

    It may have methods `closed_form` and `start` beside, see `ClosedForm` and `BernoulliPrior`; it
    is then called with the parameter that has the closed form.
    """

    def __call__(self) -> Distribution:
        """The distribution of the site "z" of one datum: batch shape (), event shape (L,)."""


@checked
class UniformPrior(nn.Module):
    """Independent codes, each uniform over its values: nothing to learn.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    num_latents: int
    num_codes: int

    def __post_init__(self) -> None:
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        super().__post_init__()

    def __call__(self) -> Distribution:
        """The distribution of "z", event shape (L,)."""
        return UniformCategorical(self.num_codes, jnp.zeros(self.num_latents)).to_event(1)


@checked
class CategoricalPrior(nn.Module):
    """Independent codes, each with probabilities of its own to learn; they start uniform.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    num_latents: int
    num_codes: int

    def __post_init__(self) -> None:
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        super().__post_init__()

    @nn.compact
    def __call__(self) -> Distribution:
        """The distribution of "z", event shape (L,)."""
        shape = self.num_latents, self.num_codes
        logits = self.param("logits", lambda _: jnp.zeros(shape, jnp.float32))
        return Categorical(logits=logits).to_event(1)


class AutoregressivePrior:
    """Codes drawn one after the other by a causal transformer, given a class if there are any.

    Parameters: "model.prior.transformer$params", and "model.prior.classes$params" with classes.

    Args:
        transformer: `CausalTransformer` with cross_attention=False, or True with classes.
        num_classes: Classes, whose embeddings are the context; None for a prior of all data. The
            labels are arguments of the model.

    Raises:
        ValueError: If `transformer` does not take what the prior has for a context.
    """

    @checked
    def __init__(self, transformer: CausalTransformer, *, num_classes: int | None = None) -> None:
        check_counts(num_classes=num_classes)
        _check_attention(transformer.cross_attention, num_classes)
        self.transformer, self.num_classes = transformer, num_classes
        self.classes: nn.Module | None = None
        if num_classes is not None:
            start = nn.initializers.normal(1.0)
            self.classes = nn.Embed(num_classes, transformer.embed_dim, embedding_init=start)

    def __call__(self, labels: Integer[Array | np.ndarray, "*batch"] | None = None) -> Distribution:
        """The distribution of "z", event shape (L,), one for each label."""
        _check_labels(labels is not None, self.num_classes)
        context: Array | None = None
        batch: tuple[int, ...] = ()
        if labels is not None:
            labels = jnp.asarray(labels)
            context = register("model.prior.classes", self.classes, labels)(labels)[..., None, :]
            batch = labels.shape
        codes = jnp.zeros((*batch, self.transformer.num_latents), int)
        transformer = register("model.prior.transformer", self.transformer, codes, context)
        return AutoregressiveCategorical(transformer, context)


@checked
class BernoulliPrior(nn.Module):
    """Independent binary latents.

    Args:
        num_latents: Latents per datum, L.
        probability: That of a 1, in (0, 1); where it starts if learnt.
        learn: Whether each latent's probability is learnt; "closed_form" sets it to the mean of
            the posterior, see `ClosedForm`. It is then in the mutable state "model.prior$logits".

    Raises:
        ValueError: If `probability` or `learn` is out of its range.
    """

    num_latents: int
    _: KW_ONLY
    probability: float = 0.5
    learn: Learn = False

    def __post_init__(self) -> None:
        check_counts(num_latents=self.num_latents)
        check_learn(self.learn)
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"`probability` must be strictly in (0, 1); got {self.probability}.")
        super().__post_init__()

    def __call__(self, held: Float[Array, " L"] | None = None) -> Distribution:
        """The distribution of "z", event shape (L,); `held` are the logits of the closed form."""
        logits = self.start() if held is None else held
        if self.learn is True:
            logits = self._learnt(logits)
        return dist.Bernoulli(logits=precise(logits)).to_event(1)

    def start(self) -> Float[Array, " L"]:
        """The logits at first."""
        logit = math.log(self.probability / (1.0 - self.probability))
        return jnp.full((self.num_latents,), logit)

    def closed_form(self, name: str) -> ClosedForm | None:
        """``probability = mean of z`` of the prior of this name, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(f"{name}$logits", lambda _, value: value, logit_of_mean)

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("logits", lambda _: start.astype(jnp.float32))


def _check_attention(cross_attention: bool, num_classes: int | None) -> None:
    """Whether a prior's transformer takes what the prior has for a context."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, or None; got {num_classes}.")
    if cross_attention != (num_classes is not None):
        raise ValueError(
            f"`transformer` must have cross_attention={num_classes is not None} with "
            f"num_classes={num_classes}; got cross_attention={cross_attention}."
        )


def _check_labels(are_given: bool, num_classes: int | None) -> None:
    if are_given != (num_classes is not None):
        raise ValueError(
            f"`labels` must be {'given' if num_classes else 'None'} for a prior with "
            f"num_classes={num_classes}."
        )
