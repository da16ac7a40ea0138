"""Likelihoods whose decoder gives two numbers for each entry of a datum: where, and how wide.

The last dim of the outputs is twice that of the data: ``(H, W, 2 C)`` for images ``(H, W, C)``, the
centres first. Gray images want a channel, ``(H, W, 1)``.
"""

import math
from dataclasses import KW_ONLY

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import DiscretizedLogistic, precise
from numpyro_dvae.models.variances import check_variance, raw_of, variance_of
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["GaussianHeads", "LogisticHeads"]

_LEAST_LOG_SCALE = -7.0  # as PixelCNN++ has it: no entry can be certain


@checked
class GaussianHeads(nn.Module):
    """Real data, each entry with a mean and a variance of its own.

    Args:
        variance: The variance where the decoder's output for it is 0, as it starts.
        bounds: Least and greatest variance, as in `GaussianLikelihood`; published for ImageNet:
            (0.01, 1). A least one is needed, lest the density grow for ever where data are exact.

    Raises:
        ValueError: If `variance` is not within the bounds.
    """

    _: KW_ONLY
    variance: float = 0.5
    bounds: tuple[float, float] | None = (1e-4, 1e2)

    def __post_init__(self) -> None:
        check_variance(self.variance, self.bounds)
        super().__post_init__()

    def __call__(self, outputs: Array, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        mean, raw = halves(outputs, event_dim)
        variance = variance_of(raw + self._start(raw), self.bounds)
        return dist.Normal(mean, jnp.sqrt(variance)).to_event(event_dim)

    def link(self, mean: Float[Array, "*event"]) -> Float[Array, "..."]:
        """Outputs at which x has this mean, and the variance that it starts with."""
        mean = jnp.asarray(mean)
        return jnp.concatenate([mean, jnp.zeros_like(mean)], -1)

    def _start(self, like: Array) -> Array:
        return raw_of(jnp.asarray(self.variance, like.dtype), self.bounds)


@checked
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

    _: KW_ONLY
    num_values: int = 256
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_counts(num_values=self.num_values, least=2)
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"`scale` must be positive and finite; got {self.scale}.")
        super().__post_init__()

    def __call__(self, outputs: Array, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        center, raw = halves(outputs, event_dim)
        half = 0.5 * (self.num_values - 1)
        log_scale = jnp.maximum(raw + math.log(2.0 * self.scale), _LEAST_LOG_SCALE)
        fn = DiscretizedLogistic(half * (1.0 + center), half * jnp.exp(log_scale), self.num_values)
        return fn.to_event(event_dim)

    def link(self, mean: Float[Array, "*event"]) -> Float[Array, "..."]:
        """Outputs at which x has this centre, and the scale that it starts with."""
        center = jnp.asarray(mean) / (0.5 * (self.num_values - 1)) - 1.0
        return jnp.concatenate([center, jnp.zeros_like(center)], -1)


def halves(
    outputs: Float[Array, "..."], event_dim: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The outputs for centres and for widths, in float32 or better.

    Raises:
        ValueError: If there are not two for each entry.
    """
    if event_dim < 1 or outputs.shape[-1] % 2:
        shape = outputs.shape[outputs.ndim - event_dim :]
        raise ValueError(
            "the decoder must give two numbers for each entry of a datum, centres before widths "
            f"along the last dim; got outputs of shape {shape}. Double the last size of "
            "its `output_shape`."
        )
    center, width = jnp.split(precise(outputs), 2, -1)
    return center, width
