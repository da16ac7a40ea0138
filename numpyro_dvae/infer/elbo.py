"""The edge that all losses share: particles in, minus the ELBO out, memory kept between steps.

An algorithm is a pure function of arrays, and a subclass of `ParticleELBO` that says what it reads
of a run and calls that function in `gain`. `ParticleELBO` does the rest: it runs the programs,
makes loss and surrogate, hands on beta and the memory, and speaks NumPyro's loss protocol.

The value of every loss is minus the ELBO in nats, as NumPyro scales it, whatever surrogate makes
the gradient; so curves of different algorithms share one axis. Objectives with a weight on the
rate, `beta`, are reported in `LossMemory.info`.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.infer.elbo import ELBO

from numpyro_dvae.infer.closed_forms import ClosedForms
from numpyro_dvae.infer.objective import (
    LOSS_MEMORY,
    BetaState,
    Gain,
    Info,
    LossMemory,
    Objective,
    check_beta,
    current_beta,
    first_beta,
    make_objective,
    mean_rate,
    next_beta,
    of_possible_data,
    renewed,
    take_memory,
    without_impossible,
)
from numpyro_dvae.infer.options import NamedOptions
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.bounds import NATS_PER_BIT
from numpyro_dvae.programs.draw import Sampler
from numpyro_dvae.programs.plans import Plans
from numpyro_dvae.programs.record import Particles, Reader
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Layout, Pair
from numpyro_dvae.programs.structure.layout import find_layout
from numpyro_dvae.programs.structure.mixing import with_mixed_together

__all__ = ["LossState", "ParticleELBO"]

_OF_PROGRAMS = ("_plans", "_link", "_closed_forms")  # attributes that hold a model and a guide


class LossState(NamedTuple):
    """What the next step needs."""

    beta: BetaState
    memory: Any  # the algorithm's own


class _Estimate(NamedTuple):
    """One evaluation of a loss."""

    loss: Float[Array, ""]  # minus the ELBO
    surrogate: Float[Array, ""]  # its gradient is the estimator's
    info: Any
    state: LossState


@jax.custom_jvp
def _valued(value: Float[Array, ""], surrogate: Float[Array, ""]) -> Float[Array, ""]:
    """A number with the gradient of another, whatever the other's value, infinities included."""
    return value


@_valued.defjvp
def _valued_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return primals[0], tangents[1]


