"""Parameters in closed form under the losses that see a batch at a time.

The best variance of a Gaussian likelihood is the mean square error of its means, where a gradient
would lag behind it for hundreds of steps. A site says so by ``infer={"closed_form": ...}``, see
`models.ClosedForm`. After each step the parameter, as it is stored (a log-variance), moves towards
the optimum of the batch,

    raw <- raw + r (solve(Σ_nk w_kn s_kn, N, raw) - raw),    w_kn = d gain_n / d log p(x_n | z_kn),

so the weights of the draws are those by which the loss trains the model: 1 / K of K draws, the
probabilities of an enumeration, the importance weights of a bound. Sites with one parameter share
it: their totals and counts are added up. `Truncated_ELBO`, which knows its posterior over all data,
solves for them all at once instead.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.ops.processes import total as summed_over
from pyro_dvae.programs.pair import Layout, Run
from pyro_dvae.programs.processes.gathering import part_of
from pyro_dvae.programs.readers.statistics import (
    Factors,
    Statistic,
    closed_forms_of,
    read_statistics,
    sums,
)
from pyro_dvae.programs.record import Particles

__all__ = ["RATE", "ClosedForms"]

RATE = 0.1  # r: what a moving average takes of a batch


class ClosedForms:
    """The sites of the programs that have closed forms, and what is due when a step is over.

    Autograd holds on to the values that a step has used, so they change after it.
    """

    def __init__(self) -> None:
        self._forms: dict[str, Any] = {}
        self._due: list[tuple[Any, Tensor, Tensor]] = []

    def read(self, run: Run, layout: Layout, num_particles: int) -> dict[str, Statistic | Factors]:
        """The statistics of those sites, in a run that trains; a reader of records."""
        if not torch.is_grad_enabled():
            return {}
        self._forms = closed_forms_of(run.model)
        return read_statistics(self._forms, run, layout, num_particles)

    def watched(self, particles: Particles) -> Particles:
        """The record, with a log-likelihood that the weights of the draws can be asked of."""
        given = particles.log_likelihood
        if not particles.extras.get("closed_forms") or given.requires_grad:
            return particles
        return particles._replace(log_likelihood=given.detach().requires_grad_())

    def gather(self, particles: Particles, value: Float[Tensor, "*plates"]) -> None:
        """Keep what the parameters follow from, until the step is over."""
        statistics = particles.extras.get("closed_forms")
        if not statistics or not value.requires_grad:
            return
        (weights,) = torch.autograd.grad(
            value.sum(), particles.log_likelihood, retain_graph=True, allow_unused=True
        )
        if weights is None:
            return
        weights = part_of(particles, weights)
        due: dict[int, tuple[Any, Tensor, Tensor]] = {}
        for name, form in self._forms.items():
            total, count = sums(statistics[name], weights, tuple(form.target.shape))
            _, *before = due.get(id(form.target), (form, 0.0, 0.0))
            due[id(form.target)] = form, total + before[0], count + before[1]
        self._due = list(due.values())

    @torch.no_grad()
    def set(self) -> None:
        """Move the parameters."""
        for form, total, count in self._due:
            total, count = summed_over(total), summed_over(count)
            step = form.solve(total, count, form.target) - form.target
            form.target.add_(RATE * torch.where(step.isfinite(), step, 0.0))
        self._due = []
