"""The edge that all losses share: particles in, minus the ELBO out, state kept between steps.

An algorithm is a pure function from `Particles` and its state to an `Estimate`; `ParticleELBO` runs
the programs, threads the state and speaks NumPyro's loss protocol. The value of every loss is minus
the ELBO in nats, as NumPyro scales it, whatever surrogate makes the gradient; so curves of
different algorithms share one axis. Objectives with a weight beta on the rate (Higgins et al. [1])
are reported in `Memory.info`.

A loss that remembers (a schedule's step, a steered beta, a moving average) keeps its `Memory` in
NumPyro's mutable state, where `numpyro_dvae.infer.SVI` puts the first one.

References:
    [1] Higgins et al. beta-VAE: learning basic visual concepts with a constrained variational
        framework. ICLR, 2017.
    [2] Rezende & Viola. Taming VAEs. arXiv 1810.00597 (a multiplier that meets a constraint).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpyro.handlers import substitute
from numpyro.infer.elbo import ELBO

from numpyro_dvae.programs.layout import find_layout
from numpyro_dvae.programs.run import Particles, run_particles
from numpyro_dvae.programs.sites import Layout

__all__ = ["BetaState", "Estimate", "Objective", "ParticleELBO", "objective"]

LOSS_MEMORY = "_loss"  # the name of a loss's memory in the mutable state

_RATE_GAIN = 0.01  # largest change of log beta per step towards `target_rate`


class Memory(NamedTuple):
    """What a loss keeps in NumPyro's mutable state."""

    state: Any  # what the next step needs
    info: Any  # scalars of the last step, for logs; NaN before the first


class Estimate(NamedTuple):
    """What an algorithm returns for one batch of particles."""

    loss: Float[Array, ""]  # minus the ELBO
    surrogate: Float[Array, ""]  # its gradient is the estimator's
    info: Any  # a NamedTuple of scalars, for logs
    state: Any  # a NamedTuple that the next step needs


class BetaState(NamedTuple):
    """Step count, and the logarithm of beta where a target rate steers it."""

    step: int | Int[Array, ""]
    log_beta: float | Float[Array, ""]


class Objective(NamedTuple):
    """The beta-ELBO of each particle and its parts."""

    elbo: Float[Array, "K *plates"]  # log p - log q
    beta_elbo: Float[Array, "K *plates"]  # log p(x|z) + beta (log p(z) - log q)
    shared_elbo: Float[Array, "K"]
    shared_beta_elbo: Float[Array, "K"]


def objective(particles: Particles, beta: float | Array) -> Objective:
    """ELBO and beta-ELBO of each particle; entropies in closed form where the record has them.

    No gradient flows through a sampled ``-log q`` of discrete sites: its mean is zero.
    """
    if particles.entropy is None:
        entropy = -jax.lax.stop_gradient(particles.log_q_discrete)
    else:
        entropy = particles.entropy
    rate = particles.log_prior - particles.log_q_rest + entropy  # minus the KL's integrand
    shared_rate = particles.shared_prior - particles.shared_q
    return Objective(
        elbo=particles.log_likelihood + rate,
        beta_elbo=particles.log_likelihood + beta * rate,
        shared_elbo=particles.shared_likelihood + shared_rate,
        shared_beta_elbo=particles.shared_likelihood + beta * shared_rate,
    )


