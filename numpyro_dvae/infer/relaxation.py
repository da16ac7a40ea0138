"""Relax the discrete sites of a program by a handler: the program stays as it is.

    svi = SVI(relax(model), relax(guide), Adam(1e-3), loss=Trace_ELBO())

Inside, each chosen Bernoulli, Categorical or OneHotCategorical site that is not observed draws from
a `PathwiseBernoulli` or a `PathwiseCategorical`: its draws carry a gradient (`ops.relaxing` says
which), so that stock losses for reparameterised latents, and all of ours, train the guide. What is
computed:

- Bernoulli draws are numbers in [0, 1] and OneHotCategorical draws vectors, as before. Categorical
  draws are vectors over the V codes, ``(*batch, V)``, in place of integers: the program must take
  them (``z @ table`` for ``table[z]``), as `nets.MLPDecoder` does. All are one-hot (or 0 and 1) but
  for "gumbel", whose draws lie within the simplex.
- log p(z) - log q(z) is that of the discrete distributions, ``Σ_v z_v (log p_v - log q_v)``: exact
  at one-hot draws, linear in between; a density of relaxed draws is nowhere. The mean of a "gumbel"
  draw is not q, so there this term has a bias of its own, which vanishes with the temperature.
- `TraceMeanField_ELBO` takes KL(q || p) in closed form, which has neither noise nor that bias.

The log-density does not depend on the temperature: only the guide needs a schedule.

References:
    [1] Jang, Gu & Poole. Categorical reparameterization with Gumbel-softmax. ICLR, 2017.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array

from numpyro_dvae.distributions import RELAXATIONS
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.programs.handlers.relaxing import RefusalError, Relaxing, not_followed, not_taken
from numpyro_dvae.programs.handlers.slopes import lost_slope
from numpyro_dvae.programs.plans import looks

__all__ = ["Relaxed", "relax", "unrelaxed"]


@checked
def relax(
    program: Callable,
    method: str = "gumbel",
    *,
    sites: Sequence[str] | None = None,
    temperature: float | Array | Callable[[Any], Any] = 1.0,
    num_gumbels: int = 10,
) -> "Relaxed":
    """Give the discrete draws of a model or guide a gradient; do it to both.

    Args:
        program: A NumPyro model or guide.
        method: "gumbel", "straight_through_gumbel", "straight_through", "reinmax" or "gr_mck",
            as in `ops.relaxing`.
        sites: Names of the sites to relax; None for all that can be.
        temperature: Of the relaxation, positive: a number, or a schedule ``calls -> number`` of
            JAX operations. It sees how often the program has been called, which is kept in
            NumPyro's mutable state: the step. NumPyro's own losses keep that at one particle only.
        num_gumbels: Gumbel vectors that "gr_mck" averages.

    Raises:
        ValueError: If an argument is out of range; on a call, if a site of `sites` is missing,
            observed or of another family, if the program cannot take vectors of codes, or if it
            computes a log-density from a draw by what has no gradient (`handlers.slopes`).
    """
    if method not in RELAXATIONS:
        raise ValueError(f"`method` must be one of {RELAXATIONS}; got {method!r}.")
    if isinstance(temperature, float | int) and not 0.0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be positive and finite; got {temperature}.")
    if num_gumbels < 1:
        raise ValueError(f"`num_gumbels` must be at least 1; got {num_gumbels}.")
    if isinstance(sites, str):
        raise ValueError(f"`sites` is a list of names; got the string {sites!r}: [{sites!r}].")
    return Relaxed(program, method, sites, temperature, num_gumbels)


class Relaxed:
    """A program under `relax`: called as the program is, with its attributes.

    A schedule's count of calls is mutable state, under the program's name and "$relaxation".
    """

    def __init__(
        self,
        program: Callable,
        method: str,
        sites: Sequence[str] | None,
        temperature: float | Array | Callable[[Any], Any],
        num_gumbels: int,
    ) -> None:
        self.program, self.sites = program, None if sites is None else tuple(sites)
        self.method, self.temperature, self.num_gumbels = method, temperature, num_gumbels
        self._checked: set[Any] = set()  # looks of calls whose gradients are known to arrive

    def __getattr__(self, name: str) -> Any:
        if name == "program" or name.startswith("__"):  # while being copied
            raise AttributeError(name)
        return getattr(self.program, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        options = {"method": self.method, "num_gumbels": self.num_gumbels}
        handler = Relaxing(self.sites, {**options, "temperature": self._next_temperature()})
        try:
            with handler:
                result = self.program(*args, **kwargs)
        except RefusalError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if not handler.vectors:
                raise
            raise not_taken(handler.vectors, error) from error
        if missing := sorted(set(self.sites or ()) - handler.met):
            raise ValueError(f"`sites`: the program has no site {missing}; check the names.")
        self._check_slopes(handler, args, kwargs)
        return result

    def _check_slopes(self, handler: Relaxing, args: tuple, kwargs: dict) -> None:
        """Once for calls that look alike: that no draw loses its gradient."""
        call = looks((args, kwargs))
        if call in self._checked or not handler.relaxed:
            return
        self._checked.add(call)

        def run() -> None:
            with Relaxing(self.sites, handler.options):
                self.program(*args, **kwargs)

        lost = lost_slope(run, handler.draws, handler.relaxed)
        if lost is not None:
            raise not_followed(lost)

    def _next_temperature(self) -> Any:
        if not callable(self.temperature):
            return self.temperature
        name = getattr(self.program, "__name__", type(self.program).__name__)
        counter = numpyro.primitives.mutable(f"{name}$relaxation", {"calls": jnp.zeros((), int)})
        temperature = self.temperature(counter["calls"])
        counter["calls"] = counter["calls"] + 1
        return temperature


def unrelaxed(program: Callable) -> Callable:
    """The program itself, whose draws are codes, of one under `relax`; any other as it is.

    Args:
        program: A model or guide.

    Returns:
        A program that says so where it fails, as one does that takes vectors of codes alone.
    """
    if not isinstance(program, Relaxed):
        return program
    inner = unrelaxed(program.program)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                "a relaxed program is judged as it is without `relax`, at codes that are integers, "
                f"and it failed with these: {type(error).__name__}: {error} Let it take both "
                "(table[z] for integers, z @ table for vectors, as nets.MLPDecoder does), or "
                "make the sites OneHotCategorical."
            ) from error

    return run
