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

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.closed_forms import TruncatedMemory, gather, read_statistics
from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import Gain, Objective, info_type
from pyro_dvae.infer.truncated.estep import Evolved, distinct, evolve_sets
from pyro_dvae.infer.truncated.guide import TruncatedGuide
from pyro_dvae.infer.truncated.scoring import ModelCall, Scorer, log_weights, run_states
from pyro_dvae.ops.arguments import check_counts, checked
from pyro_dvae.ops.sets.evolution import Operator
from pyro_dvae.ops.sets.packing import unpack
from pyro_dvae.programs.processes import gathered, part_of
from pyro_dvae.programs.record import Particles

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

    bound: Float[Tensor, "*plates"]  # of the beta-ELBO, with its gradient
    elbo: Float[Tensor, "*plates"]
    log_likelihood: Float[Tensor, "*plates"]  # its mean under q_n
    weights: Float[Tensor, "S *plates"]  # q_n of each state


def truncated_values(
    scores: Float[Tensor, "S *plates"],
    log_likelihood: Float[Tensor, "S *plates"],
    beta: float | Tensor = 1.0,
) -> TruncatedValues:
    """The bound ``beta log sum exp(scores)`` of the states of a set, and its parts.

    Args:
        scores: ``log p(x|z) / beta + log p(z)`` of each state, -inf for one that is not to count.
        log_likelihood: ``log p(x|z)`` of each state.
        beta: Weight of the rate.

    Example:
        >>> values = truncated_values(torch.tensor([0.25, 0.5]).log(), torch.zeros(2))
        >>> values.bound.exp(), values.weights
        (tensor(0.7500), tensor([0.3333, 0.6667]))
    """
    bound = beta * scores.logsumexp(0)
    weights = scores.detach().softmax(0)
    likelihood = torch.where(weights > 0, log_likelihood.detach(), 0.0)
    likelihood = (weights * likelihood).sum(0)
    elbo = bound.detach() / beta + (1.0 - 1.0 / beta) * likelihood
    return TruncatedValues(bound, elbo, likelihood, weights)


class Truncated_ELBO(ParticleELBO):
    """Evolve the sets of a `TruncatedGuide`, then ascend the bound that they make.

    Evaluation without gradient leaves the sets as they are.

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
        self._forms: dict[str, Any] = {}
        self._num_data = 0

    def init_memory(self) -> TruncatedMemory:
        """Nothing gathered."""
        return TruncatedMemory({}, {}, 0)

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Minus the ELBO, with the bound's gradient; advances the sets and the state."""
        if torch.is_grad_enabled():
            self._set_closed_forms()
        return super().differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """`differentiable_loss` and its backward pass; then the closed forms, if they are due."""
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        self._set_closed_forms()
        return loss

    def e_step(self, model: Callable, guide: Any, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """Improve the sets of these data at fixed parameters, to warm them up or between steps.

        Returns:
            The fraction of the members that is new.
        """
        call, beta, step = self._read(model, guide, args, kwargs)
        return self._evolve(guide, call, beta, self._current(self.sweeps, step)).replaced

    # ------------------------------------------------------------------------------ E- and M-step

    def run(self, model: Callable, guide: Any, args: tuple, kwargs: dict) -> Particles:
        """Improve the sets, and run the model at their states."""
        call, beta, step = self._read(model, guide, args, kwargs)
        sweeps = self._current(self.sweeps, step) if torch.is_grad_enabled() else 0
        words, replaced = self._evolve(guide, call, beta, sweeps)
        self._forms = call.batch.closed_forms if self._current(self.closed_form, step) else {}
        self._num_data = call.batch.num_data
        particles = self._run_members(call, words)
        particles = particles._replace(extras={**particles.extras, "replaced": replaced})
        return gathered(particles, call.space.layout)

    def _read(
        self, model: Callable, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[ModelCall, float | Tensor, int]:
        """What the call is about, given one draw of the other latents; beta and the step."""
        if not isinstance(guide, TruncatedGuide):
            raise ValueError(
                "Truncated_ELBO needs a guide that keeps states, TruncatedGuide(model, ...); got "
                f"{type(guide).__name__}."
            )
        rest_trace = guide.draw_rest(args, kwargs)
        call = guide.read(rest_trace, args, kwargs)._replace(model=model)
        return call, self._current_beta(self.state.beta), self.state.beta.step

    def _evolve(
        self, guide: TruncatedGuide, call: ModelCall, beta: float | Tensor, sweeps: int
    ) -> Evolved:
        words, scorer = guide.members(call), Scorer(call, beta)
        if not sweeps:
            return Evolved(words, torch.zeros(()))
        with torch.no_grad():
            evolved = evolve_sets(scorer, words, self.evolve, self.generations, sweeps)
            guide.store(call, evolved.states)
        return evolved

    @staticmethod
    def _current(scheduled: Any, step: int) -> int:
        """A number, or what its schedule says."""
        return int(scheduled(step) if callable(scheduled) else scheduled)

    def _run_members(self, call: ModelCall, words: Tensor) -> Particles:
        """The members as particles of the model, with gradient; repeated ones weigh nothing."""
        codes = unpack(words, call.space.cardinalities)
        reads = {
            "statistics": functools.partial(read_statistics, self._forms, drawn=call.batch.drawn)
        }
        particles = run_states(call, codes, reads=reads)
        first = distinct(call, words).reshape(particles.log_prior.shape)
        return particles._replace(log_prior=torch.where(first, particles.log_prior, -math.inf))

    def gain(
        self,
        particles: Particles,
        objective: Objective,
        beta: float | Tensor,
        memory: TruncatedMemory,
    ) -> Gain:
        """The bound that the states make, and what the closed forms gather of them."""
        values = truncated_values(log_weights(particles, beta), particles.log_likelihood, beta)
        ess = (1.0 / values.weights.square().sum(0)).mean()
        expected = objective._replace(
            log_likelihood=values.log_likelihood[None],
            elbo=values.elbo[None],
            beta_elbo=values.bound.detach()[None],
        )
        info = {"ess": ess, "replaced": particles.extras["replaced"]}
        statistics, targets = particles.extras["statistics"], _targets(self._forms)
        shapes = {name: tuple(self._forms[name].target.shape) for name in targets.values()}
        memory = gather(statistics, targets, shapes, part_of(particles, values.weights), memory)
        return Gain(values.bound, info, memory, expected)

    # ------------------------------------------------------------------------------- closed forms

    def _set_closed_forms(self) -> None:
        """Set the parameters if all data have been seen since the last time.

        Before or after a step, since autograd holds on to the values that a step has used.
        """
        memory = self.state.memory
        if not self._forms or memory.rows < self._num_data:
            return
        with torch.no_grad():
            for name in dict.fromkeys(_targets(self._forms).values()):
                form = self._forms[name]
                total, count = memory.totals[name], memory.counts[name]
                form.target.copy_(form.solve(total, count, form.target))
        self.state = self.state._replace(memory=self.init_memory())


def _targets(forms: Mapping[str, Any]) -> dict[str, str]:
    """Of each site with a closed form, the first one that has its parameter."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(form.target), name) for name, form in forms.items()}
