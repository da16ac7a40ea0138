"""REINFORCE: the score-function gradient of the beta-ELBO, with baselines that are worth having.

For each datum, with ``f_k`` the beta-ELBO's integrand of particle k and ``b_k`` its baseline,

    gradient = mean_k [(f_k - b_k) grad log q(z_k) + grad f_k],

the second term along the pathwise parts (model, reparameterised sites, closed-form entropies).
Leave-one-out baselines [2] make this unbiased for K > 1 without anything to learn.

References:
    [1] Williams. Simple statistical gradient-following algorithms for connectionist reinforcement
        learning. Machine Learning, 1992.
    [2] Kool, van Hoof & Welling. Buy 4 REINFORCE samples, get a baseline for free! ICLR
        workshop, 2019.
    [3] Mnih & Gregor. Neural variational inference and learning in belief networks. ICML, 2014
        (moving-average and learned baselines).
"""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import BetaState, Estimate, ParticleELBO, objective
from pyro_dvae.ops.baselines import Baseline, leave_one_out, moving_average
from pyro_dvae.programs.run import Particles

__all__ = ["ReinforceInfo", "ReinforceState", "Reinforce_ELBO"]


class ReinforceState(NamedTuple):
    """Step and beta, and what the baseline remembers of past batches."""

    beta: BetaState
    baseline: Any


class ReinforceInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor


class Reinforce_ELBO(ParticleELBO):
    """Score-function estimator, unbiased for any model and guide.

    Args:
        num_particles: K.
        baseline: One of `pyro_dvae.ops.baselines`. Default: `leave_one_out` for K > 1, else
            `moving_average`. `learned` takes b(x) from the guide's site
            ``pyro.deterministic("baseline", b)``, under the data plate, and fits it to the scores.
        **options: See `ParticleELBO`.

    Raises:
        ValueError: If K is too small for the baseline, or `learned` finds no site "baseline".
    """

    def __init__(
        self, num_particles: int = 8, *, baseline: Baseline | None = None, **options: Any
    ) -> None:
        if baseline is None:
            baseline = leave_one_out() if num_particles > 1 else moving_average()
        self.baseline, self.min_particles = baseline, baseline.min_particles
        super().__init__(num_particles, **options)

    def init_state(self) -> ReinforceState:
        """What the first step needs, the baseline's part included."""
        return ReinforceState(super().init_state(), self.baseline.init())

    def _estimate(self, particles: Particles, state: ReinforceState) -> Estimate:
        prediction = particles.prediction
        if self.baseline.predicts and prediction is None:
            raise ValueError(
                "`baseline`: learned() needs the guide to compute its prediction; write "
                'pyro.deterministic("baseline", b) under the data plate, b of the plate\'s shape.'
            )
        beta = self._current_beta(state.beta)
        value = objective(particles, beta)
        scores = value.beta_elbo.detach()
        baseline, memory = self.baseline.apply(
            scores, state.baseline, None if prediction is None else prediction.detach()
        )
        gain = ((scores - baseline) * particles.log_draw + value.beta_elbo).mean(0).sum()
        if self.baseline.predicts and prediction is not None:
            gain = gain - 0.5 * (scores - prediction).square().mean(0).sum()
        loss = -particles.scale * value.elbo.mean(0).sum() - value.shared_elbo.mean()
        rate = (particles.log_likelihood - value.elbo).detach().mean()
        return Estimate(
            loss=loss,
            surrogate=-particles.scale * gain - value.shared_beta_elbo.mean(),
            info=ReinforceInfo(
                elbo=value.elbo.detach().mean(),
                beta_elbo=scores.mean(),
                rate=rate / math.log(2),
                beta=beta,
            ),
            state=ReinforceState(self._next_beta_state(state.beta, rate), memory),
        )
