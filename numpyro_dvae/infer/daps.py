"""DAPS: discrete autoencoding via policy search [1], for any model with discrete latents.

The return of a draw is ``R(z) = log p(x|z) + beta log p(z)``. Among all distributions, the one that
maximises ``E_q[R] + beta H(q)`` within a KL trust region around the guide is

    q*(z|x) ∝ q(z|x) exp(f(z) / T),   f = R - beta log q(z|x),   T = eta + beta,

a natural-gradient step of size 1/T in the space of all distributions ([1], sec. 3). The guide
follows it by a gradient step on ``KL(q* || q)``, estimated at K draws of the guide with weights
``w = softmax(f / T)``; the model ascends the beta-ELBO at the same draws. `policy_search` is that
step, `policy_temperature` finds T.

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
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import Gain, Objective, info_type
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.tempering import (
    check_target_ess,
    effective_sample_size,
    solve_kl_temperature,
    solve_temperature,
)
from numpyro_dvae.ops.weighting import centered_weights, count_copies, policy_weights
from numpyro_dvae.programs.record import Particles, read_codes

__all__ = ["DAPS_ELBO", "DAPSInfo", "policy_search", "policy_temperature"]

# ess: effective sample size of the weights, as a fraction of K; temperature: T = eta + beta
DAPSInfo = info_type(__name__, "DAPSInfo", "ess", "temperature")


def policy_temperature(
    scores: Float[Array, "K *plates"],
    copies: Int[Array, "K *plates"] | None = None,
    *,
    beta: float | Array = 1.0,
    target_ess: float = 0.75,
    kl_bound: float | None = None,
    per_datum: bool = False,
) -> Float[Array, "..."]:
    """The temperature T of the target, which is at least beta since eta is not negative.

    Args:
        scores: f of each particle, nats.
        copies: How many of a datum's particles are equal to each; all differ if left out.
        beta: Weight of the rate, the least T.
        target_ess: Effective sample size that T is solved for, as a fraction of K in (0, 1).
        kl_bound: ``KL(q* || q)`` that T is solved for instead, nats per datum.
        per_datum: One T for each datum, ``(*plates)``, in place of one for the batch.

    Raises:
        ValueError: If a target is out of range or K < 2.

    Example:
        >>> temperature = policy_temperature(jnp.array([[0.0], [2.0]]), target_ess=0.9)
        >>> print(f"{temperature:.4f}")
        2.8854
    """
    if kl_bound is not None:
        temperature = solve_kl_temperature(scores, kl_bound, shared=not per_datum)
    else:
        temperature = solve_temperature(scores, target_ess, copies, shared=not per_datum)
    return jnp.maximum(temperature, beta)


def policy_search(
    scores: Float[Array, "K *plates"],
    log_draw: Float[Array, "K *plates"],
    returns: Float[Array, "K *plates"],
    temperature: Float[Array, "..."],
    *,
    beta: float | Array = 1.0,
    entropy: Float[Array, "K *plates"] | None = None,
    shares: Float[Array, "K *plates"] | float | None = None,
) -> Float[Array, "*plates"]:
    """A step of the guide towards q*, and of the model up the beta-ELBO.

    Args:
        scores: f of each particle, without gradient: it makes the weights ``softmax(f / T)``.
        log_draw: Log-probability of each draw under the guide; its gradient is the score.
        returns: What the model ascends, ``R - beta log q`` of reparameterised latents.
        temperature: T, of `policy_temperature`.
        beta: Weight of the rate.
        entropy: The guide's own in closed form, which is ascended by ``beta / T`` if given.
        shares: Weights of the model's particles; 1 / K if left out.

    Returns:
        What is ascended, for each datum; its gradient is that of the step.

    Example:
        >>> f, zeros = jnp.array([[0.0], [2.0]]), jnp.zeros((2, 1))
        >>> step = lambda log_q: policy_search(f, log_q, zeros, jnp.array(2.0)).sum()
        >>> found = jax.grad(step)(zeros).ravel()
        >>> print(jnp.array_str(found, precision=4))  # softmax(f / T) - 1 / K
        [-0.2311  0.2311]
    """
    weights = policy_weights(scores, temperature)
    policy = (centered_weights(weights) * log_draw).sum(0)
    if entropy is not None:
        policy = policy + beta / temperature * entropy.mean(0)
    if shares is None:
        shares = 1.0 / len(scores)
    return policy + (shares * returns).sum(0)


class DAPS_ELBO(ParticleELBO):
    """Policy search: a step along the natural gradient of a non-parametric encoder.

    Args:
        num_particles: K, at least 2.
        target_ess: Effective sample size to which T is solved, as a fraction of K. T never falls
            below beta (eta >= 0): beyond that a larger sample size than asked for remains.
        kl_bound: Solve T for this ``KL(q* || q)`` in nats per datum instead.
        per_datum: One T for each datum instead of one for the batch.
        importance_weighted: Weigh the model's update by ``p / q`` instead of evenly.
        closed_form_entropy: Put the guide's entropy in the place of ``-log q`` in f, the same for
            all draws of independent latents, and ascend ``beta H(q) / T``, in closed form where
            the guide has one. Less noise while beta is small; but q* is then
            right to first order in 1/T only, and the exact posterior no longer a fixed point.
        beta: See `ParticleELBO`.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`.

    Raises:
        ValueError: If a target is out of range or K < 2.
    """

    min_particles = 2
    reads: ClassVar = {"codes": read_codes}
    info_class = DAPSInfo

    @checked
    def __init__(
        self,
        num_particles: int = 8,
        *,
        target_ess: float = 0.75,
        kl_bound: float | None = None,
        per_datum: bool = False,
        importance_weighted: bool = False,
        closed_form_entropy: bool = False,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        check_target_ess(target_ess)
        if kl_bound is not None and not kl_bound > 0:
            raise ValueError(f"`kl_bound` must be positive, in nats per datum; got {kl_bound}.")
        self.target_ess, self.kl_bound, self.per_datum = target_ess, kl_bound, per_datum
        self.importance_weighted = importance_weighted
        super().__init__(
            num_particles,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=closed_form_entropy,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """Weigh the draws, and step."""
        entropy = particles.entropy
        surprise = -particles.log_q_discrete if entropy is None else entropy
        negative_rate = particles.log_prior - particles.log_q_pathwise
        returns = particles.log_likelihood + beta * negative_rate
        scores = jax.lax.stop_gradient(returns + beta * surprise)
        codes, shares = particles.extras["codes"], None
        copies = None if codes is None else count_copies(codes)
        temperature = policy_temperature(
            scores,
            copies,
            beta=beta,
            target_ess=self.target_ess,
            kl_bound=self.kl_bound,
            per_datum=self.per_datum,
        )
        if self.importance_weighted:
            shares = policy_weights(particles.log_p - particles.log_q, 1.0)
        value = policy_search(
            scores,
            particles.log_draw,
            returns,
            temperature,
            beta=beta,
            entropy=entropy,
            shares=shares,
        )
        ess = effective_sample_size(scores / temperature, copies).mean() / len(scores)
        return Gain(value, {"ess": ess, "temperature": temperature.mean()})
