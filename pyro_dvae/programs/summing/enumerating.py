"""Sum out the discrete sites of a model that are marked ``infer={"enumerate": "parallel"}``.

A model runs with all values of a marked site at once, each in a batch dim of its own left of plates
and particles, as under TraceEnum_ELBO. The host's contraction [1] then sums what depends on them,
one site after the other, chains in time linear in their length (`pyro.markov`). What is left of a
group of sites is one factor for each cell of the plates that they share. It takes the place of all
of them in the run, so that whoever reads that meets the marginalised program and no marked site.

A mask silences the density of a site that depends on a marked one, never the marked one itself,
which sums to 1 where nothing depends on it. A scale multiplies the logarithm of the sum.

References:
    [1] Obermeyer et al. Tensor variable elimination for plated factor graphs. ICML, 2019.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import opt_einsum
import torch
from pyro import distributions as dist
from pyro.ops.provenance import track_provenance
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_dvae.distributions import PathwiseBernoulli, PathwiseCategorical
from pyro_dvae.programs.densities import without_mask
from pyro_dvae.programs.messages import is_drawn
from pyro_dvae.programs.processes import current_sharding
from pyro_dvae.programs.sites import Layout, Site
from pyro_dvae.programs.summing.contracting import (
    Symbols,
    Term,
    contracted,
    means_of,
    plates_of,
    probs_of,
    terms_of,
)
from pyro_dvae.programs.summing.scales import common_scale

__all__ = [
    "Enumerate",
    "check_marked",
    "check_within_data",
    "is_marked",
    "sum_out",
]


def is_marked(site: Site) -> bool:
    """Whether a latent asks to be summed out where no guide draws it."""
    return not site.is_observed and site.infer.get("enumerate") == "parallel"


class Enumerate(EnumMessenger):
    """Gives marked sites all their values at once.

    Args:
        layout: Which dims are taken by plates.
        known: Sites that the guide draws, or whose values are given.
    """

    def __init__(self, layout: Layout, known: Collection[str]) -> None:
        super().__init__(first_available_dim=-layout.nesting - 2)
        self.known = known

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = dict(msg["infer"] or {})  # the program's own may serve its next run
        if is_drawn(msg) and msg["infer"].get("enumerate") == "parallel":
            if msg["name"] in self.known or msg["done"]:
                del msg["infer"]["enumerate"]
            else:
                check_marked(Site.of(msg))
        super()._pyro_sample(msg)


def check_marked(site: Site) -> None:
    """Whether a site can be summed out.

    Raises:
        ValueError: If it is relaxed, has no finite support, or asks for draws and no sum.
    """
    if isinstance(site.base, PathwiseBernoulli | PathwiseCategorical):
        raise ValueError(
            f"site '{site.name}' is marked infer={{'enumerate': 'parallel'}}, but relaxed. Name in "
            "`sites` of `relax` those that the guide draws, or sample it in the guide."
        )
    if not site.has_finite_support:
        raise ValueError(
            f"site '{site.name}' ({site.family}) is marked infer={{'enumerate': 'parallel'}}, but "
            "has no finite support to sum over. Sample it in the guide, cut a count off (a "
            "Categorical), or leave the mark out."
        )
    if site.infer.get("num_samples") is not None:
        raise ValueError(
            f"site '{site.name}' is marked with num_samples={site.infer['num_samples']}: draws in "
            "place of a sum. Leave num_samples out, or sample it in the guide."
        )
    if site.fn.event_dim > site.base.event_dim:
        raise ValueError(
            f"site '{site.name}' ({site.family}) is marked infer={{'enumerate': 'parallel'}}, but "
            "its .to_event makes one value of several. Put its entries under a plate, or sample "
            "it in the guide."
        )


def sum_out(sites: Mapping[str, Site], layout: Layout, *, clamped: bool = True) -> dict[str, Site]:
    """The sites of a run under `Enumerate`, those with marked ones among them summed into factors.

    Args:
        sites: Of the model, in order.
        layout: How they lie.
        clamped: Whether probabilities of 0 are what the host makes of them; else they are 0. That
            is asked for at each factor, whose ``infer`` has how to do so, and whose sum it is.

    Returns:
        The other sites as they are, and of each group of sites that marked ones join an observed
        factor: of what it says of the data. Sites of a group that are drawn stay, with a
        log-density of 0, and are counted by a factor of the group's own beside it.

    Raises:
        ValueError: If a group has several scales, or plates that cannot be contracted.
    """
    for name in layout.summed:
        if name in sites:  # of programs whose sites depend on the draws
            check_within_data(sites[name])
    terms, symbols = terms_of(sites, layout, clamped=clamped)
    kept = {term.site.name: term.site for term in terms if not term.sums}
    kept |= {t.site.name: _counted_elsewhere(t.site) for t in terms if t.sums and t.is_drawn}
    unclamped = functools.cache(functools.partial(sum_out, sites, layout, clamped=False))
    for group in _groups([term for term in terms if term.sums]):
        members = {term.site.name: term.site for term in group}
        for factor in _factors(group, layout, symbols):
            infer = {**factor.infer, "_members": members, "_unclamped": unclamped}
            kept[factor.name] = replace(factor, infer=infer)
    return kept


def _groups(terms: Sequence[Term]) -> Iterator[list[Term]]:
    """Terms that marked sites join, each group in the order of the program."""
    groups: list[tuple[set[str], list[int]]] = []
    for place, term in enumerate(terms):
        joined = [group for group in groups if not group[0].isdisjoint(term.sums)]
        letters, places = joined[0] if joined else (set(), [])
        letters.update(term.sums, *(other for other, _ in joined[1:]))
        places.extend([place, *(each for _, others in joined[1:] for each in others)])
        dropped = [id(group) for group in joined[1:]]
        groups = [group for group in groups if id(group) not in dropped]
        if not joined:
            groups.append((letters, places))
    yield from ([terms[place] for place in sorted(places)] for _, places in groups)


def _factors(group: Sequence[Term], layout: Layout, symbols: Symbols) -> list[Site]:
    """What a group says of the data, and of sites that are drawn."""
    sums = [term for term in group if term.is_summed]
    drawn = [term for term in group if term.is_drawn]
    observed = [term for term in group if term.site.is_observed]
    _check_plates_of(group, {term.marked: term.site for term in sums if term.marked is not None})
    for term in drawn:
        _check_drawn(term.site, sums[0].site)
    likelihood, *alike = (term.site.name for term in observed) if observed else ("",)
    first = sums[0].site.name
    likelihood = f"{first}_observed" if alike else likelihood
    with opt_einsum.shared_intermediates() as cache:
        total = contracted(group, layout, symbols, cache)
        known = {
            "_probs": partial(probs_of, group, total, layout, symbols),
            "_means": partial(means_of, group, total, layout, symbols),
        }
        if not drawn and observed:
            return [_factor(likelihood, total, group, layout, known)]
        if not observed:
            return [_factor(first, total, group, layout, known, of_latents=True)]
        prior = contracted([*sums, *drawn], layout, symbols, cache)
    possible = prior != -torch.inf
    rest = torch.where(possible, total - torch.where(possible, prior, 0.0), 0.0)
    return [
        _factor(first, prior, group, layout, of_latents=True),
        _factor(likelihood, rest, group, layout, known),
    ]


def _check_plates_of(group: Sequence[Term], marked: Mapping[str, Site]) -> None:
    for term in group:
        for site in (marked[name] for name in term.sums):
            if missing := sorted(site.plates.keys() - term.site.plates.keys()):
                raise ValueError(
                    f"site '{term.site.name}' depends on '{site.name}', which is enumerated under "
                    f"plate '{missing[0]}', from outside of that plate: all its cells at once. Put "
                    "it under the plate, or sample the enumerated site in the guide."
                )


class _Elsewhere:
    """A distribution whose log-density is counted at another site, with its value's batch."""

    def __init__(self, fn: Any, batch_shape: torch.Size) -> None:
        self.counted_elsewhere, self.batch_shape = fn, batch_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["counted_elsewhere"], name)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=torch.get_default_dtype(), device=value.device)


