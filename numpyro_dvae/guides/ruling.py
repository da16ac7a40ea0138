"""What the data rule out: values of latents from which they could never have come.

An animal that was caught is alive, and was at all times before if the dead stay dead. A guide that
learns from draws learns this slowly: the surer it is, the rarer is the draw that tells, and each
costs all that a clamp gives an impossible state, 16 or 87 nats. So a guide starts there.

A *factor* is a site of the model, observed or not, whose latents have few joint states: all of
them are tried, and those in which the site never takes its value are impossible. A value of a
latent is possible if states of its neighbours make all of its factors so: arc consistency [1],
which finds all that there is to find in chains and trees, and nowhere rules out too much.

Parameters of the model are learnt, and what they alone rule out at the start, as a scale that is
too short for a datum, may become possible. So each state is tried at other parameters, too, near
and far: what is impossible at all of them is so by the model's making. So are continuous
latents: they are drawn from the model, and moved up and down.

References:
    [1] Mackworth. Consistency in networks of relations. Artificial Intelligence, 1977.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool
from numpyro.distributions import constraints
from numpyro.distributions.distribution import MaskedDistribution

from numpyro_dvae.guides.families import Latent, is_ordered
from numpyro_dvae.guides.joint_states import (
    LARGEST_TABLE,
    choose_states,
    codes_of_states,
    num_states,
    row_of,
    value_of_state,
)
from numpyro_dvae.guides.places import reaches
from numpyro_dvae.programs.densities import entry_mask
from numpyro_dvae.programs.handlers.elsewhere import Elsewhere, draws_elsewhere
from numpyro_dvae.programs.handlers.swapping import given_run, is_discrete, terms_and_draws
from numpyro_dvae.programs.readers.impossible import excludes
from numpyro_dvae.programs.sites import Site

__all__ = ["possible_values"]

# Seeds and spreads of the parameters that are tried: first those of the start.
_PLACES = ((0, 0.0), (1, 1.0), (1, -1.0), (2, 6.0), (2, -6.0))
_FURTHER = ((2, 1.0), (2, -1.0), (1, 6.0), (1, -6.0))  # where there are continuous latents, too
_MOST_NUMBERS = 1024  # of a count that are tried


class _Factor(NamedTuple):
    """Which joint states of some latents a site of the model leaves possible."""

    scope: tuple[str, ...]
    possible: Bool[Array, "*states_batch"]  # an axis for each latent, then the site's batch dims


def possible_values(
    rng_key: Array,
    model: Callable,
    args: tuple,
    kwargs: dict,
    latents: Mapping[str, Latent],
    rows: Mapping[str, Array],
) -> dict[str, Bool[Array, "rows *batch_cells V"]]:
    """By latent its possible values, for each joint state of its parents that has a row.

    Latents of which the data rule nothing out may be missing. Where data are impossible, whatever
    the latents are, all values are possible.

    Args:
        rng_key: Key of the runs.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latents: The discrete latents, in the order of the model.
        rows: Rows of plates that the minibatch at hand holds.
    """
    moved = Elsewhere(*map(jnp.array, _PLACES[0]))
    with moved:
        sites, _ = given_run(rng_key, model, args, kwargs, {}, rows)
    if not any(_may_exclude(site) for site in sites.values()):
        return {}
    draws = terms_and_draws(rng_key, model, args, kwargs)
    scopes = _scopes(draws, sites, latents)
    if not any(_may_exclude(sites[name]) for name in scopes):
        return {}
    others = _others(draws, scopes)
    places: Sequence[tuple[int, float]] = _PLACES if moved.num_moved else _PLACES[:1]
    if others:
        places = (*_PLACES, *_FURTHER)
    beside = partial(draws_elsewhere, model, others)
    factors = _factors(rng_key, beside, args, kwargs, latents, rows, scopes, places)
    shapes = {n: tuple(sites[n].fn.batch_shape) for f in factors for n in f.scope}
    domains = _domains(factors, shapes)
    return {name: _by_row(latents[name], latents, factors, domains) for name in domains}


def _scopes(
    draws: Mapping[str, frozenset[str]], sites: Mapping[str, Site], latents: Mapping[str, Latent]
) -> dict[str, tuple[str, ...]]:
    """The latents of each factor."""
    found = {}
    for name, site in sites.items():
        scope = tuple(latent for latent in latents if latent in draws.get(name, ()))
        is_open = site.is_observed or is_discrete(site)
        if not scope or not is_open or _is_masked_within(site.fn):
            continue
        few = _are_few([latents[latent] for latent in scope])
        if few and all(reaches(latents[latent], site.plates) for latent in scope):
            found[name] = scope
    return found


def _others(
    draws: Mapping[str, frozenset[str]], scopes: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """The continuous latents that factors depend on, too."""
    return sorted({other for name, scope in scopes.items() for other in draws[name] - set(scope)})


def _are_few(scope: Sequence[Latent]) -> bool:
    """Whether all joint states can be tried: of a count alone, as a population's size, many can."""
    states = math.prod(num_states(latent) for latent in scope)
    is_count = len(scope) == 1 and is_ordered(scope[0]) and states == scope[0].num_values
    return states <= (_MOST_NUMBERS if is_count else LARGEST_TABLE)


