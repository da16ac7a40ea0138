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

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_dvae.distributions import RELAXATIONS, PathwiseBernoulli, PathwiseCategorical

__all__ = ["Relaxed", "relax"]


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
            observed or of another family, or if the program cannot take vectors of codes.
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
        handler = _Relax(self.sites, {**options, "temperature": self._next_temperature()})
        try:
            with handler:
                result = self.program(*args, **kwargs)
        except _RefusalError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if not handler.vectors:
                raise
            raise _not_taken(handler.vectors, error) from error
        if missing := sorted(set(self.sites or ()) - handler.met):
            raise ValueError(f"`sites`: the program has no site {missing}; check the names.")
        return result

    def _next_temperature(self) -> Any:
        if not callable(self.temperature):
            return self.temperature
        temperature = self.temperature(self.calls.clone())
        if torch.is_grad_enabled():
            self.calls += 1
        return temperature


class _RefusalError(ValueError):
    """An error that is explained already."""


class _Relax(Messenger):
    """Replace the distributions of chosen sites, and check that their values fit."""

    def __init__(self, sites: tuple[str, ...] | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.sites, self.options = sites, options
        self.met: set[str] = set()
        self.codes: set[str] = set()  # sites whose integers become vectors
        self.vectors: dict[str, int] = {}  # those that have a value, over so many codes

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg) or (self.sites is not None and name not in self.sites):
            return
        self.met.add(name)
        fn = None if msg["is_observed"] else relaxed(msg["fn"], self.options)
        if fn is not None:
            if isinstance(_base(msg["fn"]), torch.distributions.Categorical):
                self.codes.add(name)
            msg["fn"] = fn
        elif self.sites is not None:
            raise _RefusalError(_refused(name, msg["fn"], msg["is_observed"]))

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, value, event = msg["name"], msg["value"], tuple(msg["fn"].event_shape)
        fits = tuple(value.shape[value.dim() - len(event) :]) == event
        if name in self.codes:
            if not (fits and value.is_floating_point()):
                raise _RefusalError(_half_relaxed(name, "relaxed", "not"))
            self.vectors[name] = event[-1]
        elif not fits and getattr(msg["fn"].support, "is_discrete", False):
            raise _RefusalError(
                _half_relaxed(name, f"{_family(msg['fn'])}, not relaxed", "relaxed")
            )


def relaxed(fn: Any, options: dict[str, Any]) -> Any:
    """The relaxed form of a distribution, its wrappers kept; None if it has none."""
    if isinstance(fn, torch.distributions.Independent):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.mask(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        base = relaxed(fn.base_dist, options)
        return base if base is None else base.expand(fn.batch_shape)
    if getattr(fn, "has_rsample", False):
        return None
    if isinstance(fn, torch.distributions.Bernoulli):
        return PathwiseBernoulli(fn.logits, **options)
    if isinstance(fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
        return PathwiseCategorical(fn.logits, **options)
    return None


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _family(fn: Any) -> str:
    return type(_base(fn)).__name__


def _refused(name: str, fn: Any, is_observed: bool) -> str:
    found = "observed" if is_observed else f"of the family {_family(fn)}"
    return (
        f"`sites`: '{name}' cannot be relaxed, it is {found}. Only latent Bernoulli, Categorical "
        "and OneHotCategorical sites can; leave it out and use a loss for discrete latents."
    )


def _half_relaxed(name: str, fn: str, value: str) -> str:
    return (
        f"site '{name}': its distribution here is {fn}, but its value, from the guide or given, is "
        f"{value}. Relax both model and guide, with the same `sites`, or neither."
    )


def _not_taken(vectors: dict[str, int], error: Exception) -> ValueError:
    name, num_codes = list(vectors.items())[-1]
    return ValueError(
        f"site '{name}' is Categorical: relaxed, its value is a vector over {num_codes} codes, "
        f"(*batch, {num_codes}), in place of an integer, and the program failed with it: "
        f"{type(error).__name__}: {error} Let the program take vectors (z @ table for table[z], "
        "nets.MLPDecoder), or make the site OneHotCategorical, or leave it out of `sites`."
    )
