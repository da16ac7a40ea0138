"""What an algorithm is given and returns, and beta, the weight of the rate.

Given is the beta-ELBO of each particle, returned a gain.

A particle that is impossible, one that has no probability under the model, has an ELBO of -inf. It
counts as such in the value of a loss, and leaves the gradient to the particles that are possible.

Beta weighs the rate in the objective of every loss [1]: a number, a schedule, or what a target rate
steers. It is then the multiplier of that constraint [2]: it rises while the latents carry more than
the target, and falls while they carry less.

Shapes: K particles lead, then the plates that make a datum; nats.

References:
    [1] Higgins et al. beta-VAE: learning basic visual concepts with a constrained variational
        framework. ICLR, 2017.
    [2] Rezende & Viola. Taming VAEs. arXiv 1810.00597.
"""

import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.bounds import NATS_PER_BIT
from pyro_dvae.ops.weighting import fill_impossible
from pyro_dvae.programs.record import Particles

__all__ = [
    "LEAST_BETA",
    "BetaState",
    "Gain",
    "Info",
    "Objective",
    "check_beta",
    "credited",
    "current_beta",
    "first_beta",
    "info_type",
    "make_objective",
    "mean_rate",
    "next_beta",
    "of_possible_data",
    "without_impossible",
]

LEAST_BETA = 1e-6  # of objectives that divide by beta: where a schedule is at 0, their limit


class Objective(NamedTuple):
    """The beta-ELBO of each particle and its parts, in nats."""

    log_likelihood: Float[Tensor, "K *plates"]
    elbo: Float[Tensor, "K *plates"]  # log p - log q
    beta_elbo: Float[Tensor, "K *plates"]  # log p(x|z) + beta (log p(z) - log q)
    shared_elbo: Float[Tensor, "K"]  # of what the data share
    shared_beta_elbo: Float[Tensor, "K"]


class Gain(NamedTuple):
    """What an algorithm returns for one batch of particles."""

    value: Float[Tensor, "*plates"]  # to be ascended; its gradient is the estimator's
    info: Mapping[str, Any] = MappingProxyType({})  # scalars of its own, for logs
    memory: Any = None  # what its next step needs, in the structure that `init_memory` returns
    objective: Objective | None = None  # expected, (1, *plates), if no mean over the particles


class Info(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Tensor, ""]  # nats
    beta_elbo: Float[Tensor, ""]  # nats
    rate: Float[Tensor, ""]  # bits that the latents carry
    beta: float | Tensor


@checked
def info_type(module: str, name: str, *fields: str) -> Any:
    """A named tuple with the fields of `Info` and scalars of an algorithm's own."""
    return namedtuple(name, (*Info._fields, *fields), module=module)


def make_objective(particles: Particles, beta: float | Tensor) -> Objective:
    """ELBO and beta-ELBO of each particle; entropies in closed form where the record has them.

    No gradient flows through a sampled ``-log q`` of discrete sites: its mean is zero.
    """
    if particles.entropy is None:
        entropy = -particles.log_q_discrete.detach()
    else:
        entropy = particles.entropy
    negative_rate = particles.log_prior - particles.log_q_pathwise + entropy
    shared_negative_rate = particles.shared_prior - particles.shared_q
    return Objective(
        log_likelihood=particles.log_likelihood,
        elbo=particles.log_likelihood + negative_rate,
        beta_elbo=particles.log_likelihood + beta * negative_rate,
        shared_elbo=particles.shared_likelihood + shared_negative_rate,
        shared_beta_elbo=particles.shared_likelihood + beta * shared_negative_rate,
    )


def without_impossible(particles: Particles, possible: Bool[Tensor, "K *plates"]) -> Particles:
    """Log-densities that no gradient leaves where a particle is impossible.

    There ``log p(x|z)`` is -inf and ``log p(z)`` 0; both are 0 for a datum whose particles are all
    impossible, which is left out of what is ascended.
    """
    floor = torch.where(possible.any(0), -math.inf, 0.0).to(particles.log_likelihood.dtype)
    return particles._replace(
        log_likelihood=torch.where(possible, particles.log_likelihood, floor),
        log_prior=torch.where(possible, particles.log_prior, 0.0),
    )