class ParticleELBO(ELBO):
    """Base of the losses: subclass it with one pure method, `_estimate`.

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
    """

    can_infer_discrete = True
    min_particles = 1
    with_codes = False
    memories = "a schedule of `beta`, a `target_rate` or a moving average"
    info_class: Any  # the NamedTuple of the estimate's info

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
        self._pair: tuple[Any, Any] | None = None
        self._layout: Layout | None = None

    @abstractmethod
    def _estimate(self, particles: Particles, state: Any) -> Estimate:
        """The algorithm: pure, no branch on array values."""

    def _values(
        self, rng_key: Array, guide: Callable, args: tuple, kwargs: dict, layout: Layout
    ) -> dict[str, Array] | None:
        """Values of guide sites in place of draws; None to sample."""
        return None

    def init_state(self) -> Any:
        """What the first step needs; arrays, of the dtypes that they keep."""
        log_beta = 0.0 if callable(self.beta) or not self.beta else math.log(self.beta)
        return BetaState(jnp.zeros((), int), jnp.asarray(log_beta, float))

    def init_memory(self, mutable_state: dict[str, Any] | None = None) -> Memory:
        """The memory of a loss that has not run; its shapes may depend on the mutable state."""
        nothing = jnp.full((), jnp.nan, float)
        return Memory(self.init_state(), self.info_class(*[nothing] * len(self.info_class._fields)))

    @property
    def remembers(self) -> bool:
        """Whether a step needs the state of the one before."""
        return callable(self.beta) or self.target_rate is not None

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
        own `Memory`.
        """
        params = dict(param_map)
        memory = self._take_memory(params)
        state = self.init_state() if memory is None else memory.state
        particles, mutable = self._run(rng_key, params, model, guide, args, kwargs)
        return self._result(self._estimate(particles, state), memory, mutable)

    def _take_memory(self, params: dict[str, Any]) -> Memory | None:
        """The loss's own memory, which is then no longer among the parameters."""
        memory = params.pop(LOSS_MEMORY, None)
        if memory is None and self.remembers:
            raise self._forgotten()
        return memory

    def _forgotten(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} remembers between steps ({self.memories}), but its state is "
            "not there. Use numpyro_dvae.infer.SVI, which has the arguments of numpyro.infer.SVI, "
            "or pass the state of svi.init(...) through numpyro_dvae.infer.svi.with_memory."
        )

    def _result(
        self, estimate: Estimate, memory: Memory | None, mutable: dict[str, Any]
    ) -> dict[str, Any]:
        loss = estimate.surrogate + jax.lax.stop_gradient(estimate.loss - estimate.surrogate)
        if memory is not None:
            mutable[LOSS_MEMORY] = _renewed(memory, Memory(estimate.state, estimate.info))
        return {"loss": loss, "mutable_state": mutable or None}

    # ---------------------------------------------------------------------------- particles

    def _find_layout(
        self, rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Layout:
        return find_layout(rng_key, model, guide, args, kwargs, self.max_plate_nesting)

    def _run(
        self,
        rng_key: Array,
        params: dict[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        pair, (key, values_key) = (model, guide), jax.random.split(rng_key)
        model, guide = substitute(model, data=params), substitute(guide, data=params)
        if self._pair != pair or self._layout is None:
            self._layout = self._find_layout(key, model, guide, args, kwargs)
            self._pair = pair
        values = self._values(values_key, guide, args, kwargs, self._layout)
        return run_particles(
            key,
            model,
            guide,
            args,
            kwargs,
            self._layout,
            len(next(iter(values.values()))) if values else self.num_particles,
            vectorize=self.vectorize_particles,
            with_entropy=self.closed_form_entropy,
            with_codes=self.with_codes,
            values=values,
        )

    # ------------------------------------------------------------------------- beta and rate

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


def scheduled(name: str, value: Any, step: int | Array) -> Any:
    """The value of an argument at a step, if it is a schedule."""
    if not callable(value):
        return value
    try:
        return value(step)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"`{name}` must be a schedule of JAX operations (jnp.exp for math.exp, jnp.where for "
            "if), as `step` is traced under jit; got one that asks for its value."
        ) from error


def _renewed(old: Memory, new: Memory) -> Memory:
    """The new memory without gradient, in the dtypes of the old: no step compiles anew."""
    return jax.tree.map(
        lambda new, old: jax.lax.stop_gradient(jnp.asarray(new, jnp.result_type(old))), new, old
    )
