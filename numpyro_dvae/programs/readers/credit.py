"""What the draw of each site can influence: the part of the objective that its score deserves.

A term of the objective, the log-density of a site in guide or model, has nothing to do with a draw
that it is not computed from, directly or by other draws on the way. Times the draw's score, its
mean is zero, and it is noise [1]. What a term is computed from is found from the programs, by
provenance. Draws of one cell of a plate are not credited with what happens in another, unless a
draw on the way is not under that plate: it may have gathered all cells, for all to be led by it.
Plates in one dim, one after the other, are different plates.

Shapes: the plates that make a datum, then the batch dims of all others, 1 where a site is under
none; K particles lead in a record.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.ops.provenance import eval_provenance

from numpyro_dvae.programs.densities import entropy_of, fast_log_prob, has_inverse, without_mask
from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.record import Ledger, Reader, draw_log_prob, in_batch_dims
from numpyro_dvae.programs.sites import Layout, Pair, Run, Site

__all__ = ["Credit", "Influence", "credit_reader", "find_influence", "log_draw"]


# Of each credited draw that a term is computed from: the dims in which it leads to its own cell.
Draws = Mapping[str, frozenset[int]]


class Influence(NamedTuple):
    """Which credited draws the log-density of each site is computed from, and in which cells."""

    guide: Mapping[str, Draws]
    model: Mapping[str, Draws]
    chained: frozenset[str]  # whose entropies are computed from their own draws, step by step


class Credit(NamedTuple):
    """What the draws of one site can influence, in nats, without gradient; and their score."""

    log_draw: Float[Array, "K *batch"]  # its gradient is the score function
    log_likelihood: Float[Array, "K *batch"]
    negative_rate: Float[Array, "K *batch"]  # log p(z) - log q, where not of observations


def find_influence(rng_key: Array, pair: Pair) -> Influence | None:
    """Which draws each term is computed from; None if each draw of a datum influences all of it."""
    found: list[Influence | None] = []

    def run(**values: Array) -> Run:
        return run_pair(rng_key, pair, Draw(rng_key, Layout(), values))

    def log_probs(**values: Array) -> tuple[dict[str, Any], dict[str, Array], dict[str, Any]]:
        now = run(**values)
        # A mask takes a draw's density out of the objective, not the draw out of what follows.
        guide = {
            name: (site.term(), without_mask(site.fn).log_prob(site.value, *site.call))
            for name, site in now.guide.items()
        }
        drawn = {name: now.guide[name] for name in pair.layout.credited}
        entropies = {name: entropy_of(site.fn, site.value) for name, site in drawn.items()}
        return guide, {name: site.term() for name, site in now.model.items()}, entropies

    def inspect() -> None:
        first = run()
        latent = {name: site for name, site in first.guide.items() if not site.is_observed}
        # A flow may have no inverse: it is drawn again, which goes through what it depends on.
        draws = {name: site.value for name, site in latent.items() if has_inverse(site)}
        densities, model, entropies = eval_provenance(log_probs, **draws)
        guide = {name: frozenset().union(*both) for name, both in densities.items()}
        unseen = any(guide[name] for name in latent.keys() - draws.keys())
        chained = frozenset(n for n, sources in entropies.items() if sources and n in sources)
        found.append(None if unseen else _influence(first, pair.layout, guide, model, chained))

    jax.eval_shape(inspect)
    return found[0]


def _influence(
    run: Run,
    layout: Layout,
    guide: Mapping[str, frozenset[str]],
    model: Mapping[str, frozenset[str]],
    chained: frozenset[str],
) -> Influence | None:
    """From the draws that terms are computed from without another draw in between."""
    above = _all_above({name: guide[name] - {name} for name in run.guide})

    def draws_of(site: Site, direct: frozenset[str]) -> Draws:
        """Its own draw among them, even where its log-density is the same for all."""
        known = direct | ({site.name} & above.keys())
        known = known.union(*(above[name] for name in known))
        return _draws_in_cells(site, known, above, run.guide, layout)

    influence = Influence(
        {name: draws_of(run.guide[name], draws) for name, draws in guide.items()},
        {name: draws_of(run.model[name], draws) for name, draws in model.items()},
        chained,
    )
    return _if_needed(influence, run, layout)


def _all_above(direct: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Of each draw, all that it is computed from; sites of a scan may lead to one another."""
    above = dict(direct)
    for _ in direct:  # the longest way passes each draw once
        above = {name: found.union(*(above[n] for n in found)) for name, found in above.items()}
    return above


