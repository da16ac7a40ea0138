"""The exact ELBO of discrete latents, by summing over all states of a datum.

With q(z|x) over a finite space no estimator is needed,

    beta-ELBO = sum_z q(z|x) [log p(x|z) + beta (log p(z) - log q(z|x))],

and automatic differentiation gives its gradient. It costs S = V**L evaluations of the model per
datum: the oracle of every other algorithm, and the method of choice where S is small.
Reparameterised sites beside the discrete ones are sampled as usual; all states share one draw.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.infer.objective import Gain, Objective
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.weighting import fill_impossible
from pyro_dvae.programs.codes import enumerate_draws
from pyro_dvae.programs.readers.impossible import read_impossible
from pyro_dvae.programs.record import Particles
from pyro_dvae.programs.sites import Layout, Pair
from pyro_dvae.programs.structure.broadcasting import takes_singletons
from pyro_dvae.programs.structure.cells import with_cells_apart
from pyro_dvae.programs.structure.layout import find_layout

__all__ = ["Exact_ELBO", "exact_expectation"]


def exact_expectation(
    probs: Float[Tensor, "S *plates"], values: Float[Tensor, "S *plates"]
) -> Float[Tensor, "*plates"]:
    """Mean under q; a state of probability 0 counts nothing, whatever its value.

    Args:
        probs: q of each state, which sums to 1 over the first axis.
        values: A number for each state.

    Example:
        >>> exact_expectation(torch.tensor([0.25, 0.75, 0.0]), torch.tensor([4.0, 8.0, -torch.inf]))
        tensor(7.)
    """
    return (probs * torch.where(probs > 0, values, 0.0)).sum(0)


class Exact_ELBO(ParticleELBO):
    """Sum over every joint state of a datum's discrete latents: no variance, no bias.

    Args:
        max_states: Largest number of states per datum that is accepted.
        beta: See `ParticleELBO`.
        target_rate: See `ParticleELBO`.
        max_plate_nesting: See `ParticleELBO`.
        vectorize_particles: See `ParticleELBO`; here of states.

    Raises:
        ValueError: On the first step, if the guide's discrete sites have more than `max_states`
            joint states per datum, or no finite support.
    """

    reads: ClassVar = {"never": read_impossible}

    @checked
    def __init__(
        self,
        *,
        max_states: int = 2**16,
        beta: float | Callable[[int], float] = 1.0,
        target_rate: float | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if max_states < 2:
            raise ValueError(f"`max_states` must be at least 2; got {max_states}.")
        self.max_states = max_states
        super().__init__(
            1,
            beta=beta,
            target_rate=target_rate,
            closed_form_entropy=False,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )

    def values(self, pair: Pair) -> Mapping[str, Tensor]:
        """All states in place of draws."""
        assert pair.guide is not None
        return enumerate_draws(pair.guide, pair.args, pair.kwargs, pair.layout, self.max_states)

    def find_layout(self, pair: Pair) -> tuple[Layout, tuple]:
        """As `ParticleELBO`; data that do not keep apart are one datum."""
        layout, structure = find_layout(pair, self.max_plate_nesting)
        pair = pair._replace(layout=layout, structure=structure)
        return with_cells_apart(pair, self.values(pair)), structure

    def inspect(self, pair: Pair) -> bool:
        """Whether the programs must see a state in the sizes of all plates."""
        values = self.values(pair)
        return bool(values) and not takes_singletons(pair, values)

    def run_pair(self, pair: Pair) -> Particles:
        """Run prepared programs at all states."""
        return super().run_pair(pair._replace(expand=bool(pair.notes)))

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Tensor, memory: Any
    ) -> Gain:
        """The beta-ELBO itself."""
        # A probability of 0 that is clamped must not make an impossible state count.
        never = particles.extras["never"] & (objective.elbo == -math.inf)
        probs = torch.where(never, 0.0, particles.log_draw.exp())
        rate = exact_expectation(probs, particles.log_q - particles.log_prior)
        likelihood = exact_expectation(probs, particles.log_likelihood)
        elbo, beta_elbo = likelihood - rate, likelihood - beta * rate
        expected = objective._replace(
            log_likelihood=likelihood[None], elbo=elbo[None], beta_elbo=beta_elbo[None]
        )
        values = objective.log_likelihood - beta * (particles.log_q - particles.log_prior)
        values = fill_impossible(torch.where(probs > 0, values, -math.inf), probs)
        return Gain(exact_expectation(probs, values), objective=expected)
