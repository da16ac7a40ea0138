"""Likelihoods p(x | z): what the outputs of a decoder say of a datum."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import precise
from pyro_dvae.models.closed_forms import ClosedForm, Learn, check_learn
from pyro_dvae.models.variances import check_variance, raw_of, variance_of
from pyro_dvae.ops.arguments import checked

__all__ = ["BernoulliLikelihood", "GaussianLikelihood", "Likelihood"]

_RAREST = 0.01  # least and, from one, greatest mean of a binary entry that outputs start at


@runtime_checkable
class Likelihood(Protocol):
    """What a model asks of a likelihood.

    It may have an attribute `closed_form` beside, see `ClosedForm`; and a method `link`, by which a
    decoder can start at the mean of the data.
    """

    def __call__(self, outputs: Tensor, event_dim: int) -> Distribution:
        """The distribution of the site "x".

        Args:
            outputs: Of the decoder, ``(*batch, *outputs)``: they may have other dims than x.
            event_dim: How many of their dims are of one datum.

        Returns:
            Batch shape ``(*batch,)``, event shape that of x. The entries of x must be independent,
            by ``.to_event(event_dim)``, where some may be missing.
        """


class BernoulliLikelihood(nn.Module):
    """Binary data; the decoder's outputs are logits."""

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        return dist.Bernoulli(logits=precise(outputs)).to_event(event_dim)

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
        """Outputs at which x has this mean, which is kept in [0.01, 0.99]."""
        return torch.logit(mean, eps=_RAREST)


class GaussianLikelihood(nn.Module):
    """Real data; the decoder's outputs are means, the variance is a parameter.

    Args:
        variance: The variance, or where it starts if learnt.
        shape: Its shape, which broadcasts against a datum: () for one variance, the shape of
            a datum for one per entry.
        bounds: Least and greatest variance, kept by a sigmoid on the log scale (gradients
            vanish towards the bounds and nowhere else); None leaves it free. Published for
            ImageNet: (0.01, 1).
        learn: Whether the variance is learnt; "closed_form" sets it to the posterior's mean
            square error, within the bounds, and does not lag behind it; see `ClosedForm`.

    Raises:
        ValueError: If `variance` is not within the bounds, or `learn` is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        variance: float = 0.5,
        shape: Sequence[int] = (),
        bounds: tuple[float, float] | None = None,
        learn: Learn = True,
    ) -> None:
        super().__init__()
        check_learn(learn)
        check_variance(variance, bounds)
        self.bounds, self.learn = bounds, learn
        raw = raw_of(torch.full(tuple(shape), variance), bounds)
        self.raw = nn.Parameter(raw) if learn is True else nn.Buffer(raw)

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        mean, scale = precise(outputs), self.variance.sqrt()
        copies = scale.expand(outputs.shape[outputs.dim() - event_dim :])
        if not (dist.Normal._validate_args and _are_in_order(mean, scale)):
            return dist.Normal(mean, copies).to_event(event_dim)
        fn = dist.Normal(mean, copies, validate_args=False)
        fn._validate_args = True  # of its values
        return fn.to_event(event_dim)

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "*event"]:
        """Outputs at which x has this mean: the mean."""
        return mean

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """The variance now."""
        return variance_of(precise(self.raw), self.bounds)

    @property
    def closed_form(self) -> ClosedForm | None:
        """``variance = mean of (x - mean)^2``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(self.raw, lambda fn, x: (x - fn.mean).square_(), self._solve)

    def _solve(self, total: Tensor, count: Tensor, old: Tensor) -> Tensor:
        """The raw parameter of the mean square error; the old one where nothing is observed."""
        total, count = total.sum_to_size(old.shape), count.sum_to_size(old.shape)
        return torch.where(count > 0, raw_of(total / count, self.bounds), old)


def _are_in_order(mean: Tensor, scale: Tensor) -> bool:
    """Whether Pyro would take them, told by less than its look at each number and each copy."""
    return not math.isnan(mean.detach().sum().item()) and scale.detach().min().item() > 0
