"""All ways through a program whose sites depend on its draws, not those alone that luck takes.

Where Python asks for the value of a draw (`if`, `int()`, a loop), each of its values may lead to
other sites. So a draw that is asked for takes all of its values, one run each, that which is asked
for first before those that it leads to. Draws of too many values are made some times, by seeds of
their own: what is found is then the same whatever was drawn before.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pyro_dvae.programs.sites import Site
from pyro_dvae.programs.structure.looking import only_looking, raise_slip
from pyro_dvae.programs.supports import listed_values

__all__ = ["Way", "ways_through"]

_MOST_RUNS = 64
_MOST_STATES = 64  # of a draw that are tried
_NUMBERS = 16  # of a draw without a bound that are tried
_SEEDS = range(1, 33)


class Way(NamedTuple):
    """One run, and what led it there."""

    values: Mapping[str, Tensor]  # of its draws
    sites: Mapping[str, Site]  # those that draw
    found: Any  # what else the run has told


def ways_through(
    run: Callable[[Mapping[str, Tensor]], tuple[Mapping[str, Site], Collection[str], Any]],
) -> list[Way]:
    """Runs of a program in which the draws that Python asks for take their values.

    Args:
        run: From values of some draws to a run with these: its sites, the draws whose values Python
            has asked for, and what else is wanted of it. Where nothing is asked for, it is run
            once, without values.
    """
    return only_looking(lambda: _ways(run))


def _ways(run: Callable) -> list[Way]:
    first = run({})
    unfinished, found = _branches({}, *first[:2]), list[Way]()
    is_listed = bool(unfinished) or not first[1]
    while unfinished and len(found) < _MOST_RUNS:
        values = unfinished.pop(0)
        pyro.set_rng_seed(0)
        try:
            sites, asked, more = run(values)
        except Exception as error:  # of values that the program never draws
            raise_slip(error)
            continue
        further = _branches(values, sites, asked)
        unfinished += further
        if not further:
            found.append(_way(sites, more))
            is_listed = is_listed and set(asked) <= values.keys()
    found = found or [_way(first[0], first[2])]
    for seed in _SEEDS if unfinished or not is_listed else ():
        pyro.set_rng_seed(seed)
        sites, _, more = run({})
        found.append(_way(sites, more))
    return found


def _way(sites: Mapping[str, Site], found: Any) -> Way:
    drawn = {n: detach_provenance(s.value) for n, s in sites.items() if not s.is_observed}
    return Way(drawn, sites, found)


def _branches(
    values: Mapping[str, Tensor], sites: Mapping[str, Site], asked: Collection[str]
) -> list[dict[str, Tensor]]:
    """Values of the first draw that is asked for and not given, if they can be listed."""
    for name, site in sites.items():
        if name in asked and name not in values and (states := _states(site)):
            return [{**values, name: state} for state in states]
    return []


def _states(site: Site) -> list[Tensor]:
    """All values of a draw, of all its cells; none if they are too many, or not discrete."""
    base, value = site.base, detach_provenance(site.value)
    if not getattr(base.support, "is_discrete", False):
        return []
    if site.has_finite_support:
        try:
            support = detach_provenance(listed_values(site))
        except ValueError:  # other values for some data
            return []
    else:
        support = torch.arange(_NUMBERS)
    shape = value.shape[: value.dim() - len(base.event_shape)]
    if len(support) ** min(shape.numel(), 64) > _MOST_STATES:
        return []
    each = itertools.product(support, repeat=shape.numel())
    return [torch.stack(cells).reshape(value.shape).to(value) for cells in each]
