"""What the draw of each site can influence: the part of the objective that its score deserves.

A term of the objective, the log-density of a site in guide or model, has nothing to do with a draw
that it is not computed from, directly or by other draws on the way. Times the draw's score, its
mean is zero, and it is noise [1]. What a term is computed from is found from the programs, by
provenance. Draws of one cell of a plate are not credited with what happens in another, unless a
draw on the way is not under that plate: it may have gathered all cells, for all to be led by it.
Plates in one dim, one after the other, are different plates.

Shapes: K particles lead, then the plates that make a datum, then the batch dims of all others, 1
where a site is under none.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.ops.provenance import get_provenance
from torch import Tensor

from pyro_dvae.programs.densities import entropy_of, fast_log_prob
from pyro_dvae.programs.record import Ledger, Reader, draw_log_prob, in_batch_dims
from pyro_dvae.programs.sites import Layout, Pair, Run, Site
from pyro_dvae.programs.structure.tracking import TrackDraws, find_sources, tracked

__all__ = ["Credit", "Influence", "credit_reader", "find_influence", "log_draw"]


# Of each credited draw that a term is computed from: the dims in which it leads to its own cell.
Draws = Mapping[str, frozenset[int]]


class Influence(NamedTuple):
    """Which credited draws the log-density of each site is computed from, and in which cells."""

    guide: Mapping[str, Draws]
    model: Mapping[str, Draws]


class Credit(NamedTuple):
    """What the draws of one site can influence, in nats, without gradient; and their score."""

    log_draw: Float[Tensor, "K *batch"]  # its gradient is the score function
    log_likelihood: Float[Tensor, "K *batch"]
    negative_rate: Float[Tensor, "K *batch"]  # log p(z) - log q, where not of observations


def find_influence(pair: Pair) -> Influence | None:
    """Which draws each term is computed from; None if each draw of a datum influences all of it."""
    found = tracked(pair, TrackDraws())
    run, layout = found.run, pair.layout
    if not run.guide.keys() >= set(layout.credited):  # they come and go with the draws
        return None
    latent = [name for name, site in run.guide.items() if not site.is_observed]
    sources = find_sources(pair, found, latent)

    def draws_of(site: Site, draws: frozenset[str]) -> Draws:
        """Place draws that lead to a site; those that Python asks for, or unseen, in any cell."""
        seen = get_provenance(site.log_prob()) | {site.name}
        anywhere = found.exits | (draws - seen)
        return _draws_in_cells(site, draws, sources.guide, run.guide, layout, anywhere)

    guide = {name: draws_of(site, sources.guide[name]) for name, site in run.guide.items()}
    model = {name: draws_of(site, sources.model[name]) for name, site in run.model.items()}
    return _if_needed(Influence(guide, model), run, layout)


def _draws_in_cells(
    site: Site,
    draws: frozenset[str],
    above: Mapping[str, frozenset[str]],
    latent: Mapping[str, Site],
    layout: Layout,
    anywhere: frozenset[str] = frozenset(),
) -> Draws:
    """Of the credited ones among draws that a term is computed from: in which dims, cell by cell.

    Args:
        site: The term's.
        draws: All that it is computed from.
        above: Of each latent site, the draws that it is computed from.
        latent: The guide's sites.
        layout: How the sites lie.
        anywhere: Draws that may lead from any cell to any other.
    """

    def dims_of(name: str) -> frozenset[int]:
        on_the_way = [n for n in draws if n != site.name and name in above[n]]
        sites = [site, latent[name], *(latent[n] for n in on_the_way)]
        shared = frozenset.intersection(*map(_plates, sites))
        return frozenset(dim for plate, dim in shared if plate not in layout.mixed)

    credited = [name for name in layout.credited if name in draws]
    return {name: frozenset() if name in anywhere else dims_of(name) for name in credited}


def _if_needed(influence: Influence, run: Run, layout: Layout) -> Influence | None:
    """None if each draw of a datum influences all of it."""
    credited = frozenset(layout.credited)
    owned = [influence.guide[n] for n, s in run.guide.items() if layout.owns(s)]
    owned += [influence.model[n] for n, s in run.model.items() if layout.owns(s)]
    nested = any(len(run.guide[name].plates) > len(layout.plates) for name in credited)
    return influence if nested or any(draws.keys() != credited for draws in owned) else None


def log_draw(site: Site) -> Tensor:
    """Log-probability of a site's draw, whose gradient is the score."""
    return draw_log_prob(site, site.log_prob())


