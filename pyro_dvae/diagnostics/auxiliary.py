"""Sites of the guide alone, whose log q makes the ELBO no bound, unless the latents tell them.

The loss counts log q of all that a guide draws. Of a site u beside the latents z it is the mean of
``log p(x, z) - log q(u) - log q(z | u)``: above a bound by the entropy of u given z [1]. Weights
``p(x, z) / q(z | u)`` are those of a model that draws u as the guide does: their mean is the
evidence, so that bounds of weights are made of these. But where latents are computed of u, one to
one, as automatic guides compute them, log q(u) is their own density and counts. Which it is is
found by trying: u takes another value, and the latents that are computed follow, or do not.

References:
    [1] Agakov & Barber. An auxiliary variational method. ICONIP, 2004.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_dvae.diagnostics.points import is_pinned
from pyro_dvae.programs.draw import Draw, moved, run_pair
from pyro_dvae.programs.readers.impossible import excludes
from pyro_dvae.programs.record import Ledger, Reader
from pyro_dvae.programs.sites import Layout, Pair, Run, Site
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.summing.values import joint_latents

__all__ = [
    "Alone",
    "check_discrete",
    "check_listed",
    "check_not_summed",
    "check_simulates",
    "read_auxiliary",
    "sites_alone",
    "without",
    "without_told",
]

_MOST_VALUES = 16  # of a discrete site, that are tried


class Alone(NamedTuple):
    """Sites that the guide draws and the model has not."""

    auxiliary: tuple[str, ...] = ()  # those that no latent tells
    densities: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of each other, the latents
    # that are computed of it, whose density it has; of a sum over others, those it makes joint
    free: tuple[str, ...] = ()  # of these, discrete ones that take all their values so


def sites_alone(pair: Pair, num_runs: int) -> Alone:
    """Find the sites that the guide alone draws; nothing is drawn for whoever comes next.

    A guide with a factor, or another observed site, has said itself what counts of them.

    Args:
        pair: With its layout.
        num_runs: That show which sites there are, if these depend on the draws.

    Raises:
        ValueError: If latents are computed of more numbers than they are.
    """
    return only_looking(lambda: _found_alone(pair, num_runs))


def _found_alone(pair: Pair, num_runs: int) -> Alone:
    found: dict[str, None] = {}
    densities: dict[str, tuple[str, ...]] = {}
    joint: dict[str, tuple[str, ...]] = {}
    for run in [run_pair(pair, Draw(pair.layout, None)) for _ in range(num_runs)]:
        alone, computed = _alone_and_computed(run)
        told = _told(pair, run, alone, computed) if alone and computed else {}
        if not any(site.is_observed for site in run.guide.values()):
            found |= dict.fromkeys(name for name in alone if name not in told)
        densities |= told
        for name, latents in joint_latents(run.model).items():
            joint[name] = tuple(dict.fromkeys((*joint.get(name, ()), *latents)))
    free = _all_drawn(run, densities) if num_runs == 1 else ()
    return Alone(tuple(found), densities | joint, free)


def _alone_and_computed(run: Run) -> tuple[list[str], list[str]]:
    """Sites that the guide alone has, and latents that it computes."""
    alone = [n for n, s in run.guide.items() if n not in run.model and _is_random(s)]
    return alone, [n for n, s in run.model.items() if n in run.guide and is_pinned(run.guide[n], s)]


def _is_random(site: Site) -> bool:
    return not isinstance(site.base, dist.Delta)


def _told(
    pair: Pair, run: Run, alone: Sequence[str], computed: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Which sites the computed latents tell, and which latents do."""
    if any(site.is_observed for site in run.guide.values()):
        return {name: tuple(computed) for name in alone}
    values = {name: site.value for name, site in run.guide.items() if _is_random(site)}
    found = {}
    for site in [run.guide[name] for name in alone]:
        alike = [name for name in computed if _alike(site, run.model[name])]
        if alike and (latents := _latents_that_tell(pair, run, site, alike, values)):
            found[site.name] = latents
    _check_numbers([run.guide[name] for name in found], [run.guide[name] for name in computed])
    return found


def _alike(site: Site, other: Site) -> bool:
    """Whether one may have the density of the other: both are discrete, or none is."""
    return bool(site.fn.support.is_discrete) == bool(other.fn.support.is_discrete)


