"""Codes whose distribution needs no array over all their values.

A uniform code and one that is certain are known without logits ``(*batch, V)``: where V goes into
the thousands, such arrays would be most of a step, and at 2**32 values there is no room for one.
Logits are made if asked for, as where a site is relaxed.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Integer, Shaped
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property

from pyro_dvae.distributions.logits import precise
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.refusing import refuse_gradient

__all__ = ["CertainCategorical", "UniformCategorical"]

_FINEST = 2**12  # codes that a uniform number of 24 bits tells apart; `Categorical` draws by one
_MOST_LISTED = 2**25  # codes that are put in an array
_NO_GRADIENT = (
    "The codes of a guide that quantises vectors have no gradient: its posterior is one state. "
    "Train it with VQ_ELBO, or use this loss with a guide that draws codes, as IndependentGuide."
)


class _WithoutLogits(dist.Categorical):
    """A categorical distribution that knows its number of codes, not their logits."""

    arg_constraints = {}  # noqa: RUF012  (torch's protocol)
    _names: tuple[str, ...] = ("_num_events", "_like")

    def _begin(self, num_codes: int, like: Tensor, validate_args: bool | None) -> None:
        self._num_events, self._like = num_codes, like
        dist.TorchDistribution.__init__(self, like.shape, validate_args=validate_args)

    @property
    def num_codes(self) -> int:
        """V."""
        return self._num_events

    @property
    def param_shape(self) -> torch.Size:
        """The shape of the logits."""
        return torch.Size((*self.batch_shape, self._num_events))

    @lazy_property
    def probs(self) -> Tensor:
        """Probabilities of all codes."""
        return self.logits.exp()

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Any:
        """A view with a larger batch shape."""
        new = self._get_checked_instance(type(self), _instance)
        for name in self._names:
            setattr(new, name, getattr(self, name))
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: Tensor) -> None:
        """As all distributions do; integers in the batch shape are seen to be codes by less."""
        seen = isinstance(value, Tensor) and not value.is_floating_point() and value.numel()
        if seen and value.shape[value.dim() - len(self.batch_shape) :] == self.batch_shape:
            low, high = (bound.item() for bound in value.aminmax())
            if low >= 0 and high < self._num_events:
                return
        super()._validate_sample(value)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The V codes, on a new leftmost dim."""
        _check_listed(self.num_codes)
        values = torch.arange(self._num_events, device=self._like.device)
        values = values.reshape(-1, *(1 for _ in self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class UniformCategorical(_WithoutLogits):
    """Codes of V values, each as probable as any other.

    Args:
        num_codes: V.
        like: An array of the batch shape, and of the dtype of log-densities.
        validate_args: Whether to check values; None is Pyro's own setting.

    Raises:
        ValueError: If an integer does not hold all codes.
    """

    @checked
    def __init__(
        self, num_codes: int, like: Float[Tensor, "*batch"], validate_args: bool | None = None
    ) -> None:
        _check_fits(num_codes, torch.iinfo(torch.int64).max)
        self._begin(num_codes, like, validate_args)

    @lazy_property
    def logits(self) -> Tensor:
        """Log-probabilities of all codes."""
        _check_listed(self.num_codes)
        return (
            precise(self._like).new_full((), -math.log(self._num_events)).expand(self.param_shape)
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Codes of shape ``sample_shape + batch_shape``."""
        shape, like = (*sample_shape, *self.batch_shape), precise(self._like)
        if self._num_events > _FINEST:
            return torch.randint(self._num_events, shape, device=like.device)
        uniforms = torch.rand(shape, dtype=like.dtype, device=like.device)
        return (uniforms * self._num_events).long().clamp(max=self._num_events - 1)

    def log_prob(self, value: Shaped[Tensor, "..."]) -> Tensor:
        """``-log V``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast_shape(value.shape, self.batch_shape)
        return self._filled(shape, -math.log(self._num_events))

    def entropy(self) -> Tensor:
        """``log V``, in nats."""
        return self._filled(self.batch_shape, math.log(self._num_events))

    def _filled(self, shape: Sequence[int], value: float) -> Tensor:
        return precise(self._like).new_full((), value).expand(shape)


class CertainCategorical(_WithoutLogits):
    """Codes of which each is known: all probability is on one value.

    Args:
        num_codes: Values of a code, V.
        codes: The known ones, ``(*batch)``.
        source: What the codes were computed from. A loss that asks for its gradient through their
            log-probability is told that there is none, instead of training nothing.
        validate_args: Whether to check values; None is Pyro's own setting.
        tables: How many latents, in a row, are of each table of a codebook of several; None is one
            table. `VQ_ELBO` counts the usage of each table by itself.

    Raises:
        ValueError: If `tables` have another number of latents than `codes`.
    """

    _names = ("_num_events", "_like", "codes", "source", "tables")

    @checked
    def __init__(
        self,
        num_codes: int,
        codes: Integer[Tensor, "*batch"],
        source: Float[Tensor, "..."] | None = None,
        validate_args: bool | None = None,
        tables: Sequence[int] | None = None,
    ) -> None:
        self.codes, self.source = codes, source
        self.tables = None if tables is None else tuple(tables)
        if self.tables is not None and sum(self.tables) != codes.shape[-1]:
            raise ValueError(
                f"`tables` must have as many latents as `codes`; got {tables} for codes of shape "
                f"{tuple(codes.shape)}."
            )
        like = torch.zeros((), device=codes.device).expand(codes.shape)
        self._begin(num_codes, like, validate_args)

    @lazy_property
    def logits(self) -> Tensor:
        """Log-probabilities of all codes: 0 and -inf."""
        _check_listed(self.num_codes)
        return torch.nn.functional.one_hot(self._codes(), self._num_events).float().log()

    @property
    def mode(self) -> Tensor:
        """The codes."""
        return self._codes()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The codes, in shape ``sample_shape + batch_shape``."""
        return self.codes.expand(*sample_shape, *self.batch_shape).clone()

    def log_prob(self, value: Shaped[Tensor, "..."]) -> Tensor:
        """0 of the codes, -inf of all others."""
        if self._validate_args:
            self._validate_sample(value)
        found = (value.long() == self._codes()).log()
        return found if self.source is None else refuse_gradient(found, self.source, _NO_GRADIENT)

    def entropy(self) -> Tensor:
        """0."""
        return self._like.new_zeros(self.batch_shape)

    def _codes(self) -> Tensor:
        return self.codes.expand(self.batch_shape)


@register_kl(CertainCategorical, torch.distributions.Categorical)
def _kl_of_certain(p: Any, q: Any) -> Tensor:
    return p.log_prob(p.mode) - q.log_prob(p.mode)


@register_kl(UniformCategorical, UniformCategorical)
def _kl_of_uniforms(p: Any, q: Any) -> Tensor:
    return p.log_prob(torch.zeros_like(q.entropy(), dtype=torch.long)) + q.entropy()


def _check_fits(num_codes: int, most: int) -> None:
    if num_codes - 1 > most:
        raise ValueError(
            f"`num_codes` is {num_codes}, but an integer holds no code beyond {most}. Use several "
            "latents of fewer codes each."
        )


def _check_listed(num_codes: int) -> None:
    if num_codes > _MOST_LISTED:
        raise ValueError(
            f"a latent has {num_codes} codes, of which at most {_MOST_LISTED} are listed. Use what "
            "looks at draws alone: a loss that samples, VQ_ELBO, `importance_diagnostics`."
        )
