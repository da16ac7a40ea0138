"""Likelihoods whose decoder gives two numbers for each entry of a datum: where, and how wide.

The last dim of the outputs is twice that of the data: ``(H, W, 2 C)`` for images ``(H, W, C)``, the
centres first. Gray images want a channel, ``(H, W, 1)``.
"""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_dvae.distributions import DiscretizedLogistic, precise
from pyro_dvae.models.variances import check_variance, raw_of, variance_of
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["GaussianHeads", "LogisticHeads"]

_LEAST_LOG_SCALE = -7.0  # as PixelCNN++ has it: no entry can be certain


class GaussianHeads(nn.Module):
    """Real data, each entry with a mean and a variance of its own.

    Args:
        variance: The variance where the decoder's output for it is 0, as it starts.
        bounds: Least and greatest variance, as in `GaussianLikelihood`; published for ImageNet:
            (0.01, 1). A least one is needed, lest the density grow for ever where data are exact.

    Raises:
        ValueError: If `variance` is not within the bounds.
    """

    @checked
    def __init__(
        self, *, variance: float = 0.5, bounds: tuple[float, float] | None = (1e-4, 1e2)
    ) -> None:
        super().__init__()
        check_variance(variance, bounds)
        self.variance, self.bounds = variance, bounds

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        mean, raw = halves(outputs, event_dim)
        variance = variance_of(raw + self._start(raw), self.bounds)
        return dist.Normal(mean, variance.sqrt()).to_event(event_dim)

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "..."]:
        """Outputs at which x has this mean, and the variance that it starts with."""
        return torch.cat([mean, torch.zeros_like(mean)], -1)

    def _start(self, like: Tensor) -> Tensor:
        return raw_of(torch.as_tensor(self.variance, dtype=like.dtype), self.bounds).to(like.device)


class LogisticHeads(nn.Module):
    """Integers 0 to V - 1, as bytes are: discretised logistics, for true bits per dimension.

    Outputs of 0 stand for the middle of the range, of -1 and 1 for its ends; the scale is
    ``scale * (V - 1) * exp(output)``, at least e^-7 of half the range.

    Args:
        num_values: V.
        scale: The scale where the decoder's output for it is 0, as it starts, as a part of the
            range.

    Raises:
        ValueError: If V is below 2, or `scale` is not positive.
    """

    @checked
    def __init__(self, *, num_values: int = 256, scale: float = 0.1) -> None:
        super().__init__()
        check_counts(num_values=num_values, least=2)
        if not 0.0 < scale < math.inf:
            raise ValueError(f"`scale` must be positive and finite; got {scale}.")
        self.num_values, self.scale = num_values, scale

    def forward(self, outputs: Tensor, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        center, raw = halves(outputs, event_dim)
        half = 0.5 * (self.num_values - 1)
        log_scale = (raw + math.log(2.0 * self.scale)).clamp(min=_LEAST_LOG_SCALE)
        fn = DiscretizedLogistic(half * (1.0 + center), half * log_scale.exp(), self.num_values)
        return fn.to_event(event_dim)

    def link(self, mean: Float[Tensor, "*event"]) -> Float[Tensor, "..."]:
        """Outputs at which x has this centre, and the scale that it starts with."""
        center = mean / (0.5 * (self.num_values - 1)) - 1.0
        return torch.cat([center, torch.zeros_like(center)], -1)


def halves(
    outputs: Float[Tensor, "..."], event_dim: int
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The outputs for centres and for widths, in float32 or better.

    Raises:
        ValueError: If there are not two for each entry.
    """
    if event_dim < 1 or outputs.shape[-1] % 2:
        shape = tuple(outputs.shape[outputs.dim() - event_dim :])
        raise ValueError(
            "the decoder must give two numbers for each entry of a datum, centres before widths "
            f"along the last dim; got outputs of shape {shape}. Double the last size of "
            "its `output_shape`."
        )
    center, width = precise(outputs).chunk(2, -1)
    return center, width
