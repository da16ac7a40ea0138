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
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, UInt32
from numpyro.handlers import substitute

from numpyro_dvae.infer.elbo import BetaState, Estimate, Memory, ParticleELBO, scheduled
from numpyro_dvae.infer.truncated.estep import Evolved, distinct, evolve_sets
from numpyro_dvae.infer.truncated.guide import TruncatedGuide
from numpyro_dvae.infer.truncated.scoring import (
    ModelCall,
    Scorer,
    in_pieces,
    log_weights,
    piece_of,
    run_states,
)
from numpyro_dvae.ops.evolution import Operator
from numpyro_dvae.programs.run import Particles
from numpyro_dvae.programs.statistics import Statistic

__all__ = ["TruncatedInfo", "TruncatedState", "Truncated_ELBO"]


class TruncatedState(NamedTuple):
    """Step and beta, and what the closed forms have gathered since their last update."""

    beta: BetaState
    totals: dict[str, Array]  # parameter -> sum over data of q's mean statistic, of its shape
    counts: dict[str, Array]  # parameter -> how many observed entries are in it
    rows: int | Int[Array, ""]  # data seen


class TruncatedInfo(NamedTuple):
    """Means per datum of the last step."""

    elbo: Float[Array, ""]  # nats
    beta_elbo: Float[Array, ""]  # nats
    rate: Float[Array, ""]  # bits that the latents carry
    beta: float | Array
    ess: Float[Array, ""]  # effective number of states, 1 / sum q_n^2, in [1, S]
    replaced: Float[Array, ""]  # fraction of a set that the E-step has replaced


