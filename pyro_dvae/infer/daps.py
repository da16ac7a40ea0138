"""DAPS: discrete autoencoding via policy search [1], for any model with discrete latents.

The return of a draw is ``R(z) = log p(x|z) + beta log p(z)``. Among all distributions, the one that
maximises ``E_q[R] + beta H(q)`` within a KL trust region around the guide is

    q*(z|x) ∝ q(z|x) exp(f(z) / T),   f = R - beta log q(z|x),   T = eta + beta,

a natural-gradient step of size 1/T in the space of all distributions ([1], sec. 3). The guide
follows it by a gradient step on ``KL(q* || q)``, estimated at K draws of the guide with weights
``w = softmax(f / T)``; the model ascends the beta-ELBO at the same draws.

Three things differ from the published algorithm. T solves the target for the effective sample size
(or the KL bound) exactly, where eta followed it by gradient steps. The weights are centred,
``w - 1/K``: the same mean, since E[grad log q] = 0, and far less noise. Equal draws count as one in
the effective sample size.

As T grows, T times the gradient tends to the REINFORCE gradient with the mean baseline, times
(K - 1) / K; with T = beta = 1, w are the weights p / q of reweighted wake-sleep [2].

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via policy
        search. ICLR, 2026. arXiv 2509.24716.
    [2] Bornschein & Bengio. Reweighted wake-sleep. ICLR, 2015.
"""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from pyro_dvae.ops.tempering import (
    effective_sample_size,
    solve_kl_temperature,
    solve_temperature,
)
from pyro_dvae.ops.weighting import centered_weights, count_copies, policy_weights
from pyro_dvae.programs.run import Particles

__all__ = ["DAPS_ELBO", "DAPSInfo"]


class DAPSInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor
    ess: Float[Tensor, ""]  # effective sample size of the weights, as a fraction of K
    temperature: Float[Tensor, ""]  # T = eta + beta


class DAPS_ELBO(ParticleELBO):
    """Policy search: a step along the natural gradient of a non-parametric encoder.

    Args:
        num_particles: K, at least 2.
        target_ess: Effective sample size to which T is solved, as a fraction of K. T never falls
            below beta (eta >= 0): beyond that a larger sample size than asked for remains.
        kl_bound: Solve T for this ``KL(q* || q)`` in nats per datum instead.
        per_datum: One T for each datum instead of one for the batch.
        importance_weighted: Weigh the model's update by ``p / q`` instead of evenly.
        closed_form_entropy: Leave ``-beta log q`` out of f and ascend ``beta H(q) / T`` instead,
            in closed form where the guide has one. Less noise while beta is small; but q* is then
            right to first order in 1/T only, and the exact posterior no longer a fixed point.
        **options: See `ParticleELBO`.

    Raises:
        ValueError: If a target is out of range or K < 2.
    """

    min_particles = 2
    with_codes = True

    def __init__(
        self,
        num_particles: int = 8,
        *,
        target_ess: float = 0.75,
        kl_bound: float | None = None,
        per_datum: bool = False,
        importance_weighted: bool = False,
        closed_form_entropy: bool = False,
        **options: Any,
    ) -> None:
        if not 0.0 < target_ess < 1.0:
            raise ValueError(
                f"`target_ess` is a fraction of K, strictly in (0, 1); got {target_ess}."
            )
        if kl_bound is not None and not kl_bound > 0:
            raise ValueError(f"`kl_bound` must be positive, in nats per datum; got {kl_bound}.")
        self.target_ess, self.kl_bound, self.per_datum = target_ess, kl_bound, per_datum
        self.importance_weighted = importance_weighted
        super().__init__(num_particles, closed_form_entropy=closed_form_entropy, **options)

    def _estimate(self, particles: Particles, state: BetaState) -> Estimate:
        beta = self._current_beta(state)
        value = objective(particles, beta)
        entropy = particles.entropy
        surprise = -particles.log_q_discrete if entropy is None else entropy
        rest = particles.log_likelihood + beta * (particles.log_prior - particles.log_q_rest)
        scores = (rest + beta * surprise).detach()
        copies = None if particles.codes is None else count_copies(particles.codes)
        temperature = self._temperature(scores, copies).clamp(min=beta)
        weights = policy_weights(scores, temperature)
        policy = (centered_weights(weights) * particles.log_draw).sum(0)
        if entropy is not None:
            policy = policy + beta / temperature * entropy.mean(0)
        if self.importance_weighted:
            shares = policy_weights(particles.log_p - particles.log_q, 1.0)
        else:
            shares = 1.0 / self.num_particles
        gain = (policy + (shares * rest).sum(0)).sum()
        rate = (particles.log_likelihood - value.elbo).detach().mean()
        ess = effective_sample_size(scores / temperature, copies).mean() / self.num_particles
        return Estimate(
            loss=-particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean(),
            surrogate=-particles.scale * gain - value.shared_beta_elbo.mean(),
            info=DAPSInfo(
                elbo=value.elbo.detach().mean(),
                beta_elbo=value.beta_elbo.detach().mean(),
                rate=rate / math.log(2),
                beta=beta,
                ess=ess,
                temperature=temperature.mean(),
            ),
            state=self._next_beta_state(state, rate),
        )

    def _temperature(
        self, scores: Float[Tensor, "K *plates"], copies: Tensor | None
    ) -> Float[Tensor, "..."]:
        shared = not self.per_datum
        if self.kl_bound is not None:
            return solve_kl_temperature(scores, self.kl_bound, shared=shared)
        return solve_temperature(scores, self.target_ess, copies, shared=shared)
