"""Reweighted wake-sleep: the model climbs the bound of K particles, the guide the posterior.

For each datum, with f_k the beta-ELBO's integrand of particle k and ``w = softmax(f / beta)``, at
beta = 1 the normalised importance weights p(x, z_k) / q(z_k|x),

    model: sum_k w_k grad [log p(x|z_k) + beta log p(z_k)],
    guide: sum_k (w_k - 1/K) grad log q(z_k|x)           (wake-phi),

the gradient of the bound ``beta log (1/K) sum_k exp(f_k / beta)`` for the model, and for the guide
that of -KL(p(z|x) || q(z|x)), self-normalised, hence biased at finite K [1]. The 1/K is a control
variate of mean zero. Draws carry no gradient, reparameterised or not.

The sleep update (sleep-phi) is ``grad log q(z|x)`` at draws (z, x) of the model itself: unbiased
for its own objective, -KL(p(z|x) || q(z|x)) on average over the model's data instead of the real.

`DAPS_ELBO` takes the same wake update where its temperature is beta.

References:
    [1] Bornschein & Bengio. Reweighted wake-sleep. ICLR, 2015.
    [2] Le, Kosiorek, Siddharth, Teh & Wood. Revisiting reweighted wake-sleep for models with
        stochastic control flow. UAI, 2019.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.handlers import substitute

from numpyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from numpyro_dvae.ops.bounds import importance_weighted_bound
from numpyro_dvae.ops.tempering import effective_sample_size
from numpyro_dvae.ops.weighting import centered_weights, policy_weights
from numpyro_dvae.programs.run import Particles, dream
from numpyro_dvae.programs.sites import Layout

__all__ = ["WakeSleepInfo", "WakeSleep_ELBO"]

ReplaceData = Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]


class WakeSleepInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array
    iwae: Float[Array, ""]  # bound of K particles at beta = 1, nats
    ess: Float[Array, ""]  # effective sample size of the weights, as a fraction of K


class WakeSleep_ELBO(ParticleELBO):
    """Reweighted wake-sleep with weights per datum.

    Latents outside of the data's plates have no weights: they follow the ELBO's pathwise gradient.

    Args:
        num_particles: K, at least 2.
        sleep: Share of the sleep update in the guide's, in [0, 1]; the rest is the wake update.
        replace_data: For the sleep update: maps (data that the model made, by observed site; args;
            kwargs) to the (args, kwargs) of the guide. Default: the value of the model's one
            observed site takes the place of the first argument, which has its shape.
        **options: See `ParticleELBO`; entropies are always sampled.

    Raises:
        ValueError: If `sleep` is out of range, K < 2, or `beta` is 0; on a step, if the model's
            data have no place among the arguments.
    """

    min_particles = 2
    info_class = WakeSleepInfo

    def __init__(
        self,
        num_particles: int = 8,
        *,
        sleep: float = 0.0,
        replace_data: ReplaceData | None = None,
        **options: Any,
    ) -> None:
        if not 0.0 <= sleep <= 1.0:
            raise ValueError(f"`sleep` is a share of the guide's update, in [0, 1]; got {sleep}.")
        if options.get("beta", 1.0) == 0:
            raise ValueError(
                "`beta` must be positive for WakeSleep_ELBO, whose weights are exp(f / beta); "
                "got 0. Use Reinforce_ELBO without a rate."
            )
        self.sleep, self.replace_data = sleep, replace_data or _replace_first
        super().__init__(num_particles, closed_form_entropy=False, **options)

    def _find_layout(
        self, rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Layout:
        layout = super()._find_layout(rng_key, model, guide, args, kwargs)
        return layout._replace(pathwise=False)

    def _run(
        self,
        rng_key: Array,
        params: dict[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        rng_key, dream_key = jax.random.split(rng_key)
        particles, mutable = super()._run(rng_key, params, model, guide, args, kwargs)
        if not self.sleep or self._layout is None:
            return particles, mutable
        pair = substitute(model, data=params), substitute(guide, data=params)
        dreamt = dream(dream_key, *pair, args, kwargs, self._layout, self.replace_data)
        return particles._replace(dreamt=dreamt), mutable

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        beta = self._current_beta(state, particles)
        value = objective(particles, beta)
        log_weights = particles.log_p - particles.log_q
        scores = jax.lax.stop_gradient(value.beta_elbo) / beta
        weights = policy_weights(scores, 1.0)
        guide = (centered_weights(weights) * (particles.log_draw + particles.log_q_rest)).sum(0)
        if particles.dreamt is not None:
            guide = (1.0 - self.sleep) * guide + self.sleep * particles.dreamt
        model = (weights * (particles.log_likelihood + beta * particles.log_prior)).sum(0)
        rate = (particles.log_likelihood - value.elbo).mean()
        ess = effective_sample_size(scores).mean() / self.num_particles
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * (guide + model).sum() - value.shared_beta_elbo.mean(),
            info=WakeSleepInfo(
                elbo=value.elbo.mean(),
                beta_elbo=value.beta_elbo.mean(),
                rate=rate / math.log(2),
                beta=beta,
                iwae=importance_weighted_bound(log_weights).mean(),
                ess=ess,
            ),
            state=self._next_beta_state(state, rate),
        )


def _replace_first(made: dict[str, Any], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Put the model's data in the place of the first argument."""
    first = args[0] if args else None
    shapes = {name: jnp.shape(value) for name, value in made.items()}
    if not isinstance(first, jax.Array | np.ndarray) or list(shapes.values()) != [first.shape]:
        found = getattr(first, "shape", type(first).__name__)
        raise ValueError(
            "`sleep` hands the guide data that the model made, in place of its first argument, "
            f"but the observed sites are {shapes} and that argument is {found}. Pass "
            "`replace_data`, which maps (data by site, args, kwargs) to the guide's (args, kwargs)."
        )
    (value,) = made.values()
    return (jnp.asarray(value, first.dtype), *args[1:]), kwargs
