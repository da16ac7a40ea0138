"""Sum out the discrete sites of a model that are marked ``infer={"enumerate": "parallel"}``.

A model runs with all values of a marked site at once, each in a batch dim of its own left of
plates, as under TraceEnum_ELBO. The host's contraction [1], which is funsor's, then sums what
depends on them, one site after the other, chains in time linear in their length (`scan`). What is
left of a group of sites is one factor for each cell of the plates that they share. It takes the
place of all of them in the run, so that whoever reads that meets the marginalised program and no
marked site.

A mask silences the density of a site that depends on a marked one, never the marked one itself,
which sums to 1 where nothing depends on it. A scale multiplies the logarithm of the sum.

References:
    [1] Obermeyer et al. Tensor variable elimination for plated factor graphs. ICML, 2019.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from numpyro_dvae.distributions import PathwiseBernoulli, PathwiseCategorical
from numpyro_dvae.programs.densities import without_mask
from numpyro_dvae.programs.readers.impossible import has_zeros
from numpyro_dvae.programs.sites import Layout, Site
from numpyro_dvae.programs.summing.contracting import (
    contracted,
    enumerated,
    means_of,
    named,
    probs_of,
)
from numpyro_dvae.programs.summing.scales import common_scale
from numpyro_dvae.programs.supports import listed_values

__all__ = ["check_marked", "enumerate_marked", "is_marked", "sum_out"]

_RANGES = (  # families whose values are 0, 1, ..., as the host's `scan` has them
    dist.BernoulliLogits,
    dist.BernoulliProbs,
    dist.BinomialLogits,
    dist.BinomialProbs,
    dist.CategoricalLogits,
    dist.CategoricalProbs,
)


def is_marked(site: Site) -> bool:
    """Whether a latent asks to be summed out where no guide draws it."""
    return not site.is_observed and site.infer.get("enumerate") == "parallel"


def enumerate_marked(layout: Layout, known: Collection[str]) -> AbstractContextManager:
    """A handler that gives marked sites all their values at once.

    Args:
        layout: Which dims are taken by plates.
        known: Sites that the guide draws, or whose values are given.
    """
    return enumerated(layout.nesting, known, check_marked)


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
    if site.is_scanned and not isinstance(site.base, _RANGES):
        raise ValueError(
            f"site '{site.own_name}' ({site.family}) is enumerated in a `scan`, "
            "which takes values 0, 1, ... alone. Make it a Categorical, and look its values up in "
            "a table."
        )
    if len(listed_values(site)) == 1:
        raise ValueError(
            f"site '{site.name}' ({site.family}) is marked infer={{'enumerate': 'parallel'}}, but "
            "has one value, of which the host's sum makes no dim. Sample it in the guide as well, "
            "which changes no loss, or compute with that value."
        )


def sum_out(sites: Mapping[str, Site], layout: Layout, *, clamped: bool = True) -> dict[str, Site]:
    """The sites of a run under `enumerate_marked`, those with marked ones among them as factors.

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
    marked = {name for name, site in sites.items() if _is_summed(site)}
    drawn = {name for name, site in sites.items() if not site.is_observed} - marked
    terms = [_term(site, marked, drawn, clamped) for site in sites.values()]
    kept = {term.site.name: term.site for term in terms if not term.sums}
    kept |= {t.site.name: _counted_elsewhere(t.site) for t in terms if t.sums and t.is_drawn}
    unclamped = functools.cache(functools.partial(sum_out, sites, layout, clamped=False))
    for group in _groups([term for term in terms if term.sums]):
        members = {term.site.name: term.site for term in group}
        for factor in _factors(group, layout):
            infer = {**factor.infer, "_members": members, "_unclamped": unclamped}
            kept[factor.name] = replace(factor, infer=infer)
    return kept


def _is_summed(site: Site) -> bool:
    return not site.is_observed and site.name in site.infer["_names"].values()


class _Term(NamedTuple):
    """The log-density of a site, its dims named."""

    site: Site
    values: Any  # `contracting.Named`
    sums: frozenset[str]  # the marked sites that it depends on

    @property
    def is_summed(self) -> bool:
        """Whether it is a marked site's own."""
        return _is_summed(self.site)

    @property
    def is_drawn(self) -> bool:
        """Whether it is of a site that the guide draws."""
        return not (self.is_summed or self.site.is_observed)


def _term(site: Site, marked: set[str], drawn: set[str], clamped: bool) -> _Term:
    names = frozenset(site.infer["_names"].values())
    sums = frozenset(name for name in names if name in marked)
    if not sums:
        return _Term(site, None, sums)
    fn = without_mask(site.fn) if site.name in marked else site.fn
    values = site.log_prob_under(fn)
    if not clamped:
        values = jnp.where(has_zeros(fn, site.value), -jnp.inf, values)
    found = named(site, values)
    odd = found.names - marked - site.plates.keys() - found.times
    if others := sorted(odd & drawn):
        raise ValueError(
            f"site '{others[0]}' is drawn by the guide in a `scan` that enumerates all its "
            "discrete sites. Leave it out of the guide, or write the steps as a Python loop, or "
            "enumerate no site of the scan."
        )
    if odd:
        raise ValueError(
            f"site '{site.name}', which depends on an enumerated one: its log-density has shape "
            f"{jnp.shape(values)}, with dims under no plate ({', '.join(sorted(odd))}). Declare "
            "them with .to_event(1), or put the site under a plate."
        )
    return _Term(site, found, sums)


