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

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_dvae.programs.pair import Layout, Run
from numpyro_dvae.programs.readers.statistics import (
    Factors,
    Statistic,
    closed_forms_of,
    read_statistics,
    sums,
)
from numpyro_dvae.programs.record import Particles

__all__ = ["RATE", "ClosedForms"]

RATE = 0.1  # r: what a moving average takes of a batch


class ClosedForms:
    """The sites of the programs that have closed forms, found as the programs are traced."""

    def __init__(self) -> None:
        self._forms: dict[str, Any] = {}

    def read(self, run: Run, layout: Layout, num_particles: int) -> dict[str, Statistic | Factors]:
        """The statistics of those sites; a reader of records."""
        self._forms = closed_forms_of(run.model)
        return read_statistics(self._forms, run, layout, num_particles)

    def values(
        self,
        particles: Particles,
        value_of: Callable[[Particles], Float[Array, "*plates"]],
        mutable: Mapping[str, Any],
    ) -> dict[str, Array]:
        """The parameters after the step, by their names in the mutable state.

        Args:
            particles: The record of the step.
            value_of: The gain of a record, for each datum.
            mutable: The mutable state that the programs left.
        """
        statistics = particles.extras.get("closed_forms")
        if not statistics:
            return {}
        fixed = jax.lax.stop_gradient(particles)

        def total_gain(log_likelihood: Array) -> Array:
            return value_of(fixed._replace(log_likelihood=log_likelihood)).sum()

        weights = jax.lax.stop_gradient(jax.grad(total_gain)(fixed.log_likelihood))
        due: dict[str, tuple[Any, Array | float, Array | float]] = {}
        for name, form in self._forms.items():
            total, count = sums(statistics[name], weights, jnp.shape(mutable[form.target]))
            _, *before = due.get(form.target, (form, 0.0, 0.0))
            due[form.target] = form, total + before[0], count + before[1]
        return {name: _moved(*each, mutable[name]) for name, each in due.items()}


def _moved(form: Any, total: Array | float, count: Array | float, old: Array) -> Array:
    step = form.solve(total, count, old) - old
    return old + RATE * jnp.where(jnp.isfinite(step), step, 0.0).astype(old.dtype)
