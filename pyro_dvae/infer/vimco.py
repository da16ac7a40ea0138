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
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import LEAST_BETA, Gain, Objective, info_type
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.bounds import importance_weighted_bound
from pyro_dvae.ops.multisample import BASELINES, multisample_signal
from pyro_dvae.programs.record import Particles

__all__ = ["VIMCO_ELBO", "VIMCOInfo", "multisample_bound"]

# iwae: bound of K particles at beta = 1, nats
VIMCOInfo = info_type(__name__, "VIMCOInfo", "iwae")


def multisample_bound(
    scores: Float[Tensor, "K *plates"],
    log_draw: Float[Tensor, "K *plates"],
    *,
    beta: float | Tensor = 1.0,
    baseline: str = "geometric",
) -> Float[Tensor, "*plates"]:
    """``beta log (1/K) sum_k exp(f_k / beta)``, with VIMCO's gradient.

    Args:
        scores: ``f / beta`` of each particle, with its gradient.
        log_draw: Log-probability of each draw under the guide; its gradient is the score.
        beta: Weight of the rate.
        baseline: Mean of the others' weights that stands in for a particle's: "geometric" or
            "arithmetic".

    Returns:
        The bound of each datum, plus terms whose mean gradient is what the bound's lacks.

    Example:
        >>> f, log_q = torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1, requires_grad=True)
        >>> multisample_bound(f, log_q).sum().backward()
        >>> log_q.grad.flatten()  # L - L_k, L = log (1 + e^2) / 2 and L_k = 2, 0
        tensor([-0.5662,  1.4338])
    """
    bound = importance_weighted_bound(scores)
    signal = multisample_signal(scores, baseline)
    # Where no other particle is possible, 0 stands in for the bound without this one.
    signal = torch.where(torch.isposinf(signal), bound.detach(), signal)
    return beta * ((signal * log_draw).sum(0) + bound)


class VIMCO_ELBO(ParticleELBO):
    """Score function of the bound of K particles, unbiased for any model and guide.

    Reparameterised latents keep their pathwise gradient. One that lies outside of the data's
    plates has a draw of its own in each particle and enters by its ELBO; the sum of the data's
    bounds then is no bound on their joint evidence. Entropies are always sampled.

    Args:
        num_particles: K, at least 2.
        baseline: What stands in for a particle's weight: the "geometric" or the "arithmetic"
            mean of the others'. They are the same at K = 2.
        beta: See `ParticleELBO`; not 0.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`.

    Raises:
        ValueError: If `baseline` is another word, K < 2, or `beta` is 0.
    """

    min_particles = 2
    least_beta = LEAST_BETA
    info_class = VIMCOInfo

    @checked
    def __init__(
        self,
        num_particles: int = 8,
        *,
        baseline: str = "geometric",
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if baseline not in BASELINES:
            raise ValueError(f"`baseline` must be one of {BASELINES}; got {baseline!r}.")
        if beta == 0:
            raise ValueError(
                "`beta` must be positive for VIMCO_ELBO, whose weights are exp(f / beta); got 0. "
                "Use Reinforce_ELBO without a rate."
            )
        self.baseline = baseline
        super().__init__(
            num_particles,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=False,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """The bound of the particles, whose scores keep the gradient of log q."""
        rate = particles.log_q - particles.log_prior
        scores = particles.log_likelihood / beta - rate
        value = multisample_bound(scores, particles.log_draw, beta=beta, baseline=self.baseline)
        iwae = importance_weighted_bound((particles.log_p - particles.log_q).detach())
        return Gain(value, {"iwae": iwae.mean()})
