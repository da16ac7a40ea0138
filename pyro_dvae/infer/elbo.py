"""The edge that all losses share: particles in, minus the ELBO out, memory kept between steps.

An algorithm is a pure function of arrays, and a subclass of `ParticleELBO` that says what it reads
of a run and calls that function in `gain`. `ParticleELBO` does the rest: it runs the programs,
makes loss and surrogate, keeps beta and the memory, and speaks Pyro's loss protocol.

The value of every loss is minus the ELBO in nats, as Pyro scales it, whatever surrogate makes the
gradient; so curves of different algorithms share one axis. Objectives with a weight on the rate,
`beta`, are reported in `info`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pyro.infer import ELBO
from torch import Tensor

from pyro_dvae.infer.closed_forms import ClosedForms
from pyro_dvae.infer.objective import (
    BetaState,
    Gain,
    Info,
    Objective,
    check_beta,
    current_beta,
    first_beta,
    make_objective,
    mean_rate,
    next_beta,
    of_possible_data,
    without_impossible,
)
from pyro_dvae.infer.options import NamedOptions
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.bounds import NATS_PER_BIT
from pyro_dvae.programs.draw import Sampler, run_traces
from pyro_dvae.programs.plans import Plans
from pyro_dvae.programs.processes import gathered
from pyro_dvae.programs.record import Particles, Reader
from pyro_dvae.programs.run import run_particles
from pyro_dvae.programs.sites import Layout, Pair
from pyro_dvae.programs.structure.layout import find_layout
from pyro_dvae.programs.structure.looking import statistics_kept, without_gradient
from pyro_dvae.programs.structure.mixing import with_mixed_together

__all__ = ["LossState", "ParticleELBO"]

_OF_PROGRAMS = ("_plans", "_link", "_closed_forms")  # attributes that hold a model and a guide


class LossState(NamedTuple):
    """What the next step needs."""

    beta: BetaState
    memory: Any  # the algorithm's own


class _Estimate(NamedTuple):
    """One evaluation of a loss."""

    loss: Float[Tensor, ""]  # minus the ELBO
    surrogate: Float[Tensor, ""]  # its gradient is the estimator's
    info: Any
    state: LossState


class _Valued(torch.autograd.Function):
    """A number with the gradient of another, whatever the other's value, infinities included."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient

    @staticmethod
    def jvp(ctx: Any, value: Tensor | None, surrogate: Tensor) -> Tensor:
        return surrogate


