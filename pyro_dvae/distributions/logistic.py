"""The discretised logistic: integers 0 to V - 1, as the bytes of an image are."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["DiscretizedLogistic"]


class DiscretizedLogistic(TorchDistribution):
    """A logistic variable rounded to the next of the integers 0 to V - 1.

    With ``a = (x + 1/2 - loc) / scale`` and ``b = (x - 1/2 - loc) / scale``,

        P(x) = sigmoid(a) - sigmoid(b),     P(0) = sigmoid(a),     P(V - 1) = 1 - sigmoid(b),

    so that the log-density of an image in nats, over its number of entries times log 2, is in bits
    per dimension (Salimans et al., PixelCNN++, ICLR 2017, section 2.1). It is computed as
    ``log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))``, exact however small.

    Args:
        loc: Centre, in units of x, ``(*batch,)``.
        scale: Scale, positive, ``(*batch,)``.
        num_values: V, at least 2.

    Example:
        >>> fn = DiscretizedLogistic(torch.tensor(1.0), torch.tensor(0.5), 3)
        >>> fn.log_prob(torch.arange(3.0)).exp()
        tensor([0.2689, 0.4621, 0.2689])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    has_rsample = False

    @checked
    def __init__(
        self,
        loc: Float[Tensor, "*batch"],
        scale: Float[Tensor, "*batch"],
        num_values: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        check_counts(num_values=num_values, least=2)
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.num_values = num_values
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "DiscretizedLogistic":
        """The same variable for a larger batch shape."""
        loc, scale = (x.expand(tuple(batch_shape)) for x in (self.loc, self.scale))
        return DiscretizedLogistic(loc, scale, self.num_values, validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers 0 to V - 1."""
        return constraints.integer_interval(0, self.num_values - 1)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """The mean: the sum over v of P(x >= v)."""
        total = torch.zeros_like(self.loc)
        for v in range(1, self.num_values):
            total = total + torch.sigmoid((self.loc - v + 0.5) / self.scale)
        return total

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample_batch"]:
        """Integers, as floating-point numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            value = self.loc + self.scale * torch.logit(uniform)
            return value.round().clamp(0, self.num_values - 1)

    def log_prob(self, value: Shaped[Tensor, "*value"]) -> Float[Tensor, "*shape"]:
        """Log-probability of each integer, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        above, below = ((value + half - self.loc) / self.scale for half in (0.5, -0.5))
        between = torch.log(-torch.expm1(-1.0 / self.scale))
        log_above = torch.where(value < self.num_values - 1, logsigmoid(above), 0.0)
        log_below = torch.where(value > 0, logsigmoid(-below), 0.0)
        at_edge = (value <= 0) | (value >= self.num_values - 1)
        return log_above + log_below + torch.where(at_edge, 0.0, between)
