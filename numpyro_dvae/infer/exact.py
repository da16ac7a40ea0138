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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import Gain, Objective
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.weighting import fill_impossible
from numpyro_dvae.programs.codes import enumerate_draws
from numpyro_dvae.programs.readers.impossible import read_impossible
from numpyro_dvae.programs.record import Particles
from numpyro_dvae.programs.sites import Layout, Pair
from numpyro_dvae.programs.structure.broadcasting import takes_singletons
from numpyro_dvae.programs.structure.cells import with_cells_apart
from numpyro_dvae.programs.structure.layout import find_layout

__all__ = ["Exact_ELBO", "exact_expectation"]


def exact_expectation(
    probs: Float[Array, "S *plates"], values: Float[Array, "S *plates"]
) -> Float[Array, "*plates"]:
    """Mean under q; a state of probability 0 counts nothing, whatever its value.

    Args:
        probs: q of each state, which sums to 1 over the first axis.
        values: A number for each state.

    Example:
        >>> exact_expectation(jnp.array([0.25, 0.75, 0.0]), jnp.array([4.0, 8.0, -jnp.inf]))
        Array(7., dtype=float32)
    """
    return (probs * jnp.where(probs > 0, values, 0.0)).sum(0)


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

    def values(self, rng_key: Array, pair: Pair) -> Mapping[str, Array]:
        """All states in place of draws."""
        assert pair.guide is not None
        return enumerate_draws(
            rng_key, pair.guide, pair.args, pair.kwargs, pair.layout, self.max_states
        )

    def find_layout(self, rng_key: Array, pair: Pair) -> Layout:
        """As `ParticleELBO`; data that do not keep apart are one datum."""
        pair = pair._replace(layout=find_layout(rng_key, pair, self.max_plate_nesting))
        with jax.ensure_compile_time_eval():  # no state depends on a parameter
            values = self.values(rng_key, pair)
        return with_cells_apart(rng_key, pair, values)

    def inspect(self, rng_key: Array, pair: Pair) -> bool:
        """Whether the programs must see a state in the sizes of all plates."""
        values = self.values(rng_key, pair)
        return bool(values) and not takes_singletons(rng_key, pair, values)

    def run_pair(self, rng_key: Array, pair: Pair) -> tuple[Particles, dict[str, Any]]:
        """Run prepared programs at all states."""
        return super().run_pair(rng_key, pair._replace(expand=bool(pair.notes)))

    def gain(
        self, particles: Particles, objective: Objective, beta: float | Array, memory: Any
    ) -> Gain:
        """The beta-ELBO itself."""
        # A probability of 0 that is clamped must not make an impossible state count.
        never = particles.extras["never"] & (objective.elbo == -jnp.inf)
        probs = jnp.where(never, 0.0, jnp.exp(particles.log_draw))
        rate = exact_expectation(probs, particles.log_q - particles.log_prior)
        likelihood = exact_expectation(probs, particles.log_likelihood)
        elbo, beta_elbo = likelihood - rate, likelihood - beta * rate
        expected = objective._replace(
            log_likelihood=likelihood[None], elbo=elbo[None], beta_elbo=beta_elbo[None]
        )
        values = objective.log_likelihood - beta * (particles.log_q - particles.log_prior)
        values = fill_impossible(jnp.where(probs > 0, values, -jnp.inf), probs)
        return Gain(exact_expectation(probs, values), objective=expected)
