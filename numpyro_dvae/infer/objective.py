"""What an algorithm is given and returns, and what a loss keeps between steps.

Given is the beta-ELBO of each particle, returned a gain.

A particle that is impossible, one that has no probability under the model, has an ELBO of -inf. It
counts as such in the value of a loss, and leaves the gradient to the particles that are possible.

Beta weighs the rate in the objective of every loss [1]: a number, a schedule, or what a target rate
steers. It is then the multiplier of that constraint [2]: it rises while the latents carry more than
the target, and falls while they carry less.

NumPyro's losses are pure functions. One that remembers (a schedule's step, a steered beta, a moving
average) finds its memory among the parameters and returns a new one beside the mutable state of the
programs; `numpyro_dvae.infer.SVI` puts the first one there.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.bounds import NATS_PER_BIT
from numpyro_dvae.ops.weighting import fill_impossible
from numpyro_dvae.programs.record import Particles

__all__ = [
    "LEAST_BETA",
    "LOSS_MEMORY",
    "BetaState",
    "Gain",
    "Info",
    "LossMemory",
    "Objective",
    "check_beta",
    "credited",
    "current_beta",
    "first_beta",
    "forgotten",
    "info_type",
    "make_objective",
    "mean_rate",
    "next_beta",
    "of_possible_data",
    "renewed",
    "scheduled",
    "take_memory",
    "without_impossible",
]

LEAST_BETA = 1e-6  # of objectives that divide by beta: where a schedule is at 0, their limit


class Objective(NamedTuple):
    """The beta-ELBO of each particle and its parts, in nats."""

    log_likelihood: Float[Array, "K *plates"]
    elbo: Float[Array, "K *plates"]  # log p - log q
    beta_elbo: Float[Array, "K *plates"]  # log p(x|z) + beta (log p(z) - log q)
    shared_elbo: Float[Array, "K"]  # of what the data share
    shared_beta_elbo: Float[Array, "K"]


class Gain(NamedTuple):
    """What an algorithm returns for one batch of particles."""

    value: Float[Array, "*plates"]  # to be ascended; its gradient is the estimator's
    info: Mapping[str, Any] = MappingProxyType({})  # scalars of its own, for logs
    memory: Any = None  # what its next step needs, in the structure that `init_memory` returns
    objective: Objective | None = None  # expected, (1, *plates), if no mean over the particles


class Info(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array


@checked
def info_type(module: str, name: str, *fields: str) -> Any:
    """A named tuple with the fields of `Info` and scalars of an algorithm's own."""
    return namedtuple(name, (*Info._fields, *fields), module=module)


def make_objective(particles: Particles, beta: float | Array) -> Objective:
    """ELBO and beta-ELBO of each particle; entropies in closed form where the record has them.

    No gradient flows through a sampled ``-log q`` of discrete sites: its mean is zero.
    """
    if particles.entropy is None:
        entropy = -jax.lax.stop_gradient(particles.log_q_discrete)
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


def without_impossible(particles: Particles, possible: Bool[Array, "K *plates"]) -> Particles:
    """Log-densities that no gradient leaves where a particle is impossible.

    There ``log p(x|z)`` is -inf and ``log p(z)`` 0; both are 0 for a datum whose particles are all
    impossible, which is left out of what is ascended.
    """
    floor = jnp.where(possible.any(0), -jnp.inf, 0.0).astype(particles.log_likelihood.dtype)
    return particles._replace(
        log_likelihood=jnp.where(possible, particles.log_likelihood, floor),
        log_prior=jnp.where(possible, particles.log_prior, 0.0),
    )


def of_possible_data(gain: Gain, alive: Bool[Array, "*plates"]) -> Gain:
    """Data of which no particle is possible gain nothing, and have an ELBO of -inf."""
    gain = gain._replace(value=jnp.where(alive, gain.value, 0.0))
    if gain.objective is None:
        return gain
    elbo, beta_elbo = gain.objective.elbo, gain.objective.beta_elbo
    expected = gain.objective._replace(
        elbo=jnp.where(alive, elbo, -jnp.inf), beta_elbo=jnp.where(alive, beta_elbo, -jnp.inf)
    )
    return gain._replace(objective=expected)


def mean_rate(objective: Objective) -> Float[Array, ""]:
    """What the latents carry, in nats: the mean over particles that are possible."""
    possible = objective.elbo != -jnp.inf
    rates = jnp.where(possible, objective.log_likelihood - objective.elbo, 0.0)
    return jax.lax.stop_gradient(rates).sum() / jnp.maximum(possible.sum(), 1)


def credited(
    particles: Particles,
    beta: float | Array,
    advantages: Callable[[Array], Array],
) -> Float[Array, "*plates"]:
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

    step: int | Int[Array, ""]
    log_beta: float | Float[Array, ""]


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
    """What the first step needs; arrays, of the dtypes that they keep."""
    log_beta = 0.0 if callable(beta) or not beta else math.log(beta)
    return BetaState(jnp.zeros((), int), jnp.asarray(log_beta, float))


def current_beta(
    state: BetaState, beta: float | Callable[[int], float], target_rate: float | None
) -> float | Array:
    """Beta at this step."""
    if target_rate is not None:
        return jnp.exp(state.log_beta)
    return scheduled("beta", beta, state.step)


def next_beta(
    state: BetaState, target_rate: float | None, rate: float | Float[Array, ""]
) -> BetaState:
    """What the step after needs, of a step with this rate in nats per datum."""
    if target_rate is None:
        return BetaState(state.step + 1, state.log_beta)
    excess = jnp.asarray(rate) / (target_rate * NATS_PER_BIT) - 1.0
    excess = jnp.where(jnp.isfinite(excess), excess, 0.0)  # a bad batch is not remembered
    return BetaState(state.step + 1, state.log_beta + _RATE_GAIN * jnp.clip(excess, -1, 1))


LOSS_MEMORY = "_loss"  # the name of a loss's memory in the mutable state


class LossMemory(NamedTuple):
    """What a loss keeps."""

    state: Any  # `elbo.LossState`: what the next step needs
    info: Any  # scalars of the last step, for logs; NaN before the first


def take_memory(loss: Any, params: dict[str, Any]) -> LossMemory | None:
    """The memory of a `ParticleELBO`, which is then no longer among the parameters.

    Raises:
        ValueError: If there is none and the loss needs it.
    """
    memory = params.pop(LOSS_MEMORY, None)
    if memory is None and loss.remembers:
        raise forgotten(loss)
    return memory


def forgotten(loss: Any) -> ValueError:
    """What to say of a memory that is not there."""
    return ValueError(
        f"{type(loss).__name__} remembers between steps ({loss.memories}), but its state is "
        "not there. Use numpyro_dvae.infer.SVI, which has the arguments of numpyro.infer.SVI, "
        "or pass the state of svi.init(...) through numpyro_dvae.infer.svi.with_memory."
    )


def renewed(old: LossMemory, new: LossMemory) -> LossMemory:
    """The new memory without gradient, in the dtypes of the old: no step compiles anew."""
    return jax.tree.map(
        lambda new, old: jax.lax.stop_gradient(jnp.asarray(new, jnp.result_type(old))), new, old
    )


def scheduled(name: str, value: Any, step: int | Array) -> Any:
    """The value of an argument at a step, if it is a schedule.

    Raises:
        ValueError: If the schedule asks for the value of the step, which is traced.
    """
    if not callable(value):
        return value
    try:
        return value(step)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"`{name}` must be a schedule of JAX operations (jnp.exp for math.exp, jnp.where for "
            "if), as `step` is traced under jit; got one that asks for its value."
        ) from error