def credit_reader(
    influence: Influence, log_draw: Callable[[Site], Tensor], *, with_entropy: bool
) -> Reader:
    """A reader of records: of each credited site its `Credit`, by name.

    Args:
        influence: Which draws each term is computed from.
        log_draw: From a site to what its credit is multiplied by.
        with_entropy: Whether entropies are in closed form, where all sites have one.
    """

    def read(run: Run, layout: Layout, num_particles: int) -> dict[str, Credit]:
        terms = _terms(run, layout, num_particles, influence, with_entropy)
        credits = {}
        for name in layout.credited:
            site = run.guide[name]
            sums = {kind: torch.zeros(()) for kind in ("likelihood", "rate")}
            for kind, values, dims, draws in terms:
                if name in draws:
                    outside = tuple(dims - draws[name])
                    part = values.sum(outside, keepdim=True) if outside else values
                    sums[kind] = sums[kind] + part
            drawn = in_batch_dims(site, log_draw(site), layout.nesting, num_particles)
            likelihood, rate = (
                torch.as_tensor(total).expand(num_particles, *_batch(total, layout))
                for total in sums.values()
            )
            credits[name] = Credit(*(_data_first(v, layout) for v in (drawn, likelihood, rate)))
        return credits

    return read


_Term = tuple[str, Tensor, frozenset[int], Draws]  # kind, values, dims of plates, draws


def _terms(
    run: Run, layout: Layout, num_particles: int, influence: Influence, with_entropy: bool
) -> list[_Term]:
    """The terms of the objective that a datum owns, without gradient."""
    sites = [*run.guide.values(), *run.model.values()]
    ledger, terms = Ledger(layout, num_particles, sites), list[_Term]()

    def add(kind: str, site: Site, values: Tensor, draws: Draws) -> None:
        if layout.owns(site) and draws:
            scale = 1.0 if ledger.is_common else site.scale / ledger.common
            scaled = site.scaled(values.detach(), scale)
            scaled = in_batch_dims(site, scaled, layout.nesting, num_particles)
            terms.append((kind, scaled, _dims(site), draws))

    drawn = {name: run.guide[name] for name in layout.credited}
    entropies = {n: entropy_of(s.fn, s.value) if with_entropy else None for n, s in drawn.items()}
    in_closed_form = all(entropy is not None for entropy in entropies.values())
    for name, site in run.guide.items():
        entropy, draws = entropies.get(name), influence.guide[name]
        if in_closed_form and entropy is not None:
            itself = set() if _is_sequential(site.base) else {name}
            add("rate", site, entropy, {n: dims for n, dims in draws.items() if n not in itself})
        else:
            add("rate", site, -site.log_prob(), draws)
    for name, site in run.model.items():
        kind = "likelihood" if site.kind == "likelihood" else "rate"
        add(kind, site, fast_log_prob(site), influence.model[name])
    return terms


def _plates(site: Site) -> frozenset[tuple[str, int]]:
    """Names and dims: two plates one after the other may lie in one dim, and are two."""
    return frozenset((name, frame.dim) for name, frame in site.plates.items())


def _dims(site: Site) -> frozenset[int]:
    return frozenset(frame.dim for frame in site.plates.values())


def _data_first(values: Tensor, layout: Layout) -> Tensor:
    """The plates of a datum right after the particles, all others behind."""
    places = [values.dim() + dim for dim in layout.dims]
    return values.movedim(places, list(range(1, 1 + len(places))))


def _batch(values: Tensor, layout: Layout) -> tuple[int, ...]:
    return tuple(values.shape[1:]) if values.dim() else (1,) * layout.nesting


def _is_sequential(base: object) -> bool:
    """Whether the entropy of a site depends on its own draw."""
    return hasattr(base, "conditional_entropy")
