"""The edge that all losses share: particles in, minus the ELBO out, state kept between steps.

An algorithm is a pure function from `Particles` and its state to an `Estimate`; `ParticleELBO` runs
the programs, keeps the state and speaks Pyro's loss protocol. The value of every loss is minus
the ELBO in nats, as Pyro scales it, whatever surrogate makes the gradient; so curves of different
algorithms share one axis. Objectives with a weight beta on the rate (Higgins et al. [1]) are
reported in `info`.

References:
    [1] Higgins et al. beta-VAE: learning basic visual concepts with a constrained variational
        framework. ICLR, 2017.
    [2] Rezende & Viola. Taming VAEs. arXiv 1810.00597 (a multiplier that meets a constraint).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_dvae.programs.layout import find_layout
from pyro_dvae.programs.run import Particles, run_particles, takes_particles
from pyro_dvae.programs.sites import Layout

__all__ = ["BetaState", "Estimate", "Objective", "ParticleELBO", "objective"]

_RATE_GAIN = 0.01  # largest change of log beta per step towards `target_rate`


class Estimate(NamedTuple):
    """What an algorithm returns for one batch of particles."""

    loss: Float[Tensor, ""]  # minus the ELBO
    surrogate: Float[Tensor, ""]  # its gradient is the estimator's
    info: Any  # a NamedTuple of detached scalars, for logs
    state: Any  # a NamedTuple that the next step needs


class BetaState(NamedTuple):
    """Step count, and the logarithm of beta where a target rate steers it."""

    step: int
    log_beta: float | Tensor


class Objective(NamedTuple):
    """The beta-ELBO of each particle and its parts."""

    elbo: Float[Tensor, "K *plates"]  # log p - log q
    beta_elbo: Float[Tensor, "K *plates"]  # log p(x|z) + beta (log p(z) - log q)
    shared_elbo: Float[Tensor, "K"]
    shared_beta_elbo: Float[Tensor, "K"]


def objective(particles: Particles, beta: float | Tensor) -> Objective:
    """ELBO and beta-ELBO of each particle; entropies in closed form where the record has them.

    No gradient flows through a sampled ``-log q`` of discrete sites: its mean is zero.
    """
    if particles.entropy is None:
        entropy = -particles.log_q_discrete.detach()
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
        beta: Weight of the rate, a number or a schedule ``step -> number``.
        target_rate: Bits per datum that the latents should carry; beta is then steered to it.
        closed_form_entropy: Use the entropies of the guide's sites where they have one, instead of
            sampled log-densities.
        max_plate_nesting: As in Pyro; found by a plain run if left out.
        vectorize_particles: Run the programs once with a particle axis. A program that cannot
            broadcast is run K times instead, with the same result.

    Attributes:
        state: What the next step needs; save and restore it with the optimiser's.
        info: Scalars of the last step, for logs.
    """

    min_particles = 1
    with_codes = False

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
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting)
        self.vectorize_particles = vectorize_particles
        self.beta, self.target_rate = beta, target_rate
        self.closed_form_entropy = closed_form_entropy
        self.info: Any = None
        self.state: Any = self.init_state()
        self._pair: tuple[Any, Any] | None = None
        self._layout: Layout | None = None

    @abstractmethod
    def _estimate(self, particles: Particles, state: Any) -> Estimate:
        """The algorithm: pure, no host synchronisation."""

    def _values(
        self, guide: Callable, args: tuple, kwargs: dict, layout: Layout
    ) -> dict[str, Tensor] | None:
        """Values of guide sites in place of draws; None to sample."""
        return None

    def init_state(self) -> Any:
        """What the first step needs."""
        return BetaState(0, 0.0 if callable(self.beta) or not self.beta else math.log(self.beta))

    # ------------------------------------------------------------------------ Pyro's protocol

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the ELBO, without gradient and without touching the state."""
        with torch.no_grad():
            return self._evaluate(model, guide, args, kwargs).loss.item()

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Minus the ELBO, with the estimator's gradient; advances the state."""
        estimate = self._evaluate(model, guide, args, kwargs)
        if torch.is_grad_enabled():
            self.state, self.info = estimate.state, estimate.info
        return estimate.surrogate + (estimate.loss - estimate.surrogate).detach()

    def loss_and_grads(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """`differentiable_loss` and its backward pass; the value stays on the device."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace))
        return model_trace.get_trace(*args, **kwargs), guide_trace

    # ---------------------------------------------------------------------------- particles

    def _evaluate(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Estimate:
        return self._estimate(self._run(model, guide, args, kwargs), self.state)

    def _find_layout(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Layout:
        return find_layout(model, guide, args, kwargs, self.max_plate_nesting)

    def _run(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Particles:
        if self._pair != (model, guide) or self._layout is None:
            layout = self._find_layout(model, guide, args, kwargs)
            if self.vectorize_particles:
                self.vectorize_particles = takes_particles(model, guide, args, kwargs, layout)
            self._pair, self._layout = (model, guide), layout
        values = self._values(guide, args, kwargs, self._layout)
        return run_particles(
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

    def _current_beta(self, state: BetaState) -> float | Tensor:
        if self.target_rate is not None:
            return torch.as_tensor(state.log_beta).exp()
        return float(self.beta(state.step)) if callable(self.beta) else self.beta

    def _next_beta_state(self, state: BetaState, rate: Float[Tensor, ""]) -> BetaState:
        """`rate` in nats per datum. Beta rises while the latents carry more than the target."""
        if self.target_rate is None:
            return BetaState(state.step + 1, state.log_beta)
        excess = rate.detach() / (self.target_rate * math.log(2)) - 1.0
        return BetaState(state.step + 1, state.log_beta + _RATE_GAIN * excess.clamp(-1, 1))
