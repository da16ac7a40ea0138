"""A decoder of causes, each of which may switch an entry on by itself: noisy-OR.

Latent h, where it is on, switches entry d on with probability W_hd, and so does a leak, a cause
that is always on; an entry that no cause switches on stays off:

    P(x_d = 1 | s) = N_d(s) = 1 - prod_h (1 - W_hd s_h).

If x_d = 1, cause h has been at work with probability ``W_hd s_h / N_d(s)``, if x_d = 0 not at all.
W_hd is how often h is at work when it is on, so the M-step of expectation maximisation [1] is

    W_hd <- W_hd <s_h x_d / N_d(s)> / <s_h>,

means over data and posterior: it has no learning rate and never lowers the bound. What is kept is
``(<W_hd s_h x_d / N_d(s)>, <s_h>)`` side by side, and W is their quotient: a loss that sees a batch
at a time averages these, and not quotients (see `linear`).

References:
    [1] Vomlel. Noisy-or classifier. International Journal of Intelligent Systems 21(3), 2006.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from numpyro_dvae.models.closed_forms import (
    ClosedForm,
    Learn,
    check_family,
    check_learn,
    finite_logit,
    raw_of,
)
from numpyro_dvae.nets.mlp import Constant
from numpyro_dvae.ops.arguments import checked

__all__ = ["NoisyOrDecoder", "chances_of", "solve_uses", "uses_of"]

_RIDGE = 1e-5  # of the mean use of a cause, towards the old weights: what no datum tells stays
_START = 0.01  # the use that the first weights stand for
_BERNOULLI = dist.BernoulliLogits, dist.BernoulliProbs


@checked
class NoisyOrDecoder(nn.Module):
    """Logits of binary entries that the latents switch on, each by itself, and a leak.

    Args:
        weights: Probability that a latent switches an entry on, one for each of L latents, where
            they start; all probabilities stay one rounding error away from 0 and 1.
        leak: Probability that an entry is on without any latent, in (0, 1), where it starts.
        learn: True, by gradient; "closed_form", by the fixed point of expectation maximisation for
            a Bernoulli likelihood, see `ClosedForm`; False: they stay. What is learnt is read by
            `learnt`; of a closed form it is in the mutable state "model.decoder$raw".

    Raises:
        ValueError: If an argument is out of its range; under a loss, if the closed form meets
            missing entries, which its means of whole data do not take, or another likelihood.
    """

    weights: Float[Array | np.ndarray, "L *shape"] | Constant
    _: KW_ONLY
    leak: float = 0.01
    learn: Learn = True

    def __post_init__(self) -> None:
        check_learn(self.learn)
        if not 0.0 < self.leak < 1.0:
            raise ValueError(f"`leak` must be strictly in (0, 1); got {self.leak}.")
        if not isinstance(self.weights, Constant):
            _check_weights(self.weights)
            object.__setattr__(self, "weights", Constant(self.weights))
        super().__post_init__()

    def __call__(
        self, z: Shaped[Array, "*batch L"], held: Float[Array, "F D_and_1"] | None = None
    ) -> Float[Array, "*batch_event"]:
        """Logits ``(*batch, *shape)`` of latents; `held` are the uses of the closed form."""
        raw = self.start() if held is None else held
        if self.learn is True:
            raw = self._learnt(raw)
        logits = finite_logit(chances_of(raw)) if self.learn == "closed_form" else raw
        least, greatest = finite_logit(jnp.arange(2.0, dtype=logits.dtype))
        rates = jax.nn.softplus(jnp.clip(logits, least, greatest))  # exp(-rate): not at work
        rate = z.astype(rates.dtype) @ rates[:-1] + rates[-1]
        found = rate + jnp.log(-jnp.expm1(-rate))
        return found.reshape(*z.shape[:-1], *self._shape)

    @nn.nowrap
    def start(self) -> Float[Array, "F _"]:
        """The logits at first, of weights and leak, or the uses that stand for them."""
        rows = jnp.asarray(self._given)
        rows = 1.0 * rows.reshape(len(rows), -1)
        raw = jnp.concatenate([rows, jnp.full_like(rows[:1], self.leak)])
        return uses_of(raw) if self.learn == "closed_form" else finite_logit(raw)

    @nn.nowrap
    def learnt(self, params: Mapping[str, Any], *, name: str = "model.decoder") -> dict[str, Array]:
        """The "weights" ``(L, *shape)`` and the "leak" ``shape`` after a training.

        Args:
            params: Trained values, as `result.params` of `fit` has them.
            name: What the decoder is called there; that of a `DiscreteVAE` by default.

        Raises:
            ValueError: If `params` lacks what this decoder learns.
        """
        raw = raw_of(self, params, name)
        found = chances_of(raw) if self.learn == "closed_form" else jax.nn.sigmoid(raw)
        found = found.reshape(-1, *self._shape)
        return {"weights": found[:-1], "leak": found[-1]}

    @nn.nowrap
    def closed_form(self, name: str) -> ClosedForm | None:
        """``weights = mean of what is at work / mean of what is on``, where asked for."""
        if self.learn != "closed_form":
            return None
        return ClosedForm(f"{name}$raw", self._factors, solve_uses, sees_latents=True)

    @nn.nowrap
    def _factors(self, fn: Any, x: Array, latents: Mapping[str, Array]) -> tuple[Array, Array]:
        """The latents and a 1; and ``x / N`` and a 1."""
        check_family(fn, _BERNOULLI, "NoisyOrDecoder", "BernoulliLikelihood")
        z = latents["z"].astype(jnp.result_type(float))
        told = x / fn.mean
        told = told.reshape(*told.shape[: told.ndim - len(self._shape)], math.prod(self._shape))
        both = (jnp.concatenate([a, jnp.ones_like(a[..., :1])], -1) for a in (z, told))
        left, right = (each[..., None, :] for each in both)
        return left, right

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._given.shape[1:])

    @property
    def _given(self) -> Array | np.ndarray:
        assert isinstance(self.weights, Constant)  # since `__post_init__`
        return self.weights.value

    @nn.compact
    def _learnt(self, start: Array) -> Array:
        return self.param("raw", lambda _: start.astype(jnp.float32))


def uses_of(weights: Float[Array, "F D"]) -> Float[Array, "F D_and_1"]:
    """How often each cause is at work, and at last is on, that stand for these weights."""
    return _START * jnp.concatenate([weights, jnp.ones_like(weights[:, :1])], 1)


def chances_of(uses: Float[Array, "F D_and_1"]) -> Float[Array, "F D"]:
    """The weights: how often each cause is at work when it is on, not quite 0 or 1.

    Args:
        uses: How often each of F causes is at work at each of D entries, and at last is on.

    Example:
        >>> chances_of(jnp.array([[0.1, 0.2, 0.4]]))
        Array([[0.25, 0.5 ]], dtype=float32)
    """
    chances, eps = uses[:, :-1] / uses[:, -1:], jnp.finfo(uses.dtype).eps
    return jnp.clip(chances, eps, 1.0 - eps)


def solve_uses(
    total: Float[Array, "F D_and_1"],
    count: Float[Array, "F D_and_1"],
    old: Float[Array, "F D_and_1"],
) -> Float[Array, "F D_and_1"]:
    """The `solve` of a `ClosedForm` whose parameter is how often causes are at work and are on.

    A small ridge holds to the old weights what the data do not tell, as of a cause that is never
    on; the bound still never falls.
    """
    mean, weights = total / jnp.maximum(count, 1.0), chances_of(old)
    held = _RIDGE * mean[:, -1].mean() / _START * uses_of(weights)
    used = jnp.concatenate([weights * mean[:, :-1], mean[:, -1:]], 1)
    return jnp.where(count > 0, used + held, old)


def _check_weights(weights: Array | np.ndarray) -> None:
    """Whether they are probabilities; those of a run that is being compiled are not known."""
    if isinstance(weights, jax.core.Tracer):
        return
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(
            "`weights` are probabilities, in [0, 1]; got some from "
            f"{float(weights.min()):.3g} to {float(weights.max()):.3g}."
        )
