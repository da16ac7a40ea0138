"""VIMCO: the gradient of the bound of K particles, by a learning signal for each of them.

For each datum, with f_k the beta-ELBO's integrand of particle k, the objective is

    L = beta log (1/K) sum_k exp(f_k / beta),

at beta = 1 the importance-weighted bound log (1/K) sum_k p(x, z_k) / q(z_k|x) [2]. One particle
makes it the beta-ELBO, infinitely many the beta-ELBO's maximum over all distributions. Its gradient

    sum_k [(L - L_k) grad log q(z_k) + w_k grad f_k],   w = softmax(f / beta),

is unbiased, since L_k, the bound with f_k replaced by a mean of the other particles', does not
depend on particle k [1].

References:
    [1] Mnih & Rezende. Variational inference for Monte Carlo objectives. ICML, 2016.
    [2] Burda, Grosse & Salakhutdinov. Importance weighted autoencoders. ICLR, 2016.
"""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from pyro_dvae.ops.bounds import importance_weighted_bound
from pyro_dvae.ops.multisample import BASELINES, multisample_signal
from pyro_dvae.programs.run import Particles

__all__ = ["VIMCO_ELBO", "VIMCOInfo"]


class VIMCOInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor
    iwae: Float[Tensor, ""]  # bound of K particles at beta = 1, nats


class VIMCO_ELBO(ParticleELBO):
    """Score function of the bound of K particles, unbiased for any model and guide.

    Reparameterised latents keep their pathwise gradient. One that lies outside of the data's
    plates has a draw of its own in each particle and enters by its ELBO; the sum of the data's
    bounds then is no bound on their joint evidence.

    Args:
        num_particles: K, at least 2.
        baseline: What stands in for a particle's weight: the "geometric" or the "arithmetic"
            mean of the others'. They are the same at K = 2.
        **options: See `ParticleELBO`; entropies are always sampled.

    Raises:
        ValueError: If `baseline` is another word, K < 2, or `beta` is 0.
    """

    min_particles = 2

    def __init__(
        self, num_particles: int = 8, *, baseline: str = "geometric", **options: Any
    ) -> None:
        if baseline not in BASELINES:
            raise ValueError(f"`baseline` must be one of {BASELINES}; got {baseline!r}.")
        if options.get("beta", 1.0) == 0:
            raise ValueError(
                "`beta` must be positive for VIMCO_ELBO, whose weights are exp(f / beta); got 0. "
                "Use Reinforce_ELBO without a rate."
            )
        self.baseline = baseline
        super().__init__(num_particles, closed_form_entropy=False, **options)

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        beta = self._current_beta(state)
        value = objective(particles, beta)
        rate = particles.log_q - particles.log_prior  # with the gradient of log q
        scores = particles.log_likelihood / beta - rate
        signal = multisample_signal(scores, self.baseline)
        bound = (signal * particles.log_draw).sum(0) + importance_weighted_bound(scores)
        iwae = importance_weighted_bound((particles.log_p - particles.log_q).detach())
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * beta * bound.sum() - value.shared_beta_elbo.mean(),
            info=VIMCOInfo(
                elbo=value.elbo.detach().mean(),
                beta_elbo=value.beta_elbo.detach().mean(),
                rate=rate.detach().mean() / math.log(2),
                beta=beta,
                iwae=iwae.mean(),
            ),
            state=self._next_beta_state(state, rate.mean()),
        )
