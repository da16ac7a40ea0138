"""Likelihoods p(x | z): what the outputs of a decoder say of a datum."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import linen as nn
from jax.scipy.special import logit
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import precise
from numpyro_dvae.models.closed_forms import ClosedForm, Learn, check_learn
from numpyro_dvae.models.variances import check_variance, raw_of, variance_of
from numpyro_dvae.ops.arguments import checked

__all__ = ["BernoulliLikelihood", "GaussianLikelihood", "Likelihood"]

_RAREST = 0.01  # least and, from one, greatest mean of a binary entry that outputs start at


@runtime_checkable
class Likelihood(Protocol):
    """What a model asks of a likelihood.

    It may have methods `closed_form` and `start` beside, see `ClosedForm` and `GaussianLikelihood`;
    it is then called with the parameter that has the closed form. It may have a method `link`, by
    which a decoder can start at the mean of the data.
    """

    def __call__(self, outputs: Array, event_dim: int) -> Distribution:
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

    def __call__(self, outputs: Array, event_dim: int) -> Distribution:
        """p(x | z), with the last `event_dim` dims independent."""
        return dist.Bernoulli(logits=precise(outputs)).to_event(event_dim)

    def link(self, mean: Float[Array | np.ndarray, "*event"]) -> Float[Array, "*event"]:
        """Outputs at which x has this mean, which is kept in [0.01, 0.99]."""
        return logit(jnp.clip(jnp.asarray(mean), _RAREST, 1.0 - _RAREST))


@checked
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
            square error, within the bounds, and does not lag behind it; see `ClosedForm`. It is
            then in the mutable state "model.likelihood$raw".

    Raises:
        ValueError: If `variance` is not within the bounds, or `learn` is out of its range.
    """

    _: KW_ONLY
    variance: float = 0.5
    shape: Sequence[int] = ()
    bounds: tuple[float, float] | None = None
    learn: Learn = True

    def __post_init__(self) -> None:
        check_learn(self.learn)
        object.__setattr__(self, "shape", tuple(self.shape))
        check_variance(self.variance, self.bounds)
        super().__post_init__()

    def __call__(
        self, outputs: Array, event_dim: int, held: Float[Array, "*shape"] | None = None
    ) -> Distribution:
        """p(x | z), the last `event_dim` dims independent; `held` is that of the closed form."""
        event_shape = outputs.shape[outputs.ndim - event_dim :]
        raw = self.start() if held is None else held
        if self.learn is True:
            raw = self._learnt(raw)
        scale = jnp.sqrt(variance_of(precise(raw), self.bounds))
        if scale.ndim:  # else one for all: there is less to do than for copies of it
            scale = jnp.broadcast_to(scale, event_shape)
        return dist.Normal(precise(outputs), scale).to_event(event_dim)

    def link(self, mean: Float[Array | np.ndarray, "*event"]) -> Float[Array, "*event"]:
        """Outputs at which x has this mean: the mean."""
        return jnp.asarray(mean)

    def start(self) -> Float[Array, "*shape"]:
        """The raw parameter at first, which stands for the variance."""
        return raw_of(jnp.full(self.shape, self.variance), self.bounds)

    def closed_form(self, name: str) -> ClosedForm | None:
        """``variance = mean of (x - mean)^2`` of the likelihood of this name, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(f"{name}$raw", lambda fn, x: jnp.square(x - fn.mean), self._solve)

    @nn.nowrap
    def _solve(self, total: Array, count: Array, old: Array) -> Array:
        """The raw parameter of the mean square error; the old one where nothing is observed."""
        total, count = _sum_to(total, old.shape), _sum_to(count, old.shape)
        return jnp.where(count > 0, raw_of(total / count, self.bounds), old)

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("raw", lambda _: start.astype(jnp.float32))


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)