def _latents_that_tell(
    pair: Pair, run: Run, site: Site, computed: Sequence[str], values: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Those that are others, if some are, whatever other value a site has."""
    found: dict[str, None] = {}
    for other in _others(pair, site):
        again = run_pair(pair, Draw(pair.layout, None, {**values, site.name: other}))
        moved_on = [
            n for n in computed if not torch.equal(run.guide[n].value, again.guide[n].value)
        ]
        if not moved_on:
            return ()
        found |= dict.fromkeys(moved_on)
    return tuple(found)


def _others(pair: Pair, site: Site) -> Iterator[Tensor]:
    """Other values of a discrete site; of a continuous one another draw."""
    if moved(site, site.value, 1) is None:
        yield run_pair(pair, Draw(pair.layout, None)).guide[site.name].value
        return
    for by in range(1, min(site.num_values or _MOST_VALUES, _MOST_VALUES)):
        other = moved(site, site.value, by)
        assert other is not None
        yield other


def _all_drawn(run: Run, densities: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Discrete latents that are computed of sites with as many values, none of them left out."""
    names = {name: None for latents in densities.values() for name in latents}
    latents = [n for n in names if run.model[n].fn.support.is_discrete]
    sites = [run.guide[n] for n in densities if run.guide[n].fn.support.is_discrete]
    num_drawn, num_computed = (
        math.prod(site.num_values or 0 for site in each)
        for each in (sites, [run.model[name] for name in latents])
    )
    if not num_drawn or num_drawn != num_computed:
        return ()
    for site in sites:
        others = [moved(site, site.value, by) for by in range(1, site.num_values or 1)]
        if any(bool(excludes(site.fn, value).any()) for value in others if value is not None):
            return ()
    return tuple(latents)


def _check_numbers(told: Sequence[Site], computed: Sequence[Site]) -> None:
    told = [site for site in told if not site.fn.support.is_discrete]
    num_told, num_computed = (sum(s.value.numel() for s in each) for each in (told, computed))
    if num_told > num_computed:
        raise ValueError(
            f"sites {[site.name for site in told]} of the guide alone are {num_told} numbers, of "
            f"which the {num_computed} of latents {[site.name for site in computed]} are computed: "
            "so many have no density that is known. Sample these latents in the guide from a "
            "distribution given the sites, or add the missing density as a factor of the guide."
        )


def read_auxiliary(names: Sequence[str]) -> dict[str, Reader]:
    """Readers of log q of these sites, as the loss counts it: of a datum, of what data share."""

    def ledger_of(run: Run, layout: Layout, num_particles: int) -> Ledger:
        ledger = Ledger(layout, num_particles, [*run.guide.values(), *run.model.values()])
        for site in [run.guide[name] for name in names if name in run.guide]:
            ledger.add("auxiliary", site, site.log_prob())
        return ledger

    def read(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
        ledger = ledger_of(run, layout, num_particles)
        return ledger.total("auxiliary") if ledger.owned else None

    def read_shared(run: Run, layout: Layout, num_particles: int) -> Tensor | None:
        ledger = ledger_of(run, layout, num_particles)
        return ledger.total_shared("auxiliary") if ledger.shared else None

    return {"auxiliary": read, "shared_auxiliary": read_shared} if names else {}


def without(names: Sequence[str], read: Reader) -> Reader:
    """A reader of runs without some sites of the guide."""
    if not names:
        return read

    def read_rest(run: Run, layout: Layout, num_particles: int) -> object:
        guide = {name: site for name, site in run.guide.items() if name not in names}
        return read(run._replace(guide=guide), layout, num_particles)

    return read_rest


def without_told(shared: Sequence[str], alone: Alone) -> tuple[str, ...]:
    """What the data share, where a latent and the site that it is computed of are one: the latent.

    Args:
        shared: Sites that no datum owns.
        alone: Sites that the guide alone draws.
    """
    latents = set(shared)
    return tuple(n for n in shared if not latents.intersection(alone.densities.get(n, ())))


def check_discrete(continuous: Collection[str]) -> None:
    """Raise if the guide draws latents that are not discrete."""
    if continuous:
        raise ValueError(
            f"sites {sorted(continuous)} are continuous, or a Delta's, so that the posterior "
            "cannot be listed. Use `importance_diagnostics`, which samples."
        )


def check_listed(latent: Collection[str], listed: Collection[str]) -> None:
    """Raise if the guide draws latents that are not among those of the model."""
    if auxiliary := sorted(set(latent) - set(listed)):
        raise ValueError(
            f"sites {auxiliary} are the guide's alone, drawn with the latents, so that the states "
            "of the model are not all that it draws. Use `importance_diagnostics`, which samples."
        )


def check_not_summed(summed: Collection[str]) -> None:
    """Raise if a model sums out sites, of which no draw can be ranked."""
    if summed:
        raise ValueError(
            f"sites {sorted(summed)} are summed out: there are no draws of them to rank, or to "
            "simulate data at. Sample them in the guide, without their mark, or use "
            "`importance_diagnostics`, which sums them."
        )


def check_simulates(
    weighed: Mapping[str, Any], scored: Collection[str], data: Collection[str]
) -> None:
    """Raise if a model's density counts what nothing is drawn from.

    Args:
        weighed: Whether a scale weighs a site otherwise than its datum, by name.
        scored: Sites that the model observes, factors among them.
        data: Those that have data.
    """
    apart = [f"a scale of its own weighs '{name}'" for name, each in weighed.items() if each.any()]
    factors = [f"'{name}' is a factor" for name in scored if name not in data]
    if apart or factors:
        raise ValueError(
            f"{', '.join([*apart, *factors])}: what such a thing says of latents counts in the "
            "posterior that the guide is of, but no data are drawn from it: ranks would tell "
            "of another model. Use `posterior_gap` or `importance_diagnostics`, which count it, or "
            "pass a model that is without, and a guide that is meant for it: the same guide, where "
            "a factor is of parameters alone."
        )
