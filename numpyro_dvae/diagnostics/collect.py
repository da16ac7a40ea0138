"""Draw from a trained guide, or list its states, and read what is wanted, block by block.

What is run at once is bounded: draws come in blocks, and rows of the data in batches if asked for.
A block is compiled once, with parameters and data as its arguments.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from numpyro_dvae.diagnostics.arrays import NamedArray
from numpyro_dvae.diagnostics.batches import rows_of
from numpyro_dvae.diagnostics.draws import (
    PRIOR_NAMES,
    RECORD,
    Chunk,
    Draws,
    count_numbers,
    cut_draws,
)
from numpyro_dvae.diagnostics.readings import (
    Pair,
    Readings,
    enumerate_states,
    posterior_sites,
    score_states,
    states_left_out,
)
from numpyro_dvae.diagnostics.reports import CodeUsage
from numpyro_dvae.diagnostics.simulations import prior_sites
from numpyro_dvae.diagnostics.trained import Trained, as_trained
from numpyro_dvae.diagnostics.waiting import waited
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.programs.plans import explained
from numpyro_dvae.programs.record import Particles

__all__ = ["collect", "collect_given_shared", "collect_states", "usage_of_processes"]

T = TypeVar("T")

_OF_DRAWS = ("given", "points", "unmasked", "matters", "auxiliary", "shared_auxiliary")
_OF_STATES = (
    *(n for n in RECORD if n not in _OF_DRAWS),
    *("log_draw", "silenced", "impossible", "counted_impossible"),
)

Record = dict[str, Any]  # log-densities and codes of each draw and datum


@explained()
def collect(
    rng_key: Array,
    result: Any,
    data: tuple,
    num_draws: int,
    wanted: Collection[str],
    *,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    prior: bool = False,
) -> Draws:
    """Draw from the guide and read the sites.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        num_draws: K, draws per datum.
        wanted: What to read of the sites, of `READINGS`.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.
        prior: Also draw from the model alone: readings "prior" and "prior_predictive".
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1; got {num_draws}.")
    trained = as_trained(result, params)
    args = trained.arguments(data)
    cut, pair, run = rows_of(rng_key, trained, args, batch_size), None, None
    draws = Draws(num_draws, cut)
    for i, rows in enumerate(waited(cut.parts, "batches")):
        part = cut.of(args, rows)
        if pair is None or run is None:
            pair = trained.pair(rng_key, part)
            run = _compiled(trained, pair, frozenset(wanted), prior)
        _fill(draws, rows, pair, run, jax.random.fold_in(rng_key, i), trained, part)
    return draws


@explained()
def collect_given_shared(
    rng_key: Array,
    result: Any,
    data: tuple,
    outer: Draws,
    num_shared: int,
    num_draws: int,
    summarize: Callable[[Draws, int], T],
    *,
    params: Mapping[str, Any] | None = None,
) -> list[T]:
    """Draw a datum's own latents K times at each of some draws of what the data share.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        outer: Draws of all latents, of the same programs.
        num_shared: How many of these, from the first on.
        num_draws: K, draws per datum at each of them.
        summarize: What to keep of the K draws at each, from the draws, with readings "outside",
            "latent" and, if `outer` has it, "summed", and the number of what is given.
        params: Parameters by name, in place of those of `result`.
    """
    wanted = ("outside", "latent", *(["summed"] if outer["summed"] else []))
    trained = as_trained(result, params)
    args = trained.arguments(data)
    keys = jax.random.split(rng_key, num_shared + 1)
    pair, found = trained.pair(keys[0], args), []
    run = _compiled(trained, pair, frozenset(wanted), False)
    for place, key in enumerate(waited(keys[1:], "draws of what the data share", num_shared)):
        given = {name: np.asarray(site.values[place]) for name, site in outer["given"].items()}
        draws = Draws(num_draws)
        _fill(draws, None, pair, run, key, trained, args, given)
        found.append(summarize(draws, place))
    return found


