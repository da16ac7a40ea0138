"""The edge that all losses share: particles in, minus the ELBO out, memory kept between steps.

An algorithm is a pure function of arrays, and a subclass of `ParticleELBO` that says what it reads
of a run and calls that function in `gain`. `ParticleELBO` does the rest: it runs the programs,
makes loss and surrogate, hands on beta and the memory, and speaks NumPyro's loss protocol.

The value of every loss is minus the ELBO in nats, as NumPyro scales it, whatever surrogate makes
the gradient; so curves of different algorithms share one axis. Objectives with a weight beta on the
rate (Higgins et al. [1]) are reported in `LossMemory.info`.

References:
    [1] Higgins et al. beta-VAE: learning basic visual concepts with a constrained variational
        framework. ICLR, 2017.
    [2] Rezende & Viola. Taming VAEs. arXiv 1810.00597 (a multiplier that meets a constraint).
"""

import math
from abc import abstractmethod
from collections import namedtuple
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro.handlers import substitute
from numpyro.infer.elbo import ELBO

from numpyro_dvae.infer.memory import (
    LOSS_MEMORY,
    LossMemory,
    renewed,
    scheduled,
    take_memory,
)
from numpyro_dvae.programs.draw import Sampler
from numpyro_dvae.programs.layout import find_layout
from numpyro_dvae.programs.pair import Layout, Pair
from numpyro_dvae.programs.record import Particles, Reader
from numpyro_dvae.programs.run import run_particles

__all__ = [
    "BetaState",
    "Gain",
    "Info",
    "LossState",
    "Objective",
    "ParticleELBO",
    "info_type",
    "make_objective",
]

_RATE_GAIN = 0.01  # largest change of log beta per step towards `target_rate`


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
    memory: Any = None  # what its next step needs: arrays in tuples and dicts, of fixed shapes
    objective: Objective | None = None  # expected, (1, *plates), if no mean over the particles


class BetaState(NamedTuple):
    """Step count, and the logarithm of beta where a target rate steers it."""

    step: int | Int[Array, ""]
    log_beta: float | Float[Array, ""]


class LossState(NamedTuple):
    """What the next step needs."""

    beta: BetaState
    memory: Any  # the algorithm's own