def _draws_in_cells(
    site: Site,
    draws: frozenset[str],
    above: Mapping[str, frozenset[str]],
    latent: Mapping[str, Site],
    layout: Layout,
) -> Draws:
    """Of the credited ones among draws that a term is computed from: in which dims, cell by cell.

    Args:
        site: The term's.
        draws: All that it is computed from.
        above: Of each latent site, the draws that it is computed from.
        latent: The guide's sites.
        layout: How the sites lie.
    """

    def dims_of(name: str) -> frozenset[int]:
        on_the_way = [n for n in draws if n != site.name and name in above[n]]
        sites = [site, latent[name], *(latent[n] for n in on_the_way)]
        shared = frozenset.intersection(*map(_plates, sites))
        return frozenset(dim for plate, dim in shared if plate not in layout.mixed)

    credited = [name for name in layout.credited if name in draws]
    return {name: dims_of(name) for name in credited}


def _if_needed(influence: Influence, run: Run, layout: Layout) -> Influence | None:
    """None if each draw of a datum influences all of it."""
    credited = frozenset(layout.credited)
    owned = [influence.guide[n] for n, s in run.guide.items() if layout.owns(s)]
    owned += [influence.model[n] for n, s in run.model.items() if layout.owns(s)]
    nested = any(len(run.guide[name].plates) > len(layout.plates) for name in credited)
    return influence if nested or any(draws.keys() != credited for draws in owned) else None


def log_draw(site: Site) -> Array:
    """Log-probability of a site's draw, whose gradient is the score."""
    return draw_log_prob(site, site.log_prob())


def credit_reader(
    influence: Influence, log_draw: Callable[[Site], Array], *, with_entropy: bool
) -> Reader:
    """A reader of records: of each credited site its `Credit`, by name.

    Args:
        influence: Which draws each term is computed from.
        log_draw: From a site to what its credit is multiplied by.
        with_entropy: Whether entropies are in closed form, where all sites have one.
    """

    def read(run: Run, layout: Layout, num_particles: int) -> dict[str, Credit]:
        terms = _terms(run, layout, influence, with_entropy)
        credits = {}
        for name in layout.credited:
            site = run.guide[name]
            zeros = jnp.zeros((1,) * layout.nesting)
            sums = {kind: zeros for kind in ("likelihood", "rate")}
            for kind, values, dims, draws in terms:
                if name in draws:
                    outside = tuple(dims - draws[name])
                    part = values.sum(outside, keepdims=True) if outside else values
                    sums[kind] = sums[kind] + part
            drawn = in_batch_dims(site, log_draw(site), layout.nesting)
            found = drawn, sums["likelihood"], sums["rate"]
            credits[name] = Credit(*(_data_first(values, layout) for values in found))
        return credits

    return read


_Term = tuple[str, Array, frozenset[int], Draws]  # kind, values, dims of plates, draws


def _terms(run: Run, layout: Layout, influence: Influence, with_entropy: bool) -> list[_Term]:
    """The terms of the objective that a datum owns, without gradient."""
    sites = [*run.guide.values(), *run.model.values()]
    ledger, terms = Ledger(layout, sites), list[_Term]()

    def add(kind: str, site: Site, values: Array, draws: Draws) -> None:
        if layout.owns(site) and draws:
            scale = 1.0 if ledger.is_common else site.scale / ledger.common
            scaled = site.scaled(jax.lax.stop_gradient(values), scale)
            terms.append((kind, in_batch_dims(site, scaled, layout.nesting), _dims(site), draws))

    drawn = {name: run.guide[name] for name in layout.credited}
    entropies = {n: entropy_of(s.fn, s.value) if with_entropy else None for n, s in drawn.items()}
    in_closed_form = all(entropy is not None for entropy in entropies.values())
    for name, site in run.guide.items():
        entropy, draws = entropies.get(name), influence.guide[name]
        if in_closed_form and entropy is not None:
            itself = set() if name in influence.chained else {name}
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


def _data_first(values: Array, layout: Layout) -> Array:
    """The plates of a datum first, all others behind."""
    places = [values.ndim + dim for dim in layout.dims]
    return jnp.moveaxis(values, places, list(range(len(places))))
