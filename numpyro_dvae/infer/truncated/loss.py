"""Truncated posteriors optimised by evolution [1, 2], for any model with finite discrete latents.

With q_n the exact posterior restricted to a set of S states (see `TruncatedGuide`), the bound is

    ELBO = sum_n log sum over z in set n of p(x_n, z),    gap_n = -log p(z in set n | x_n):

no encoder, no sampled gradient, no relaxation. E-step, without gradient: propose children of the
states in a set, score them under the model, keep the S best distinct ones; so the bound never
falls. M-step: the gradient of the bound, plain automatic differentiation through the logsumexp.

With a weight beta on the rate, the best q_n on a set is ``∝ p(x|z)^(1/beta) p(z)`` and the
beta-ELBO ``beta log sum p(x|z)^(1/beta) p(z)``, which the E- and M-step then raise; the reported
loss stays minus the ELBO of that q_n.

A site whose parameter has a closed form says so in ``infer={"closed_form": ...}`` (see
`models.ClosedForm`); its statistics come from the pass that makes the bound, and the parameter is
set whenever N data have been seen. Missing entries (masks) leave the bound and the statistics.

References:
    [1] Drefs, Guiraud, Panagiotou & Lücke. Direct evolutionary optimization of variational
        autoencoders with binary latents. ECML PKDD, 2022. arXiv 2011.13704.
    [2] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models. JMLR
        23(21), 2022.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, UInt32
from numpyro.handlers import substitute

from numpyro_dvae.infer.closed_forms import TruncatedMemory, gather, read_statistics
from numpyro_dvae.infer.elbo import LossState, ParticleELBO
from numpyro_dvae.infer.objective import (
    Gain,
    LossMemory,
    Objective,
    current_beta,
    forgotten,
    info_type,
    scheduled,
    take_memory,
)
from numpyro_dvae.infer.truncated.estep import Evolved, distinct, evolve_sets
from numpyro_dvae.infer.truncated.guide import TruncatedGuide
from numpyro_dvae.infer.truncated.scoring import ModelCall, Scorer, log_weights, run_states
from numpyro_dvae.ops.arguments import check_counts, checked
from numpyro_dvae.ops.sets.evolution import Operator
from numpyro_dvae.programs.record import Particles

__all__ = [
    "TruncatedInfo",
    "TruncatedValues",
    "Truncated_ELBO",
    "truncated_values",
]

# ess: effective number of states, 1 / sum q_n^2, in [1, S]; replaced: fraction of a set that the
# E-step has replaced
TruncatedInfo = info_type(__name__, "TruncatedInfo", "ess", "replaced")


class TruncatedValues(NamedTuple):
    """What the set of states of each datum makes, in nats."""

    bound: Float[Array, "*plates"]  # of the beta-ELBO, with its gradient
    elbo: Float[Array, "*plates"]
    log_likelihood: Float[Array, "*plates"]  # its mean under q_n
    weights: Float[Array, "S *plates"]  # q_n of each state


def truncated_values(
    scores: Float[Array, "S *plates"],
    log_likelihood: Float[Array, "S *plates"],
    beta: float | Array = 1.0,
) -> TruncatedValues:
    """The bound ``beta log sum exp(scores)`` of the states of a set, and its parts.

    Args:
        scores: ``log p(x|z) / beta + log p(z)`` of each state, -inf for one that is not to count.
        log_likelihood: ``log p(x|z)`` of each state.
        beta: Weight of the rate.

    Example:
        >>> values = truncated_values(jnp.log(jnp.array([0.25, 0.5])), jnp.zeros(2))
        >>> print(f"{jnp.exp(values.bound):.4f}", jnp.array_str(values.weights, precision=4))
        0.7500 [0.3333 0.6667]
    """
    bound = beta * jax.nn.logsumexp(scores, axis=0)
    weights = jax.nn.softmax(jax.lax.stop_gradient(scores), axis=0)
    likelihood = jnp.where(weights > 0, jax.lax.stop_gradient(log_likelihood), 0.0)
    likelihood = (weights * likelihood).sum(0)
    elbo = jax.lax.stop_gradient(bound) / beta + (1.0 - 1.0 / beta) * likelihood
    return TruncatedValues(bound, elbo, likelihood, weights)


class _Step(NamedTuple):
    """What a step starts from."""

    rng_key: Array  # of the proposals
    params: dict[str, Any]
    memory: LossMemory | None
    state: LossState
    guide: TruncatedGuide
    words: UInt32[Array, "N S W"]
    call: ModelCall  # at these parameters, without gradient
    codes: Integer[Array, "S B H"]


class Truncated_ELBO(ParticleELBO):
    """Evolve the sets of a `TruncatedGuide`, then ascend the bound that they make.

    `loss` evaluates and leaves the sets as they are.

    Args:
        evolve: Makes children of a population of states, built from `ops.evolution`; the default
            is ``chain(select(10), flip(9))``, fewer parents where S < 10.
        generations: Rounds of children in a sweep, each from the children of the one before.
        sweeps: E-steps per step, a number or a schedule ``step -> number``; 0 leaves the sets,
            as in ``lambda step: step % 5 == 0``, five M-steps per E-step.
        closed_form: Whether to make the updates that sites ask for, or a schedule.
        beta: Weight of the rate, a positive number or a schedule.
        target_rate: Bits per datum that the latents should carry; beta is then steered to it.

    Raises:
        ValueError: If an argument is out of range, or the guide is no `TruncatedGuide`.
    """

    info_class = TruncatedInfo
    memories = "a schedule, a `target_rate` or a closed form"

    @checked
    def __init__(
        self,
        evolve: Operator | None = None,
        *,
        generations: int = 1,
        sweeps: int | Callable[[int], int] = 1,
        closed_form: bool | Callable[[int], bool] = True,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
    ) -> None:
        check_counts(generations=generations)
        if not callable(sweeps) and (not isinstance(sweeps, int) or sweeps < 0):
            raise ValueError(f"`sweeps` must be 0 or more, or a schedule; got {sweeps}.")
        if not callable(beta) and not beta > 0:
            raise ValueError(f"`beta` must be positive, or a schedule; got {beta}.")
        super().__init__(1, beta=beta, target_rate=target_rate, closed_form_entropy=False)
        self.evolve, self.generations = evolve, generations
        self.sweeps, self.closed_form = sweeps, closed_form

    def init_memory(self) -> TruncatedMemory:
        """Nothing gathered."""
        return TruncatedMemory({}, {}, jnp.zeros((), int))

    def init_state(self, mutable_state: Mapping[str, Any] | None = None) -> LossState:
        """Nothing gathered: room for the statistics of whatever state is kept."""
        kept = {} if self.closed_form is False else (mutable_state or {})
        totals = {
            name: jnp.zeros_like(value)
            for name, value in kept.items()
            if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
        }
        memory = self.init_memory()._replace(totals=totals, counts=totals)
        return super().init_state()._replace(memory=memory)

    @property
    def remembers(self) -> bool:
        """Whether a step needs the state of the one before."""
        schedules = self.beta, self.sweeps, self.closed_form
        return self.target_rate is not None or any(map(callable, schedules))

    # --------------------------------------------------------------------- NumPyro's protocol

    def loss(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> Float[Array, ""]:
        """Minus the ELBO of the sets as they are."""
        return self._evaluate(self._read(rng_key, param_map, model, guide, args, kwargs))["loss"]

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Minus the ELBO, with the bound's gradient, and the state with the evolved sets."""
        step = self._read(rng_key, param_map, model, guide, args, kwargs)
        return self._evaluate(step, self._evolve(step))

    def e_step(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Float[Array, ""]]:
        """Improve the sets of these data at fixed parameters, to warm them up or between steps.

        Returns:
            The new sets, for the mutable state, and the fraction of the members that is new.
        """
        step = self._read(rng_key, param_map, model, guide, args, kwargs)
        evolved = self._evolve(step)
        return self._stored(step, evolved), evolved.replaced

    # ------------------------------------------------------------------------------ E- and M-step

    def run(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> tuple[Particles, dict[str, Any]]:
        """Run the model at the states of the sets as they are."""
        step = self._read(rng_key, params, model, guide, args, kwargs)
        return _run_members(step, _as_they_are(step), {})

    def _read(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
    ) -> _Step:
        if not isinstance(guide, TruncatedGuide):
            raise ValueError(
                "Truncated_ELBO needs a guide that keeps states, TruncatedGuide(model, ...); got "
                f"{type(guide).__name__}."
            )
        params = dict(param_map)
        memory, words = take_memory(self, params), params.get(guide.site, guide.words)
        if words is None:
            raise ValueError(
                f"the states of the guide, mutable state '{guide.site}', are not there. Take them "
                "over from svi.init(...), or from the parameters of a FitResult."
            )
        state = self.init_state() if memory is None else memory.state
        call_key, evolve_key = jax.random.split(rng_key)
        call = guide.read(call_key, jax.lax.stop_gradient(params), model, args, kwargs)
        codes = guide.members(call, words)
        return _Step(evolve_key, params, memory, state, guide, words, call, codes)

    def _evolve(self, step: _Step) -> Evolved:
        sweeps = scheduled("sweeps", self.sweeps, step.state.beta.step)
        if isinstance(sweeps, int) and sweeps == 0:
            return _as_they_are(step)
        scorer = Scorer(step.call, current_beta(step.state.beta, self.beta, self.target_rate))
        sweeps = sweeps if isinstance(sweeps, int) else jnp.asarray(sweeps, int)
        return evolve_sets(step.rng_key, scorer, step.codes, self.evolve, self.generations, sweeps)

    def _stored(self, step: _Step, evolved: Evolved) -> dict[str, Any]:
        return {step.guide.site: step.guide.store(step.call, step.words, evolved.states)}

    def _evaluate(self, step: _Step, evolved: Evolved | None = None) -> dict[str, Any]:
        """Loss and mutable state; of the sets as they are, if they have not evolved."""
        forms = step.call.batch.closed_forms if evolved and self.closed_form is not False else {}
        if forms and step.memory is None:
            raise forgotten(self)
        particles, mutable = _run_members(step, evolved or _as_they_are(step), forms)
        estimate = self._estimate(particles, step.state)
        if evolved:
            mutable |= self._stored(step, evolved)
        if forms:
            memory, values = self._set_closed_forms(step, forms, estimate.state.memory)
            estimate = estimate._replace(state=estimate.state._replace(memory=memory))
            mutable |= values
        return self._result(estimate, step.memory, mutable)

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """The bound that the states make, and what the closed forms gather of them."""
        values = truncated_values(log_weights(particles, beta), particles.log_likelihood, beta)
        ess = (1.0 / jnp.square(values.weights).sum(0)).mean()
        expected = objective._replace(
            log_likelihood=values.log_likelihood[None],
            elbo=values.elbo[None],
            beta_elbo=jax.lax.stop_gradient(values.bound)[None],
        )
        info = {"ess": ess, "replaced": particles.extras["replaced"]}
        statistics, targets = particles.extras["statistics"], particles.extras["targets"]
        shapes = {name: memory.totals[name].shape for name in targets.values()}
        memory = gather(statistics, targets, shapes, values.weights, memory)
        return Gain(values.bound, info, memory, expected)

    # ------------------------------------------------------------------------------- closed forms

    def _set_closed_forms(
        self, step: _Step, forms: Mapping[str, Any], memory: TruncatedMemory
    ) -> tuple[TruncatedMemory, dict[str, Array]]:
        """New values of the parameters if all data have been seen since the last time."""
        goes_on = scheduled("closed_form", self.closed_form, step.state.beta.step)
        rows = jnp.where(goes_on, memory.rows, 0)
        is_due = goes_on & (rows >= step.call.batch.num_data)
        totals, counts, values = dict(memory.totals), dict(memory.counts), {}
        for key, form in {form.target: form for form in forms.values()}.items():
            old = step.params[key]
            total, count = (jnp.where(goes_on, held[key], 0.0) for held in (totals, counts))
            new = jnp.asarray(form.solve(total, count, old), jnp.result_type(old))
            values[key] = jnp.where(is_due, new, old)
            totals[key], counts[key] = (jnp.where(is_due, 0.0, held) for held in (total, count))
        return TruncatedMemory(totals, counts, jnp.where(is_due, 0, rows)), values


def _as_they_are(step: _Step) -> Evolved:
    """The sets, not evolved."""
    return Evolved(step.codes, distinct(step.call, step.codes), jnp.zeros(()))


def _run_members(
    step: _Step, members: Evolved, forms: Mapping[str, Any]
) -> tuple[Particles, dict[str, Any]]:
    """The members as particles of the model, with gradient; repeated ones weigh nothing."""
    call, params, codes = step.call, step.params, members.states
    model, rest = (substitute(program, data=params) for program in (call.model, call.rest))
    call = call.in_pieces(len(codes))._replace(model=model, rest=rest)
    reads = {"statistics": functools.partial(read_statistics, forms, drawn=call.batch.drawn)}
    particles, mutable = run_states(call, codes, reads)
    shape = particles.log_prior.shape
    log_prior = jnp.where(members.is_first.reshape(shape), particles.log_prior, -jnp.inf)
    log_prior = jnp.where(call.batch.in_range.reshape(shape[1:]), log_prior, jnp.nan)
    targets = {name: form.target for name, form in forms.items()}
    extras = {**particles.extras, "targets": targets, "replaced": members.replaced}
    return particles._replace(log_prior=log_prior, extras=extras), mutable