def of_possible_data(gain: Gain, alive: Bool[Tensor, "*plates"]) -> Gain:
    """Data of which no particle is possible gain nothing, and have an ELBO of -inf."""
    gain = gain._replace(value=torch.where(alive, gain.value, 0.0))
    if gain.objective is None:
        return gain
    elbo, beta_elbo = gain.objective.elbo, gain.objective.beta_elbo
    expected = gain.objective._replace(
        elbo=torch.where(alive, elbo, -math.inf), beta_elbo=torch.where(alive, beta_elbo, -math.inf)
    )
    return gain._replace(objective=expected)


def mean_rate(objective: Objective) -> Float[Tensor, ""]:
    """What the latents carry, in nats: the mean over particles that are possible."""
    possible = objective.elbo != -math.inf
    rates = torch.where(possible, (objective.log_likelihood - objective.elbo).detach(), 0.0)
    return rates.sum() / possible.sum().clamp(min=1)


def credited(
    particles: Particles,
    beta: float | Tensor,
    advantages: Callable[[Tensor], Tensor],
) -> Float[Tensor, "*plates"]:
    """The score of each site times the advantages of what its draws influence, by datum.

    Args:
        particles: With the `Credit` of each site in ``extras["credit"]``.
        beta: Weight of the rate.
        advantages: From scores ``(K, *batch)`` to how much better each is than what it is compared
            with, without gradient.
    """
    value: Any = 0.0
    for credit in particles.extras["credit"].values():
        scores = fill_impossible(credit.log_likelihood + beta * credit.negative_rate)
        cells = (advantages(scores) * credit.log_draw).mean(0)
        data = particles.log_draw.shape[1:]
        value = value + cells.reshape(*data, math.prod(cells.shape[len(data) :])).sum(-1)
    return value


_RATE_GAIN = 0.01  # largest change of log beta per step


class BetaState(NamedTuple):
    """Step count, and the logarithm of beta where a target rate steers it."""

    step: int
    log_beta: float | Tensor


def check_beta(owner: str, beta: Any, target_rate: float | None) -> None:
    """Whether these arguments of a loss can be.

    Raises:
        ValueError: If one is out of range, or if they exclude each other.
    """
    is_number = isinstance(beta, float | int) and not isinstance(beta, bool)
    if not callable(beta) and not (is_number and 0 <= beta < math.inf):
        raise ValueError(f"`beta` must be finite and not negative, or a schedule; got {beta!r}.")
    if target_rate is not None and not 0 < target_rate < math.inf:
        raise ValueError(f"`target_rate` must be positive and finite, in bits; got {target_rate}.")
    if target_rate is not None and (callable(beta) or beta == 0):
        raise ValueError(
            f"`target_rate` steers {owner}'s beta from the number that `beta` is, which must be "
            f"positive; got {'a schedule' if callable(beta) else beta}. Leave one of the two out."
        )


def first_beta(beta: float | Callable[[int], float]) -> BetaState:
    """What the first step needs."""
    return BetaState(0, 0.0 if callable(beta) or not beta else math.log(beta))


def current_beta(
    state: BetaState, beta: float | Callable[[int], float], target_rate: float | None
) -> float | Tensor:
    """Beta at this step."""
    if target_rate is not None:
        return torch.as_tensor(state.log_beta).exp()
    return float(beta(state.step)) if callable(beta) else beta


def next_beta(
    state: BetaState, target_rate: float | None, rate: float | Float[Tensor, ""]
) -> BetaState:
    """What the step after needs, of a step with this rate in nats per datum."""
    if target_rate is None:
        return BetaState(state.step + 1, state.log_beta)
    excess = torch.as_tensor(rate) / (target_rate * NATS_PER_BIT) - 1.0
    excess = torch.where(excess.isfinite(), excess, 0.0)  # a bad batch is not remembered
    return BetaState(state.step + 1, state.log_beta + _RATE_GAIN * excess.clamp(-1, 1))
