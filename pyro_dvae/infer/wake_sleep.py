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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import LEAST_BETA, Gain, Objective, info_type
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.bounds import importance_weighted_bound
from pyro_dvae.ops.tempering import effective_sample_size
from pyro_dvae.ops.weighting import centered_weights, policy_weights
from pyro_dvae.programs.record import Particles
from pyro_dvae.programs.run import ReplaceData, check_dreams, dream
from pyro_dvae.programs.sites import Pair

__all__ = ["WakeSleepInfo", "WakeSleep_ELBO", "wake_sleep"]

# iwae: bound of K particles at beta = 1, nats; ess: of the weights, as a fraction of K
WakeSleepInfo = info_type(__name__, "WakeSleepInfo", "iwae", "ess")


def wake_sleep(
    scores: Float[Tensor, "K *plates"],
    log_q: Float[Tensor, "K *plates"],
    returns: Float[Tensor, "K *plates"],
    dreamt: Float[Tensor, "*plates"] | None = None,
    sleep: float = 0.0,
) -> Float[Tensor, "*plates"]:
    """A step of the model up the bound of K particles, and of the guide to the posterior.

    Args:
        scores: ``f / beta`` of each particle, without gradient: they make the weights.
        log_q: Log-density of each draw under the guide, with its gradient.
        returns: What the model ascends, ``log p(x|z) + beta log p(z)``.
        dreamt: Log-density under the guide of draws that the model made, for the sleep update.
        sleep: Share of the sleep update in the guide's, in [0, 1].

    Returns:
        What is ascended, for each datum.

    Example:
        >>> f, log_q = torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1, requires_grad=True)
        >>> wake_sleep(f, log_q, torch.zeros(2, 1)).sum().backward()
        >>> log_q.grad.flatten()  # softmax(f) - 1 / K
        tensor([-0.3808,  0.3808])
    """
    weights = policy_weights(scores, 1.0)
    guide = (centered_weights(weights) * log_q).sum(0)
    if dreamt is not None:
        guide = (1.0 - sleep) * guide + sleep * dreamt
    return guide + (weights * returns).sum(0)


class WakeSleep_ELBO(ParticleELBO):
    """Reweighted wake-sleep with weights per datum.

    Latents outside of the data's plates have no weights: they follow the ELBO's pathwise gradient.
    Entropies are always sampled.

    Args:
        num_particles: K, at least 2.
        sleep: Share of the sleep update in the guide's, in [0, 1]; the rest is the wake update.
        replace_data: For the sleep update: maps (data that the model made, by observed site; args;
            kwargs) to the (args, kwargs) of the guide. Default: the value of the model's one
            observed site takes the place of the first argument, which has its shape.
        beta: See `ParticleELBO`; not 0.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`.

    Raises:
        ValueError: If `sleep` is out of range, K < 2, or `beta` is 0; on a step, if the model's
            data have no place among the arguments, or are drawn given data that are there.
    """

    min_particles = 2
    least_beta = LEAST_BETA
    pathwise = False
    info_class = WakeSleepInfo

    @checked
    def __init__(
        self,
        num_particles: int = 8,
        *,
        sleep: float = 0.0,
        replace_data: ReplaceData | None = None,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if not 0.0 <= sleep <= 1.0:
            raise ValueError(f"`sleep` is a share of the guide's update, in [0, 1]; got {sleep}.")
        if beta == 0:
            raise ValueError(
                "`beta` must be positive for WakeSleep_ELBO, whose weights are exp(f / beta); "
                "got 0. Use Reinforce_ELBO without a rate."
            )
        self.sleep, self.replace_data = sleep, replace_data or _replace_first
        super().__init__(
            num_particles,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=False,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def inspect(self, pair: Pair) -> None:
        """Refuse data that the model makes of those whose place they take."""
        if self.sleep:
            check_dreams(pair, self.replace_data)

    def run_pair(self, pair: Pair) -> Particles:
        """Run the programs, and let the model dream if its dreams are learnt from."""
        particles = super().run_pair(pair)
        if not (self.sleep and torch.is_grad_enabled()):
            return particles
        dreamt = dream(pair, self.replace_data) / particles.scale
        return particles._replace(extras={**particles.extras, "dreamt": dreamt[None]})

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """Weigh the draws for both programs."""
        log_weights = (particles.log_p - particles.log_q).detach()
        dreamt = particles.extras.get("dreamt")
        scores = objective.beta_elbo.detach() / beta
        value = wake_sleep(
            scores,
            particles.log_draw + particles.log_q_pathwise,
            particles.log_likelihood + beta * particles.log_prior,
            None if dreamt is None else dreamt[0],
            self.sleep,
        )
        iwae = importance_weighted_bound(log_weights).mean()
        ess = effective_sample_size(scores).mean() / len(scores)
        return Gain(value, {"iwae": iwae, "ess": ess})


def _replace_first(made: dict[str, Any], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Put the model's data in the place of the first argument."""
    first = args[0] if args else None
    shapes = {name: tuple(value.shape) for name, value in made.items()}
    if not isinstance(first, Tensor) or list(shapes.values()) != [tuple(first.shape)]:
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(
            "`sleep` hands the guide data that the model made, in place of its first argument, "
            f"but the observed sites are {shapes} and that argument is {found}. Pass "
            "`replace_data`, which maps (data by site, args, kwargs) to the guide's (args, kwargs)."
        )
    (value,) = made.values()
    return (torch.as_tensor(value, dtype=first.dtype), *args[1:]), kwargs