class ParticleELBO(NamedOptions, ELBO):
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
    least_beta: ClassVar[float] = 0.0  # `LEAST_BETA` of algorithms that divide by beta
    info_class: ClassVar[Any] = Info  # made by `info_type` if `Gain.info` has scalars
    memories: ClassVar[str] = "a schedule of `beta`, a `target_rate` or a moving average"

    @checked
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
        is_count = isinstance(num_particles, int) and not isinstance(num_particles, bool)
        if not is_count or num_particles < self.min_particles:
            raise ValueError(
                f"`num_particles` must be an integer of at least {self.min_particles} for "
                f"{type(self).__name__}; got {num_particles!r}."
            )
        check_beta(type(self).__name__, beta, target_rate)
        if not max_plate_nesting >= 0:
            raise ValueError(
                f"`max_plate_nesting` must be a whole number of at least 0, or left out; got "
                f"{max_plate_nesting}."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.max_plate_nesting = max_plate_nesting
        self.beta, self.target_rate = beta, target_rate
        self.closed_form_entropy = closed_form_entropy
        self._plans, self._closed_forms = self._new_plans(), ClosedForms()

    def _new_plans(self) -> Plans:
        vectorize = self.vectorize_particles
        return Plans(vectorize=vectorize, find=self.find_layout, inspect=self.inspect)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is known of the programs that it was called with."""
        return {name: value for name, value in vars(self).items() if name not in _OF_PROGRAMS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, **dict.fromkeys(_OF_PROGRAMS))
        self._plans, self._closed_forms = self._new_plans(), ClosedForms()

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

    def init_memory(self) -> Any:
        """What the algorithm's first step remembers."""
        return None

    def inspect(self, rng_key: Array, pair: Pair) -> Any:
        """What the algorithm must know of the programs, found once, into `Pair.notes`."""
        return None

    def readers(self, pair: Pair) -> Mapping[str, Reader]:
        """What is read of a run of these programs beside the log-densities."""
        return self.reads

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
        return self._plans.run(rng_key, params, Pair(model, guide, args, kwargs), self.run_pair)

    # --------------------------------------------------------------------- NumPyro's protocol

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """Minus the ELBO, as in NumPyro."""
        if not isinstance(self, ParticleELBO):  # a key: NumPyro holds the class itself
            raise ValueError(
                "`loss` is a class of losses, not a loss: write loss=DAPS_ELBO(), say, with its "
                "options in the brackets."
            )
        return super().loss(*args, **kwargs)

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
        value_of = functools.partial(self._gain_value, state=state)
        mutable = {**mutable, **self._closed_forms.values(particles, value_of, mutable)}
        return self._result(self._estimate(particles, state), memory, mutable)

    def _result(
        self, estimate: _Estimate, memory: LossMemory | None, mutable: dict[str, Any]
    ) -> dict[str, Any]:
        loss = _valued(jax.lax.stop_gradient(estimate.loss), estimate.surrogate)
        if memory is not None:
            mutable[LOSS_MEMORY] = renewed(memory, LossMemory(estimate.state, estimate.info))
        return {"loss": loss, "mutable_state": mutable or None}

    # ---------------------------------------------------------------------------- particles

    def find_layout(self, rng_key: Array, pair: Pair) -> Layout:
        """How the sites of the programs lie."""
        layout = find_layout(rng_key, pair, self.max_plate_nesting)
        return with_mixed_together(rng_key, pair._replace(layout=layout))

    def run_pair(self, rng_key: Array, pair: Pair) -> tuple[Particles, dict[str, Any]]:
        """Run prepared programs with K particles, or with the `values` that are given."""
        key, values_key = jax.random.split(rng_key)
        values = self.values(values_key, pair)
        return run_particles(
            key,
            pair,
            len(next(iter(values.values()))) if values else self.num_particles,
            reads={**self.readers(pair), "closed_forms": self._closed_forms.read},
            with_entropy=self.closed_form_entropy,
            values=values,
            sampler=self.sampler(jax.random.split(key)[1], pair),  # the key of the other draws
            pathwise=self.pathwise,
        )

    # --------------------------------------------------------------- loss, surrogate, beta, rate

    def init_state(self, mutable_state: Mapping[str, Any] | None = None) -> LossState:
        """What the first step needs; arrays, of the dtypes that they keep.

        Args:
            mutable_state: What the programs keep, where the shapes of a memory depend on it.
        """
        return LossState(first_beta(self.beta), self.init_memory())

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
        possible = objective.elbo != -jnp.inf
        particles = without_impossible(particles, possible)
        gain = self.gain(particles, make_objective(particles, beta), beta, state.memory)
        self._check_gain(gain, possible.shape[1:], state.memory)
        gain = of_possible_data(gain, possible.any(0))
        expected = gain.objective or objective
        rate = mean_rate(expected)
        info = {
            "elbo": expected.elbo.mean(),
            "beta_elbo": expected.beta_elbo.mean(),
            "rate": rate / NATS_PER_BIT,
            "beta": beta,
        }
        scale = particles.scale
        return _Estimate(
            loss=-(scale * expected.elbo.mean(0)).sum() - expected.shared_elbo.mean(),
            surrogate=-(scale * gain.value).sum() - expected.shared_beta_elbo.mean(),
            info=self.info_class(**info, **gain.info),
            state=LossState(next_beta(state.beta, self.target_rate, rate), gain.memory),
        )

    def _gain_value(self, particles: Particles, state: LossState) -> Float[Array, "*plates"]:
        """What each datum gains."""
        beta = self._current_beta(state.beta, particles)
        possible = make_objective(particles, beta).elbo != -jnp.inf
        particles = without_impossible(particles, possible)
        return self.gain(particles, make_objective(particles, beta), beta, state.memory).value

    def _check_gain(self, gain: Gain, shape: Any, memory: Any) -> None:
        """Whether an algorithm returns what the contract says."""
        name, fields = type(self).__name__, self.info_class._fields[len(Info._fields) :]
        if tuple(gain.value.shape) != tuple(shape):
            raise ValueError(
                f"{name}.gain must return a value for each datum, of shape {tuple(shape)}; got "
                f"{tuple(gain.value.shape)}. Reduce over the particles, axis 0, and nothing else."
            )
        if set(gain.info) != set(fields):
            raise ValueError(
                f"{name}.gain returns the scalars {sorted(gain.info)} in `info`, but its "
                f"`info_class` has {sorted(fields)}. Set info_class = info_type(__name__, "
                f'"{name}Info", {", ".join(map(repr, sorted(gain.info)))}).'
            )
        if memory is None and gain.memory is not None:
            raise ValueError(
                f"{name}.gain returns a memory, but init_memory returns None. Let it return what "
                "the first step remembers, of the same structure, so that a run can be resumed."
            )

    def _current_beta(self, state: BetaState, particles: Particles) -> float | Array:
        """A number, or an array of the log-densities' dtype."""
        beta = current_beta(state, self.beta, self.target_rate)
        if isinstance(beta, float | int):
            return max(beta, self.least_beta)
        return jnp.maximum(jnp.asarray(beta, particles.log_likelihood.dtype), self.least_beta)