def _is_masked_within(fn: Any) -> bool:
    """Whether a mask silences some cells of an event, and not all."""
    inside = False
    while hasattr(fn, "base_dist"):
        if inside and isinstance(fn, MaskedDistribution):
            return True
        inside = inside or bool(getattr(fn, "reinterpreted_batch_ndims", 0))
        fn = fn.base_dist
    return False


def _may_exclude(site: Site) -> bool:
    """Whether an observed site has values that it can never take."""
    if not site.is_observed:
        return False
    support = getattr(site.base, "support", None)
    return isinstance(site.base, dist.Unit) or (
        getattr(support, "base_constraint", support) is not constraints.real
    )


def _factors(
    rng_key: Array,
    model_at: Callable[[Array, Array], Callable],
    args: tuple,
    kwargs: dict,
    latents: Mapping[str, Latent],
    rows: Mapping[str, Array],
    scopes: Mapping[str, tuple[str, ...]],
    places: Sequence[tuple[int, float]],
) -> list[_Factor]:
    """The factors, in the order of the model: all of their states are tried."""
    states = choose_states(list(scopes.values()), latents)
    num_runs = len(next(iter(states.values())))
    values = {
        name: jnp.stack([value_of_state(latents[name], int(state)) for state in column])
        for name, column in states.items()
    }

    def run(values: Mapping[str, Array], seed: Array, spread: Array) -> dict[str, Array]:
        with Elsewhere(seed, spread):
            sites, _ = given_run(rng_key, model_at(seed, spread), args, kwargs, values, rows)
        return {name: _is_possible(sites[name], spread) for name in scopes}

    every = jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, 0))
    at_each = jax.jit(every)(values, *(jnp.array(part) for part in zip(*places, strict=True)))
    tried, found = {name: table.any(0) for name, table in at_each.items()}, []
    chosen = [{n: int(column[r]) for n, column in states.items()} for r in range(num_runs)]
    for name, scope in scopes.items():
        met = {row_of(scope, latents, each): r for r, each in enumerate(chosen)}
        table = tried[name][jnp.array([met[row] for row in sorted(met)])]
        sizes = [num_states(latents[latent]) for latent in scope]
        found.append(_Factor(scope, table.reshape(*sizes, *table.shape[1:])))
    return found


def _is_possible(site: Site, spread: Array) -> Bool[Array, "*batch"]:
    """Where a site may have its value, or counts nothing; at parameters elsewhere, surely so."""
    if is_discrete(site):
        never = excludes(site.fn, site.value, least=-math.inf)
    else:
        never = site.log_prob() == -jnp.inf
    counts = entry_mask(site, 0) & (jnp.asarray(site.scale) > 0)
    possible = jnp.broadcast_to(~(never & counts), site.fn.batch_shape)
    return possible & ((spread == 0) | ~jnp.isnan(site.log_prob()))