def _counted_elsewhere(site: Site) -> Site:
    infer = {**site.infer, "_joint": True}
    fn = _Elsewhere(site.fn, site.value.shape[: site.num_batch_dims])
    return replace(site, fn=fn, mask=None, infer=infer, call=((), {}))


def _check_drawn(site: Site, marked: Site) -> None:
    if site.is_credited and (site.mask is not None or without_mask(site.fn) is not site.fn):
        raise ValueError(
            f"site '{site.name}', which is drawn, is masked and depends on '{marked.name}', "
            "which is enumerated: what the mask leaves of the two is not known. Sample both in the "
            "guide, or leave the mask out."
        )


def _factor(
    name: str,
    values: Tensor,
    group: Sequence[Term],
    layout: Layout,
    known: Mapping[str, Any] = MappingProxyType({}),
    *,
    of_latents: bool = False,
) -> Site:
    shared = set.intersection(*(plates_of(term.site) for term in group))
    plates = {n: f for n, f in group[0].site.plates.items() if (n, f.dim) in shared}
    sizes = {frame.dim: frame.size for frame in plates.values()}
    depth = max([values.dim(), *(-dim for dim in sizes)])
    values = values.reshape((1,) * (depth - values.dim()) + values.shape)
    values = values.expand([sizes.get(d - depth, n) for d, n in enumerate(values.shape)])
    sources = frozenset[str]().union(*(term.sources for term in group))
    return Site(
        name=name,
        fn=dist.Unit(track_provenance(values, sources), validate_args=False),
        value=values.new_empty((*values.shape, 0)),
        is_observed=True,
        plates=plates,
        scale=common_scale([term.site for term in group], plates),
        mask=None,
        infer={"_of_latents": of_latents, **known},
        call=((), {}),
    )


def check_within_data(site: Site) -> None:
    """Check that a site that is summed out is each datum's own, where a batch is shared.

    Raises:
        ValueError: If it is not: its sum is over what the rows of all processes say.
    """
    found = current_sharding()
    if found is not None and not found.plates.keys() & site.plates.keys():
        raise ValueError(
            f"site '{site.name}' is summed out, and its values are those of the whole batch, whose "
            f"rows processes share by {sorted(found.plates)}. Train in one process, or put the "
            "site under the plate of data."
        )
