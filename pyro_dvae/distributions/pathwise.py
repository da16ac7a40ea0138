"""Discrete distributions whose draws carry a gradient to their logits.

What a draw is and how its gradient is estimated is in `ops.relaxing`. A draw is scored by the
discrete distribution that it stands for: if a relaxed draw had a density of its own, it would be
one over the simplex, and no match for the probabilities of a discrete prior.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import register_kl
from torch.nn.functional import logsigmoid, one_hot

from pyro_dvae.distributions.logits import LOGIT, LOGITS, log_softmax, precise
from pyro_dvae.ops import relaxing
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.bounds import (
    bernoulli_entropy,
    bernoulli_kl,
    categorical_entropy,
    categorical_kl,
)
from pyro_dvae.ops.sampling import sample_codes

__all__ = ["RELAXATIONS", "PathwiseBernoulli", "PathwiseCategorical"]

RELAXATIONS = ("gumbel", "straight_through_gumbel", "straight_through", "reinmax", "gr_mck")

_FROM_GUMBELS = {
    "gumbel": relaxing.gumbel_softmax,
    "straight_through_gumbel": relaxing.straight_through_gumbel,
}
_FROM_A_DRAW = {"straight_through": relaxing.straight_through, "reinmax": relaxing.reinmax}


class PathwiseCategorical(dist.TorchDistribution):
    """One of V codes, drawn as a vector over them with a path for the gradient to its logits.

    Log-probabilities are those of the discrete distribution, linear in the vector: exact for
    one-hot vectors, and never a density of relaxed ones.

    Args:
        logits: Unnormalised log-probabilities, ``(*batch, V)``; -inf rules a code out.
        method: One of `RELAXATIONS`, as `ops.relaxing` has them. Draws of "gumbel" are points of
            the simplex, those of all others one-hot vectors.
        temperature: Of the softmax that makes the path; positive.
        num_gumbels: Gumbel vectors that "gr_mck" averages for each draw; no other method has any.
        validate_args: Whether to check arguments and values; None is Pyro's own setting.

    Raises:
        ValueError: If `method` is not one of `RELAXATIONS`.
    """

    arg_constraints = {"logits": LOGITS}  # noqa: RUF012  (torch's protocol)
    support = constraints.independent(constraints.unit_interval, 1)
    has_rsample = True

    @checked
    def __init__(
        self,
        logits: Tensor,
        *,
        method: str = "gumbel",
        temperature: float | Tensor = 1.0,
        num_gumbels: int = 10,
        validate_args: bool | None = None,
    ) -> None:
        if method not in RELAXATIONS:
            raise ValueError(f"`method` must be one of {RELAXATIONS}; got {method!r}.")
        self.logits = log_softmax(logits)
        self.method, self.temperature, self.num_gumbels = method, temperature, num_gumbels
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Probabilities of the codes."""
        return self.logits.exp()

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "PathwiseCategorical":
        """A view with a larger batch shape."""
        new = self._get_checked_instance(PathwiseCategorical, _instance)
        new.logits = self.logits.expand(*batch_shape, -1)
        for name in ("method", "temperature", "num_gumbels"):
            setattr(new, name, getattr(self, name))
        shapes = torch.Size(batch_shape), self.event_shape
        dist.TorchDistribution.__init__(new, *shapes, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape ``sample_shape + batch_shape + (V,)``, with a gradient."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        logits = self.logits.expand(shape)
        if self.method in _FROM_GUMBELS:
            gumbels = -_exponentials(logits).log()
            return _FROM_GUMBELS[self.method](logits, gumbels, self.temperature)
        uniforms = self.logits.new_empty((math.prod(sample_shape), *self.batch_shape)).uniform_()
        codes = sample_codes(self.logits, uniforms).reshape(shape[:-1])
        hard = one_hot(codes, shape[-1]).to(logits.dtype)
        if self.method == "gr_mck":
            noise = _exponentials(logits.expand(self.num_gumbels, *shape))
            return relaxing.gumbel_rao(logits, hard, noise, self.temperature)
        return _FROM_A_DRAW[self.method](logits, hard, self.temperature)

    def log_prob(self, value: Tensor) -> Tensor:
        """``Σ_v value_v log p_v``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        getattr(value, "_met", []).append(self.method)  # a guide's under `relax` asks for it
        return relaxing.linear_log_prob(self.logits, value)

    def entropy(self) -> Tensor:
        """Entropy of the code, in nats."""
        return categorical_entropy(self.logits)


class PathwiseBernoulli(dist.TorchDistribution):
    """A binary latent with a path for the gradient to its logit: the second of two codes.

    Args:
        logits: Those of a 1, ``(*batch,)``.
        method: As for `PathwiseCategorical`; draws of "gumbel" lie between 0 and 1, those of all
            others are 0 or 1.
        temperature: As for `PathwiseCategorical`.
        num_gumbels: As for `PathwiseCategorical`.
        validate_args: As for `PathwiseCategorical`.

    Raises:
        ValueError: If `method` is not one of `RELAXATIONS`.
    """

    arg_constraints = {"logits": LOGIT}  # noqa: RUF012  (torch's protocol)
    support = constraints.unit_interval
    has_rsample = True

    @checked
    def __init__(
        self,
        logits: Tensor,
        *,
        method: str = "gumbel",
        temperature: float | Tensor = 1.0,
        num_gumbels: int = 10,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = precise(logits)
        pair = torch.stack([logsigmoid(-self.logits), logsigmoid(self.logits)], dim=-1)
        self._codes = PathwiseCategorical(
            pair,
            method=method,
            temperature=temperature,
            num_gumbels=num_gumbels,
            validate_args=False,
        )
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def method(self) -> str:
        """How it draws, one of `RELAXATIONS`."""
        return self._codes.method

    @property
    def mean(self) -> Tensor:
        """Probability of a 1."""
        return self.logits.sigmoid()

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "PathwiseBernoulli":
        """A view with a larger batch shape."""
        new = self._get_checked_instance(PathwiseBernoulli, _instance)
        new.logits, new._codes = self.logits.expand(*batch_shape), self._codes.expand(batch_shape)
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape ``sample_shape + batch_shape``, with a gradient."""
        return self._codes.rsample(sample_shape)[..., 1]

    def log_prob(self, value: Tensor) -> Tensor:
        """``value log p + (1 - value) log (1 - p)``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._codes.log_prob(torch.stack([1.0 - value, value], dim=-1))

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return bernoulli_entropy(self.logits)


@register_kl(PathwiseCategorical, PathwiseCategorical)
def _kl_of_categoricals(p: Any, q: Any) -> Tensor:
    return categorical_kl(*torch.broadcast_tensors(p.logits, q.logits))


@register_kl(PathwiseBernoulli, PathwiseBernoulli)
def _kl_of_bernoullis(p: Any, q: Any) -> Tensor:
    return bernoulli_kl(*torch.broadcast_tensors(p.logits, q.logits))


def _exponentials(like: Tensor) -> Tensor:
    """Standard exponential noise of a shape; its logarithm is finite."""
    noise = torch.empty(like.shape, dtype=like.dtype, device=like.device).exponential_()
    return noise.clamp(min=torch.finfo(like.dtype).tiny)