def _groups(terms: Sequence[_Term]) -> Iterator[list[_Term]]:
    """Terms that marked sites join, each group in the order of the program."""
    groups: list[tuple[set[str], list[int]]] = []
    for place, term in enumerate(terms):
        joined = [group for group in groups if not group[0].isdisjoint(term.sums)]
        names, places = joined[0] if joined else (set(), [])
        names.update(term.sums, *(other for other, _ in joined[1:]))
        places.extend([place, *(each for _, others in joined[1:] for each in others)])
        dropped = [id(group) for group in joined[1:]]
        groups = [group for group in groups if id(group) not in dropped]
        if not joined:
            groups.append((names, places))
    yield from ([terms[place] for place in sorted(places)] for _, places in groups)


def _factors(group: Sequence[_Term], layout: Layout) -> list[Site]:
    """What a group says of the data, and of sites that are drawn."""
    sums = [term for term in group if term.is_summed]
    drawn = [term for term in group if term.is_drawn]
    observed = [term for term in group if term.site.is_observed]
    _check_plates(group, {term.site.name: term.site for term in sums})
    for term in drawn:
        _check_drawn(term.site, sums[0].site)
    likelihood, *alike = (term.site.own_name for term in observed) if observed else ("",)
    first = sums[0].site.own_name
    likelihood = f"{first}_observed" if alike else likelihood
    total = _contracted(group)
    known = {
        "_probs": partial(_probs_of, group, layout),
        "_means": partial(_means_of, group, layout),
    }
    if not drawn and observed:
        return [_factor(likelihood, total, group, known)]
    if not observed:
        return [_factor(first, total, group, known, of_latents=True)]
    prior = _contracted([*sums, *drawn])
    possible = prior != -jnp.inf
    rest = jnp.where(possible, total - jnp.where(possible, prior, 0.0), 0.0)
    return [_factor(first, prior, group, of_latents=True), _factor(likelihood, rest, group, known)]


def _probs_of(group: Sequence[_Term], layout: Layout) -> list[tuple[Site, Array]]:
    marked = [(term.site, term.values) for term in group if term.is_summed]

    terms, contract = [term.values for term in group], partial(_contract, group)
    found = probs_of(marked, terms, contract, layout.nesting)
    return [(site, probs) for (site, _), probs in zip(marked, found, strict=True)]


def _means_of(
    group: Sequence[_Term], layout: Layout, site: Site, arrays: Sequence[Array]
) -> list[Array]:
    terms = [term.values for term in group]
    return means_of(site, arrays, terms, partial(_contract, group), layout.nesting)


def _contract(group: Sequence[_Term], terms: Sequence[Any]) -> Array:
    owners = {term.site.name: term for term in group}
    return _contracted([owners[t.site]._replace(values=t) for t in terms])


def _check_plates(group: Sequence[_Term], marked: Mapping[str, Site]) -> None:
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

    def __init__(self, fn: Any, batch_shape: tuple[int, ...]) -> None:
        self.counted_elsewhere, self.batch_shape = fn, batch_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["counted_elsewhere"], name)

    def log_prob(self, value: Array) -> Array:
        return jnp.zeros(self.batch_shape)


def _counted_elsewhere(site: Site) -> Site:
    infer = {**site.infer, "_joint": True}
    fn = _Elsewhere(site.fn, jnp.shape(site.value)[: site.num_batch_dims])
    return replace(site, fn=fn, infer=infer, call=())


def _check_drawn(site: Site, marked: Site) -> None:
    if site.is_credited and without_mask(site.fn) is not site.fn:
        raise ValueError(
            f"site '{site.name}', which is drawn, is masked and depends on '{marked.name}', "
            "which is enumerated: what the mask leaves of the two is not known. Sample both in the "
            "guide, or leave the mask out."
        )


def _contracted(terms: Sequence[_Term]) -> Array:
    """The logarithm of the sum, over the batch dims of the plates that all terms share."""
    sums = frozenset[str]().union(*(term.sums for term in terms))
    plates = frozenset(name for term in terms for name in term.site.plates)
    outer = set.intersection(*(_plates(term.site) for term in terms))
    try:
        return contracted([term.values for term in terms], sums, plates, dict(outer))
    except (NotImplementedError, ValueError) as error:
        listed = ", ".join(f"'{term.site.name}' under {sorted(term.site.plates)}" for term in terms)
        raise ValueError(
            f"enumerated sites and what depends on them are under plates that cross ({listed}), so "
            "that no order of sums is exact but one of exponential cost. Sample one of the sites "
            "in the guide, or loop over one of the plates."
        ) from error


def _plates(site: Site) -> set[tuple[str, int]]:
    return {(name, frame.dim) for name, frame in site.plates.items()}


def _factor(
    name: str,
    values: Array,
    group: Sequence[_Term],
    known: Mapping[str, Any] = MappingProxyType({}),
    *,
    of_latents: bool = False,
) -> Site:
    shared = set.intersection(*(_plates(term.site) for term in group))
    plates = {n: f for n, f in group[0].site.plates.items() if (n, f.dim) in shared}
    return Site(
        name=name,
        fn=dist.Unit(values, validate_args=False),
        value=jnp.empty((*jnp.shape(values), 0), values.dtype),
        is_observed=True,
        plates=plates,
        scale=common_scale([term.site for term in group], plates),
        infer={"_of_latents": of_latents, **known},
        call=(),
    )
