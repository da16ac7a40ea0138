"""Relax the discrete sites of a program by a handler: the program stays as it is.

    svi = SVI(relax(model), relax(guide), Adam({"lr": 1e-3}), loss=Trace_ELBO())

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

import torch
from torch import Tensor, nn

from pyro_dvae.distributions import RELAXATIONS
from pyro_dvae.ops.arguments import checked
from pyro_dvae.programs.handlers.relaxing import RefusalError, Relaxing, not_followed, not_taken
from pyro_dvae.programs.handlers.slopes import lost_slope
from pyro_dvae.programs.plans import looks

__all__ = ["Relaxed", "relax", "unrelaxed"]


@checked
def relax(
    program: Callable,
    method: str = "gumbel",
    *,
    sites: Sequence[str] | None = None,
    temperature: float | Tensor | Callable[[Any], Any] = 1.0,
    num_gumbels: int = 10,
) -> "Relaxed":
    """Give the discrete draws of a model or guide a gradient; do it to both.

    Args:
        program: A Pyro model or guide.
        method: "gumbel", "straight_through_gumbel", "straight_through", "reinmax" or "gr_mck",
            as in `ops.relaxing`.
        sites: Names of the sites to relax; None for all that can be.
        temperature: Of the relaxation, positive: a number, or a schedule ``calls -> number``. It
            sees how often the program has been called with gradients enabled: the step, if a loss
            calls it once per step.
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


class Relaxed(nn.Module):
    """A program under `relax`: called as the program is, with its attributes.

    A module, so that the parameters of a program that is one are found; a schedule's count of
    calls is a buffer.
    """

    def __init__(
        self,
        program: Callable,
        method: str,
        sites: Sequence[str] | None,
        temperature: float | Tensor | Callable[[Any], Any],
        num_gumbels: int,
    ) -> None:
        super().__init__()
        self.program, self.sites = program, None if sites is None else tuple(sites)
        self.method, self.temperature, self.num_gumbels = method, temperature, num_gumbels
        owner = getattr(program, "__self__", None)  # of a method
        self.owner = owner if isinstance(owner, nn.Module) else None
        self._checked: set[Any] = set()  # looks of calls whose gradients are known to arrive
        if callable(temperature):
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "program":  # while being copied
                raise
            return getattr(self.program, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
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
        handler.expect_twin()
        return result

    def _check_slopes(self, handler: Relaxing, args: tuple, kwargs: dict) -> None:
        """Once for calls that look alike, where a draw has a gradient: that none is lost."""
        draws = [handler.draws[name] for name in handler.relaxed & handler.draws.keys()]
        call = looks(args), looks(kwargs)
        if call in self._checked or not any(draw.requires_grad for draw in draws):
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
        temperature = self.temperature(self.calls.clone())
        if torch.is_grad_enabled():
            self.calls += 1
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
