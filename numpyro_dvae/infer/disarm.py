"""DisARM: score-function gradients of binary latents from antithetic pairs of draws.

A pair z, z' comes from one uniform per latent, so that the two differ as often as they can. With
f the beta-ELBO's integrand and p the probability of a 1, a latent's logit gets

    ½ (f(z) - f(z')) (z - z') max(p, 1 - p)

from each pair, the expectation of the ARM estimator given the pair [1], [2]; all else follows the
gradient of f at both draws. The mean over K/2 independent pairs is unbiased.

That needs both halves to have the same p. A site whose logits depend on other draws of its particle
(an earlier discrete site, a reparameterised one) is drawn independently in the two halves and gets

    ½ (f(z) - f(z')) (grad log q(z) - grad log q(z')),

leave-one-out REINFORCE within the pair. Given all else in z', such a draw of z has the score's mean
of zero, so the whole stays unbiased; `find_pairs` tells the two kinds of sites apart.

References:
    [1] Dong, Mnih & Tucker. DisARM: an antithetic gradient estimator for binary latent
        variables. NeurIPS, 2020.
    [2] Yin, Ho, Yan, Qian & Zhou. Probabilistic best subset selection by gradient-based
        optimization. arXiv 2006.06448, 2020 (U2G).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from numpyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from numpyro_dvae.ops.multisample import antithetic_advantages
from numpyro_dvae.programs.layout import find_pairs
from numpyro_dvae.programs.run import Particles
from numpyro_dvae.programs.sites import Layout

__all__ = ["DisARMInfo", "DisARM_ELBO"]


class DisARMInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array


class DisARM_ELBO(ParticleELBO):
    """Antithetic score-function estimator for Bernoulli latents, unbiased.

    Args:
        num_particles: K, even: particles k and k + K/2 are a pair.
        **options: See `ParticleELBO`.

    Raises:
        ValueError: If K is odd; on the first step, if a site of the guide that needs the score
            function is not Bernoulli.
    """

    min_particles = 2
    info_class = DisARMInfo

    def __init__(self, num_particles: int = 2, **options: Any) -> None:
        if isinstance(num_particles, int) and num_particles % 2:
            raise ValueError(
                f"`num_particles` must be even for DisARM_ELBO, which draws pairs; got "
                f"{num_particles}."
            )
        super().__init__(num_particles, **options)

    def _find_layout(
        self, rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Layout:
        layout = super()._find_layout(rng_key, model, guide, args, kwargs)
        return layout._replace(paired=find_pairs(rng_key, guide, args, kwargs))

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        beta = self._current_beta(state, particles)
        value = objective(particles, beta)
        draw = particles.log_draw if particles.paired_draw is None else particles.paired_draw
        advantages = antithetic_advantages(value.beta_elbo)
        gain = (advantages * draw + value.beta_elbo).mean(0).sum()
        rate = (particles.log_likelihood - value.elbo).mean()
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * gain - value.shared_beta_elbo.mean(),
            info=DisARMInfo(
                elbo=value.elbo.mean(),
                beta_elbo=value.beta_elbo.mean(),
                rate=rate / math.log(2),
                beta=beta,
            ),
            state=self._next_beta_state(state, rate),
        )
