"""The exact ELBO of discrete latents, by summing over all states of a datum.

With q(z|x) over a finite space no estimator is needed,

    beta-ELBO = sum_z q(z|x) [log p(x|z) + beta (log p(z) - log q(z|x))],

and automatic differentiation gives its gradient. It costs S = V**L evaluations of the model per
datum: the oracle of every other algorithm, and the method of choice where S is small.
Reparameterised sites beside the discrete ones are sampled as usual; all states share one draw.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO
from numpyro_dvae.programs.codes import enumerate_draws
from numpyro_dvae.programs.run import Particles

__all__ = ["ExactInfo", "Exact_ELBO"]


class ExactInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array


class Exact_ELBO(ParticleELBO):
    """Sum over every joint state of a datum's discrete latents: no variance, no bias.

    Args:
        max_states: Largest number of states per datum that is accepted.
        **options: See `ParticleELBO`.

    Raises:
        ValueError: On the first step, if the guide's discrete sites have more than `max_states`
            joint states per datum, or no finite support.
    """

    info_class = ExactInfo

    def __init__(self, *, max_states: int = 2**16, **options: Any) -> None:
        if max_states < 2:
            raise ValueError(f"`max_states` must be at least 2; got {max_states}.")
        self.max_states = max_states
        super().__init__(1, closed_form_entropy=False, **options)

    def _values(
        self, rng_key: Array, guide: Callable, args: tuple, kwargs: dict, layout: Any
    ) -> dict[str, Array] | None:
        return enumerate_draws(rng_key, guide, args, kwargs, layout, self.max_states)

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        beta = self._current_beta(state, particles)
        probs = jnp.exp(particles.log_draw)
        rate = _expectation(probs, particles.log_q - particles.log_prior)
        likelihood = _expectation(probs, particles.log_likelihood)
        shared_rate = (particles.shared_q - particles.shared_prior).mean()
        shared = particles.shared_likelihood.mean()
        return Estimate(
            loss=-particles.scale * (likelihood - rate).sum() - shared + shared_rate,
            surrogate=-particles.scale * (likelihood - beta * rate).sum()
            - shared
            + beta * shared_rate,
            info=ExactInfo(
                elbo=(likelihood - rate).mean(),
                beta_elbo=(likelihood - beta * rate).mean(),
                rate=rate.mean() / math.log(2),
                beta=beta,
            ),
            state=self._next_beta_state(state, rate.mean()),
        )


def _expectation(probs: Float[Array, "S *plates"], values: Float[Array, "S *plates"]) -> Array:
    """Mean under q; a state of probability 0 counts nothing, whatever its value."""
    return (probs * jnp.where(probs > 0, values, 0.0)).sum(0)