def _fill(
    draws: Draws,
    rows: slice | None,
    pair: Pair,
    run: Callable,
    rng_key: Array,
    trained: Trained,
    args: tuple,
    given: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Run the pair until the draws of these rows are there."""
    draws.summed_sites = pair.layout.summed
    draws.is_mixed = bool(pair.layout.mixed)
    (arrays, template), params = split(Batch(args, {})), trained.params
    blocks = list(cut_draws(draws.num_draws, count_numbers(args)))
    for i, (some, size) in enumerate(waited(blocks, "blocks of draws")):
        key = jax.random.fold_in(rng_key, i)
        found = jax.device_get(run(key, params, arrays, template, size, dict(given)))
        outside = found[1].get("outside", {})
        names = tuple(name for name, each in outside.items() if each.values.any())
        left_out = {}
        if names:  # of these, states of a datum only if the model may have one of them
            confirm = _compiled_left_out(trained, pair, names)
            left_out = jax.device_get(confirm(key, params, arrays, template, size))
        nothing, plates = np.zeros(found[0]["log_q"].shape[1:], bool), pair.layout.plates
        for place, reading in enumerate(("outside", "outside_silent")):  # the latter with masked
            parts = {n: left_out[n][place] if n in left_out else nothing for n in outside}
            found[1][reading] = {
                name: NamedArray(plates, np.broadcast_to(part, (size, *part.shape)))
                for name, part in parts.items()
            }
        _add(draws, Chunk(some, rows), pair, *found)


@explained()
def collect_states(
    rng_key: Array,
    result: Any,
    data: tuple,
    max_states: int,
    *,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Draws:
    """Score every joint state of a datum's latents, in place of draws; arguments as `collect`'s."""
    trained = as_trained(result, params)
    args = trained.arguments(data)
    draws, cut = None, rows_of(rng_key, trained, args, batch_size)
    for rows in waited(cut.parts, "batches"):
        part = cut.of(args, rows)
        if draws is None:
            pair = trained.pair(rng_key, part)
            states = enumerate_states(rng_key, pair, max_states)
            num_states = max(map(len, states.values()), default=1)
            draws, run = Draws(num_states, cut), _compiled_scores(trained, pair)
        arrays, template = split(Batch(part, {}))
        blocks = list(cut_draws(num_states, count_numbers(part)))
        for chosen, size in waited(blocks, "blocks of states"):
            index = np.minimum(np.arange(chosen.start, chosen.start + size), num_states - 1)
            some = {name: values[index] for name, values in states.items()}
            record = jax.device_get(run(rng_key, trained.params, arrays, template, some))
            draws.add_record(Chunk(chosen, rows), pair.layout.plates, record, pair.notes.shared)
    assert draws is not None
    return draws


def usage_of_processes(usages: Mapping[str, CodeUsage]) -> dict[str, CodeUsage]:
    """The usage of all processes of a run; of this one alone, if counts have no common size."""
    apart = {name for name, usage in usages.items() if usage.is_open or not usage.has_all_codes}
    return {
        name: usage if name in apart else usage._replace(counts=_summed(usage.counts))
        for name, usage in usages.items()
    }


def _summed(counts: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return counts
    return np.asarray(multihost_utils.process_allgather(counts)).sum(0)


def _compiled(
    trained: Trained, pair: Pair, wanted: frozenset[str], prior: bool
) -> Callable[..., tuple[Record, Readings, Readings]]:
    def run(
        rng_key: Array,
        params: Any,
        arrays: tuple[Array, ...],
        template: Template,
        size: int,
        given: dict[str, Array],
    ) -> tuple[Record, Readings, Readings]:
        now = trained.at(pair, params, template.join(arrays))
        posterior_key, prior_key = jax.random.split(rng_key)
        particles, readings = posterior_sites(posterior_key, now, size, wanted, given, weighs=True)
        record = _record_of(particles, RECORD)
        return record, readings, prior_sites(prior_key, now, size) if prior else {}

    return Compiled(run, static=(3, 4))


def _compiled_left_out(
    trained: Trained, pair: Pair, names: tuple[str, ...]
) -> Callable[..., dict[str, tuple[Array, Array]]]:
    def run(
        rng_key: Array, params: Any, arrays: tuple[Array, ...], template: Template, size: int
    ) -> dict[str, tuple[Array, Array]]:
        return states_left_out(
            rng_key, trained.at(pair, params, template.join(arrays)), size, names
        )

    return Compiled(run, static=(3, 4))


def _compiled_scores(trained: Trained, pair: Pair) -> Callable[..., Record]:
    def run(
        rng_key: Array, params: Any, arrays: tuple[Array, ...], template: Template, states: Any
    ) -> Record:
        now = trained.at(pair, params, template.join(arrays))
        return _record_of(score_states(rng_key, now, states), _OF_STATES)

    return Compiled(run, static=(3,))


def _record_of(particles: Particles, names: tuple[str, ...]) -> Record:
    return {n: getattr(particles, n, particles.extras.get(n)) for n in names}


def _add(
    draws: Draws, block: Chunk, pair: Pair, record: Record, readings: Readings, priors: Readings
) -> None:
    notes = pair.notes
    draws.add_record(block, pair.layout.plates, record, notes.shared, notes.alone)
    _add_readings(draws, block, readings, {}, notes.order)
    _add_readings(draws, block, priors, PRIOR_NAMES, notes.order)


def _add_readings(
    draws: Draws,
    block: Chunk,
    readings: Readings,
    names: Mapping[str, str],
    order: tuple[str, ...],
) -> None:
    """Add what was read, in the order of the program; `names` renames readings."""
    places = {name: place for place, name in enumerate(order)}
    for reading, sites in readings.items():
        for name, array in sorted(sites.items(), key=lambda each: places.get(each[0], len(order))):
            values = np.asarray(array.values)
            array = NamedArray(array.dims, values, array.discrete, array.num_codes)
            draws.add(block, names.get(reading, reading), name, array)