class Info(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array


def info_type(module: str, name: str, *fields: str) -> Any:
    """A named tuple with the fields of `Info` and scalars of an algorithm's own."""
    return namedtuple(name, (*Info._fields, *fields), module=module)


class _Estimate(NamedTuple):
    """One evaluation of a loss."""

    loss: Float[Array, ""]  # minus the ELBO
    surrogate: Float[Array, ""]  # its gradient is the estimator's
    info: Any
    state: LossState


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


class ParticleELBO(ELBO):
    """Base of the losses: subclass it with one method, `gain`.

    Args:
        num_particles: K, draws of the latents per datum.
        beta: Weight of the rate, a number or a schedule ``step -> number``, which is traced: made
            of JAX operations, as optax's are.
        target_rate: Bits per datum that the latents should carry; beta is then steered to it.
        closed_form_entropy: Use the entropies of the guide's sites where they have one, instead of
            sampled log-densities.
        max_plate_nesting: As in NumPyro; found by an abstract run if left out.
        vectorize_particles: Run the programs under `jax.vmap` over particles, else one particle
            after another, with the same result; or any callable that NumPyro's losses take.

    A schedule, a target rate or a baseline that learns needs the state of the step before:
    `numpyro_dvae.infer.SVI` provides it, with the arguments of NumPyro's `SVI`.

    Raises:
        ValueError: If an argument is out of range; on a call, if the programs cannot be handled.
    """

    can_infer_discrete = True
    min_particles: int = 1
    reads: ClassVar[Mapping[str, Reader]] = MappingProxyType({})  # into `Particles.extras`
    pathwise: ClassVar[bool] = True  # whether reparameterised draws of a datum keep their gradient
    info_class: ClassVar[Any] = Info  # made by `info_type` if `Gain.info` has scalars
    memories: ClassVar[str] = "a schedule of `beta`, a `target_rate` or a moving average"

    def __init__(
        self,
        num_particles: int,
        *,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        closed_form_entropy: bool = True,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if not isinstance(num_particles, int) or num_particles < self.min_particles:
            raise ValueError(
                f"`num_particles` must be an integer of at least {self.min_particles} for "
                f"{type(self).__name__}; got {num_particles!r}."
            )
        if not callable(beta) and not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"`beta` must be finite and not negative, or a schedule; got {beta}.")
        if target_rate is not None and not target_rate > 0:
            raise ValueError(f"`target_rate` must be positive, in bits; got {target_rate}.")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.max_plate_nesting = max_plate_nesting
        self.beta, self.target_rate = beta, target_rate
        self.closed_form_entropy = closed_form_entropy
        self._prepared: Pair | None = None

    # ---------------------------------------------------------------- what an algorithm brings

    @abstractmethod
    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """The algorithm: pure, no branch on array values.

        Args:
            particles: Log-densities per particle and datum, and what `reads` made.
            objective: ELBO and beta-ELBO of each particle.
            beta: Weight of the rate at this step.
            memory: What `init_memory` or the step before returned.
        """

    def init_memory(self, mutable_state: Mapping[str, Any] | None = None) -> Any:
        """What the algorithm's first step remembers; its shapes may depend on the programs'."""
        return None

    def inspect(self, rng_key: Array, pair: Pair) -> Any:
        """What the algorithm must know of the programs, found once, into `Pair.notes`."""
        return None

    def sampler(self, rng_key: Array, pair: Pair) -> Sampler | None:
        """How some sites are drawn in a way of the algorithm's own."""
        return None

    def values(self, rng_key: Array, pair: Pair) -> Mapping[str, Array] | None:
        """Values of guide sites in place of draws, K in front; None to sample."""
        return None

    def run(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        """Run the programs with K particles: the record, and the mutable state that they leave."""
        pair = self.prepare(rng_key, params, model, guide, args, kwargs)
        return self.run_pair(rng_key, pair)

    # --------------------------------------------------------------------- NumPyro's protocol

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Minus the ELBO, with the estimator's gradient, and the mutable state after the step.

        The mutable state holds what the programs keep and, if `param_map` brings it, the loss's
        own `LossMemory`.
        """
        params = dict(param_map)
        memory = take_memory(self, params)
        state = self.init_state() if memory is None else memory.state
        particles, mutable = self.run(rng_key, params, model, guide, args, kwargs)
        return self._result(self._estimate(particles, state), memory, mutable)

    def _result(
        self, estimate: _Estimate, memory: LossMemory | None, mutable: dict[str, Any]
    ) -> dict[str, Any]:
        loss = estimate.surrogate + jax.lax.stop_gradient(estimate.loss - estimate.surrogate)
        if memory is not None:
            mutable[LOSS_MEMORY] = renewed(memory, LossMemory(estimate.state, estimate.info))
        return {"loss": loss, "mutable_state": mutable or None}

    # ---------------------------------------------------------------------------- particles

    def prepare(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> Pair:
        """The programs at `params`, and what an abstract run tells of them at the first call."""
        known, programs = self._prepared, (model, guide)
        model, guide = (substitute(program, data=params) for program in programs)
        pair = Pair(model, guide, args, kwargs, vectorize=self.vectorize_particles)
        if known is None or (known.model, known.guide) != programs:
            pair = pair._replace(layout=self.find_layout(rng_key, pair))
            known = Pair(*programs, (), {}, pair.layout, notes=self.inspect(rng_key, pair))
            self._prepared = known
        return pair._replace(layout=known.layout, notes=known.notes)

    def find_layout(self, rng_key: Array, pair: Pair) -> Layout:
        """How the sites of the programs lie."""
        return find_layout(rng_key, pair, self.max_plate_nesting)

    def run_pair(self, rng_key: Array, pair: Pair) -> tuple[Particles, dict[str, Any]]:
        """Run prepared programs with K particles, or with the `values` that are given."""
        key, values_key = jax.random.split(rng_key)
        values = self.values(values_key, pair)
        return run_particles(
            key,
            pair,
            len(next(iter(values.values()))) if values else self.num_particles,
            reads=self.reads,
            with_entropy=self.closed_form_entropy,
            values=values,
            sampler=self.sampler(jax.random.split(key)[1], pair),  # the key of the other draws
            pathwise=self.pathwise,
        )

    # --------------------------------------------------------------- loss, surrogate, beta, rate

    def init_state(self, mutable_state: Mapping[str, Any] | None = None) -> LossState:
        """What the first step needs; arrays, of the dtypes that they keep."""
        log_beta = 0.0 if callable(self.beta) or not self.beta else math.log(self.beta)
        beta = BetaState(jnp.zeros((), int), jnp.asarray(log_beta, float))
        return LossState(beta, self.init_memory(mutable_state))

    def init_loss_memory(self, mutable_state: Mapping[str, Any] | None = None) -> LossMemory:
        """What a loss that has not run keeps beside the mutable state of the programs."""
        nothing = jnp.full((), jnp.nan, float)
        info = self.info_class(*[nothing] * len(self.info_class._fields))
        return LossMemory(self.init_state(mutable_state), info)

    @property
    def remembers(self) -> bool:
        """Whether a step needs the state of the one before."""
        steers = callable(self.beta) or self.target_rate is not None
        return steers or bool(jax.tree.leaves(self.init_memory()))

    def _estimate(self, particles: Particles, state: LossState) -> _Estimate:
        beta = self._current_beta(state.beta, particles)
        objective = make_objective(particles, beta)
        gain = self.gain(particles, objective, beta, state.memory)
        expected = gain.objective or objective
        rate = (expected.log_likelihood - expected.elbo).mean()
        info = {
            "elbo": expected.elbo.mean(),
            "beta_elbo": expected.beta_elbo.mean(),
            "rate": rate / math.log(2),
            "beta": beta,
        }
        scale = particles.scale
        return _Estimate(
            loss=-scale * expected.elbo.mean(0).sum() - expected.shared_elbo.mean(),
            surrogate=-scale * gain.value.sum() - expected.shared_beta_elbo.mean(),
            info=self.info_class(**info, **gain.info),
            state=LossState(self._next_beta_state(state.beta, rate), gain.memory),
        )

    def _current_beta(self, state: BetaState, particles: Particles) -> float | Array:
        """A number, or an array of the log-densities' dtype."""
        beta = self._beta(state)
        if isinstance(beta, float | int):
            return beta
        return jnp.asarray(beta, particles.log_likelihood.dtype)

    def _beta(self, state: BetaState) -> Any:
        if self.target_rate is not None:
            return jnp.exp(state.log_beta)
        return scheduled("beta", self.beta, state.step)

    def _next_beta_state(self, state: BetaState, rate: Float[Array, ""]) -> BetaState:
        """`rate` in nats per datum. Beta rises while the latents carry more than the target."""
        if self.target_rate is None:
            return BetaState(state.step + 1, state.log_beta)
        excess = jax.lax.stop_gradient(rate) / (self.target_rate * math.log(2)) - 1.0
        return BetaState(state.step + 1, state.log_beta + _RATE_GAIN * jnp.clip(excess, -1, 1))