# ------------------------------------------------------------------------------------- consistency


def _domains(
    factors: Sequence[_Factor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Bool[Array, "S *batch"]]:
    """The possible states of each latent: against the order of the model, and along it."""
    domains: dict[str, Array] = {}
    for factor in factors:
        for axis, name in enumerate(factor.scope):
            size = factor.possible.shape[axis]
            domains[name] = jnp.ones((size, *shapes[name]), bool)
    for factor in [*reversed(factors), *factors]:
        for axis, name in enumerate(factor.scope):
            table = jnp.moveaxis(_supported(factor, domains, [name]), axis, 0)
            table = table.reshape(table.shape[0], *table.shape[len(factor.scope) :])
            domains[name] = domains[name] & _everywhere(table, 1, shapes[name])
    return {name: domain | ~domain.any(0) for name, domain in domains.items()}


def _supported(factor: _Factor, domains: Mapping[str, Array], kept: Sequence[str]) -> Array:
    """Which states of the kept latents are possible in some states of the others."""
    table, num_latents = factor.possible, len(factor.scope)
    for axis, name in enumerate(factor.scope):
        if name not in kept:
            size, *batch = domains[name].shape
            missing = table.ndim - num_latents - len(batch)
            before, after = [1] * axis, [1] * (num_latents - 1 - axis + missing)
            other = domains[name].reshape(*before, size, *after, *batch)
            table = (table & other).any(axis, keepdims=True)
    return table


def _everywhere(table: Array, num_latents: int, shape: Sequence[int]) -> Array:
    """What is possible in all cells of a factor that a place of a latent owns."""
    missing = table.ndim - num_latents - len(shape)
    for _ in range(missing):
        table = table.all(num_latents)
    for dim, size in enumerate(shape, num_latents):
        if size == 1:
            table = table.all(dim, keepdims=True)
    return table


def _by_row(
    latent: Latent,
    latents: Mapping[str, Latent],
    factors: Sequence[_Factor],
    domains: Mapping[str, Array],
) -> Bool[Array, "rows *batch_cells V"]:
    """The possible values given each joint state of the parents."""
    scope = (*(latent.parents if latent.table else ()), latent.name)
    sizes = [num_states(latents[name]) for name in scope]
    own, shape = domains[latent.name], domains[latent.name].shape[1:]
    table = jnp.broadcast_to(own, (*sizes, *shape))
    for factor in factors:
        if latent.name in factor.scope:
            table = table & _in_order(factor, domains, scope, shape)
    table = jnp.moveaxis(table.reshape(-1, sizes[-1], *shape), 1, -1)  # (rows, *batch, states)
    codes = codes_of_states(latent)
    hot = codes[..., None] == np.arange(latent.num_values)  # (states, *cells, V)
    cells = hot.reshape(len(hot), -1)
    table = (table[..., None] & cells).any(-2).reshape(*table.shape[:-1], *hot.shape[1:])
    return table | ~table.any(-1, keepdims=True)


def _in_order(
    factor: _Factor,
    domains: Mapping[str, Array],
    scope: Sequence[str],
    shape: Sequence[int],
) -> Array:
    """Which states of these latents a factor supports: an axis for each of them, in this order."""
    table = _supported(factor, domains, scope)
    table = _everywhere(table, len(factor.scope), shape)
    known = [name for name in scope if name in factor.scope]
    batch = table.shape[len(factor.scope) :]
    others = [axis for axis, name in enumerate(factor.scope) if name not in known]
    axes = [factor.scope.index(name) for name in known]
    table = table.transpose(*others, *axes, *range(len(factor.scope), table.ndim))
    each = dict(zip(known, table.shape[len(others) :], strict=False))
    return table.reshape(*(each.get(name, 1) for name in scope), *batch)