class _Step(NamedTuple):
    """What a step starts from."""

    rng_key: Array  # of the proposals
    params: dict[str, Any]
    memory: Memory | None
    state: TruncatedState
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
        if not isinstance(generations, int) or generations < 1:
            raise ValueError(f"`generations` must be an integer of at least 1; got {generations}.")
        if not callable(sweeps) and (not isinstance(sweeps, int) or sweeps < 0):
            raise ValueError(f"`sweeps` must be 0 or more, or a schedule; got {sweeps}.")
        if not callable(beta) and not beta > 0:
            raise ValueError(f"`beta` must be positive, or a schedule; got {beta}.")
        super().__init__(1, beta=beta, target_rate=target_rate, closed_form_entropy=False)
        self.evolve, self.generations = evolve, generations
        self.sweeps, self.closed_form = sweeps, closed_form

    def init_state(self, mutable_state: Mapping[str, Any] | None = None) -> TruncatedState:
        """What the first step needs: room for the statistics of whatever state is kept."""
        kept = {} if self.closed_form is False else (mutable_state or {})
        totals = {
            name: jnp.zeros_like(value)
            for name, value in kept.items()
            if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
        }
        return TruncatedState(super().init_state(), totals, totals, jnp.zeros((), int))

    def init_memory(self, mutable_state: dict[str, Any] | None = None) -> Memory:
        """The memory of a loss that has not run, with room for the parameters' statistics."""
        return super().init_memory()._replace(state=self.init_state(mutable_state))

    @property
    def remembers(self) -> bool:
        """Whether a step needs the state of the one before."""
        return super().remembers or callable(self.sweeps) or callable(self.closed_form)

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

    def _read(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
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
        memory, words = self._take_memory(params), params.get(guide.site, guide.words)
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
            return Evolved(step.codes, distinct(step.call, step.codes), jnp.zeros(()))
        scorer = Scorer(step.call, self._beta(step.state.beta))
        sweeps = sweeps if isinstance(sweeps, int) else jnp.asarray(sweeps, int)
        key, codes = step.rng_key, step.codes
        return evolve_sets(key, scorer, codes, self.evolve, self.generations, sweeps)

    def _stored(self, step: _Step, evolved: Evolved) -> dict[str, Any]:
        return {step.guide.site: step.guide.store(step.call, step.words, evolved.codes)}

    def _evaluate(self, step: _Step, evolved: Evolved | None = None) -> dict[str, Any]:
        """Loss and mutable state; of the sets as they are, if they have not evolved."""
        forms = step.call.batch.closed_forms if evolved and self.closed_form is not False else {}
        if forms and step.memory is None:
            raise self._forgotten()
        members = evolved or Evolved(step.codes, distinct(step.call, step.codes), jnp.zeros(()))
        particles, mutable = _run_members(step, members, forms)
        estimate = self._estimate(particles, step.state)
        if evolved:
            estimate = estimate._replace(info=estimate.info._replace(replaced=evolved.replaced))
            mutable |= self._stored(step, evolved)
        if forms:
            estimate, values = self._close(estimate, particles, step, forms)
            mutable |= values
        return self._result(estimate, step.memory, mutable)

    def _estimate(self, particles: Particles, state: TruncatedState) -> Estimate:
        beta = self._current_beta(state.beta, particles)
        bound, weights = _posterior(particles, beta)
        likelihood = jnp.where(weights > 0, particles.log_likelihood, 0.0)
        likelihood = (weights * likelihood).sum(0)
        elbo = bound / beta + (1.0 - 1.0 / beta) * likelihood
        rate = (likelihood - elbo).mean()
        shared_rate = particles.shared_prior - particles.shared_q
        shared = particles.shared_likelihood
        return Estimate(
            loss=-particles.scale * elbo.sum() - (shared + shared_rate).mean(),
            surrogate=-particles.scale * bound.sum() - (shared + beta * shared_rate).mean(),
            info=TruncatedInfo(
                elbo=elbo.mean(),
                beta_elbo=bound.mean(),
                rate=rate / math.log(2),
                beta=beta,
                ess=(1.0 / jnp.square(weights).sum(0)).mean(),
                replaced=jnp.zeros_like(rate),
            ),
            state=state._replace(beta=self._next_beta_state(state.beta, rate)),
        )

    # ------------------------------------------------------------------------------- closed forms

    def _close(
        self,
        estimate: Estimate,
        particles: Particles,
        step: _Step,
        forms: Mapping[str, Any],
    ) -> tuple[Estimate, dict[str, Array]]:
        """Add the statistics of these data to those since the last update; update when due."""
        state = step.state
        _, weights = _posterior(particles, self._current_beta(state.beta, particles))
        goes_on = scheduled("closed_form", self.closed_form, state.beta.step)
        rows = jnp.where(goes_on, state.rows + weights[0].size, 0)
        is_due = goes_on & (rows >= step.call.batch.num_data)
        totals, counts, values = dict(state.totals), dict(state.counts), {}
        for name, form in forms.items():
            key, old = form.target, step.params[form.target]
            total, count = _sums(particles.statistics[name], weights, jnp.shape(old))
            total = jnp.where(goes_on, totals[key] + total, 0.0)
            count = jnp.where(goes_on, counts[key] + count, 0.0)
            new = jnp.asarray(form.solve(total, count, old), jnp.result_type(old))
            values[key] = jnp.where(is_due, new, old)
            totals[key], counts[key] = (jnp.where(is_due, 0.0, sum) for sum in (total, count))
        gathered = estimate.state._replace(
            totals=totals, counts=counts, rows=jnp.where(is_due, 0, rows)
        )
        return estimate._replace(state=gathered), values


def _run_members(
    step: _Step, members: Evolved, forms: Mapping[str, Any]
) -> tuple[Particles, dict[str, Any]]:
    """The members as particles of the model, with gradient; repeated ones weigh nothing."""
    call, params, codes = step.call, step.params, members.codes
    model, rest = (substitute(program, data=params) for program in (call.model, call.rest))
    size, vectorize = piece_of(call, len(codes)), None
    if call.vectorize and size < len(codes):
        vectorize = functools.partial(in_pieces, size=size)
    call = call._replace(model=model, rest=rest)
    particles, mutable = run_states(call, codes, forms, vectorize)
    shape = particles.log_prior.shape
    log_prior = jnp.where(members.is_first.reshape(shape), particles.log_prior, -jnp.inf)
    in_range = call.batch.in_range.reshape(shape[1:])
    return particles._replace(log_prior=jnp.where(in_range, log_prior, jnp.nan)), mutable


def _posterior(
    particles: Particles, beta: float | Array
) -> tuple[Float[Array, "*plates"], Float[Array, "S *plates"]]:
    """The beta-ELBO of each datum, and q_n, without gradient."""
    scores = log_weights(particles, beta)
    weights = jax.nn.softmax(jax.lax.stop_gradient(scores), axis=0)
    return beta * jax.nn.logsumexp(scores, axis=0), weights


def _sums(
    statistic: Statistic, weights: Float[Array, "S *plates"], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Of q's mean statistic, and of the entries that no mask takes out; over data, to a shape."""
    plates, num_entries = tuple(range(weights.ndim - 1)), statistic.value.ndim - weights.ndim
    padded = (1,) * (num_entries - len(shape)) + shape
    dims = tuple(dim - num_entries for dim, size in enumerate(padded) if size == 1)
    value = jnp.where(statistic.mask, statistic.value, 0.0).sum(dims, keepdims=True)
    weights = weights.reshape(*weights.shape, *(1,) * num_entries)
    total = (weights * value).sum(0).sum(plates)
    count = statistic.mask.astype(total.dtype).sum(plates)
    return _sum_to(total, shape), _sum_to(count, shape)


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dims that `shape`, which broadcasts to the value's, lacks or has as 1."""
    value = value.sum(range(value.ndim - len(shape)))
    return value.sum([dim for dim, size in enumerate(shape) if size == 1], keepdims=True)