class ParticleELBO(NamedOptions, ELBO):
    """Base of the losses: subclass it with one method, `gain`.

    Args:
        num_particles: K, draws of the latents per datum.
        beta: Weight of the rate, a number or a schedule ``step -> number``.
        target_rate: Bits per datum that the latents should carry; beta is then steered to it.
        closed_form_entropy: Use the entropies of the guide's sites where they have one, instead of
            sampled log-densities.
        max_plate_nesting: As in Pyro; found by a plain run if left out.
        vectorize_particles: Run the programs once with a particle axis. A program that cannot
            broadcast is run K times instead, with the same result.

    Attributes:
        state: What the next step needs; save and restore it with the optimiser's.
        info: Scalars of the last step, for logs: `Info`, and the algorithm's own.

    Raises:
        ValueError: If an argument is out of range; on a call, if the programs cannot be handled.
    """

    min_particles: int = 1
    reads: ClassVar[Mapping[str, Reader]] = MappingProxyType({})  # into `Particles.extras`
    pathwise: ClassVar[bool] = True  # whether reparameterised draws of a datum keep their gradient
    least_beta: ClassVar[float] = 0.0  # `LEAST_BETA` of algorithms that divide by beta
    info_class: ClassVar[Any] = Info  # made by `info_type` if `Gain.info` has scalars

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
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        self.vectorize_particles = vectorize_particles
        self.beta, self.target_rate = beta, target_rate
        self.closed_form_entropy = closed_form_entropy
        self.info: Any = None
        self.state = self.init_state()
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
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """The algorithm: pure, no host synchronisation.

        Args:
            particles: Log-densities per particle and datum, and what `reads` made.
            objective: ELBO and beta-ELBO of each particle.
            beta: Weight of the rate at this step.
            memory: What `init_memory` or the step before returned.
        """

    def init_memory(self) -> Any:
        """What the algorithm's first step remembers."""
        return None

    def inspect(self, pair: Pair) -> Any:
        """What the algorithm must know of the programs, found once, into `Pair.notes`."""
        return None

    def readers(self, pair: Pair) -> Mapping[str, Reader]:
        """What is read of a run of these programs beside the log-densities."""
        return self.reads

    def sampler(self, pair: Pair) -> Sampler | None:
        """How some sites are drawn in a way of the algorithm's own."""
        return None

    def values(self, pair: Pair) -> Mapping[str, Tensor] | None:
        """Values of guide sites in place of draws, K in front; None to sample."""
        return None

    def run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Particles:
        """Run the programs with K particles; what processes share is put together."""

        def evaluate(pair: Pair) -> tuple[Particles, Layout]:
            return self.run_pair(pair), pair.layout

        _check_no_vmap()
        return gathered(*self._plans.run(Pair(model, guide, args, kwargs), evaluate))

    # ------------------------------------------------------------------------ Pyro's protocol

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the ELBO, without gradient and without touching the state."""

        def evaluate() -> float:
            particles = self.run(model, guide, args, kwargs)
            return self._estimate(particles, self.state).loss.item()

        with statistics_kept():
            return without_gradient(evaluate)

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Minus the ELBO, with the estimator's gradient; advances the state."""
        self._closed_forms.set()  # of a step that others have finished
        estimate = self._estimate(self.run(model, guide, args, kwargs), self.state)
        if torch.is_grad_enabled():
            self.state, self.info = estimate.state, estimate.info
        return _Valued.apply(estimate.loss.detach(), estimate.surrogate)

    def loss_and_grads(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """`differentiable_loss` and its backward pass; the value stays on the device."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
            self._closed_forms.set()
        return loss.detach()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Any:
        return run_traces(model, guide, args, kwargs)

    # ---------------------------------------------------------------------------- particles

    def find_layout(self, pair: Pair) -> tuple[Layout, tuple]:
        """How the sites of the programs lie, and the structure that this is of."""
        layout, structure = find_layout(pair, self.max_plate_nesting)
        return with_mixed_together(pair._replace(layout=layout)), structure

    def run_pair(self, pair: Pair) -> Particles:
        """Run prepared programs with K particles, or with the `values` that are given."""
        values = self.values(pair)
        return run_particles(
            pair,
            len(next(iter(values.values()))) if values else self.num_particles,
            reads={**self.readers(pair), "closed_forms": self._closed_forms.read},
            with_entropy=self.closed_form_entropy,
            values=values,
            sampler=self.sampler(pair),
            pathwise=self.pathwise,
        )

    # --------------------------------------------------------------- loss, surrogate, beta, rate

    def init_state(self) -> LossState:
        """What the first step needs."""
        return LossState(first_beta(self.beta), self.init_memory())

    def _estimate(self, particles: Particles, state: LossState) -> _Estimate:
        beta = self._current_beta(state.beta)
        objective = make_objective(particles, beta)
        possible = objective.elbo != -math.inf
        particles = self._closed_forms.watched(without_impossible(particles, possible))
        gain = self.gain(particles, make_objective(particles, beta), beta, state.memory)
        self._check_gain(gain, possible.shape[1:], state.memory)
        self._closed_forms.gather(particles, gain.value)
        gain = of_possible_data(gain, possible.any(0))
        expected = gain.objective or objective
        rate = mean_rate(expected)
        info = {
            "elbo": expected.elbo.detach().mean(),
            "beta_elbo": expected.beta_elbo.detach().mean(),
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

    def _current_beta(self, state: BetaState) -> float | Tensor:
        beta = current_beta(state, self.beta, self.target_rate)
        return beta if isinstance(beta, Tensor) else max(beta, self.least_beta)


def _check_no_vmap() -> None:
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
        raise ValueError(
            "a loss looks at numbers to see how the sites lie, and within torch.func.vmap there "
            "are none, nor within jacfwd and hessian, which use it. Loop over what is mapped; for "
            "derivatives use torch.func.grad, jacrev (twice for second ones) or jvp."
        )
