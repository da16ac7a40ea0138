"""Priors p(z): what a model knows of the latents of a datum before it sees the datum."""

import math
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Integer
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import (
    AutoregressiveCategorical,
    Categorical,
    UniformCategorical,
    precise,
)
from pyro_dvae.models.closed_forms import ClosedForm, Learn, check_learn, logit_of_mean
from pyro_dvae.nets import CausalTransformer
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["AutoregressivePrior", "BernoulliPrior", "CategoricalPrior", "Prior", "UniformPrior"]


@runtime_checkable
class Prior(Protocol):
    """What a model asks of a prior.

    It may have an attribute `closed_form` beside, see `ClosedForm`.
    """

    def __call__(self) -> Distribution:
        """The distribution of the site "z" of one datum: batch shape (), event shape (L,)."""


class UniformPrior(nn.Module):
    """Independent codes, each uniform over its values: nothing to learn.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    like: Tensor

    @checked
    def __init__(self, num_latents: int, num_codes: int) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        self.num_codes = num_codes
        self.register_buffer("like", torch.zeros(num_latents), persistent=False)

    def forward(self) -> Distribution:
        """The distribution of "z", event shape (L,)."""
        return UniformCategorical(self.num_codes, self.like).to_event(1)


class CategoricalPrior(nn.Module):
    """Independent codes, each with probabilities of its own to learn; they start uniform.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
    """

    @checked
    def __init__(self, num_latents: int, num_codes: int) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        self.num_codes = num_codes
        self.logits = nn.Parameter(torch.zeros(num_latents, num_codes))

    def forward(self) -> Distribution:
        """The distribution of "z", event shape (L,)."""
        return Categorical(logits=self.logits).to_event(1)


class AutoregressivePrior(nn.Module):
    """Codes drawn one after the other by a causal transformer, given a class if there are any.

    Args:
        transformer: `CausalTransformer` with cross_attention=False, or True with classes.
        num_classes: Classes, whose embeddings are the context; None for a prior of all data. The
            labels are arguments of the model.

    Raises:
        ValueError: If `transformer` does not take what the prior has for a context.
    """

    @checked
    def __init__(self, transformer: CausalTransformer, *, num_classes: int | None = None) -> None:
        super().__init__()
        check_counts(num_classes=num_classes)
        _check_attention(transformer.cross_attention, num_classes)
        self.transformer, self.num_classes = transformer, num_classes
        width = transformer.embed_dim
        self.classes = None if num_classes is None else nn.Embedding(num_classes, width)

    def forward(self, labels: Integer[Tensor, "*batch"] | None = None) -> Distribution:
        """The distribution of "z", event shape (L,), one for each label."""
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

    Raises:
        ValueError: If `probability` or `learn` is out of its range.
    """

    @checked
    def __init__(self, num_latents: int, *, probability: float = 0.5, learn: Learn = False) -> None:
        super().__init__()
        check_counts(num_latents=num_latents)
        check_learn(learn)
        if not 0.0 < probability < 1.0:
            raise ValueError(f"`probability` must be strictly in (0, 1); got {probability}.")
        logits = torch.full((num_latents,), math.log(probability / (1.0 - probability)))
        self.learn = learn
        self.logits = nn.Parameter(logits) if learn is True else nn.Buffer(logits)

    def forward(self) -> Distribution:
        """The distribution of "z", event shape (L,)."""
        return dist.Bernoulli(logits=precise(self.logits)).to_event(1)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``probability = mean of z``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.logits, lambda _, value: value, logit_of_mean)


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
