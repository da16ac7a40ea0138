"""Run what a training brought at its trained parameters.

What is run at once is bounded: draws come in pieces, and rows of the data in batches if asked for.
A piece is compiled once, with parameters and data as its arguments.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array
from numpyro.handlers import substitute

from numpyro_dvae.diagnostics.draws import (
    PRIOR_NAMES,
    RECORD,
    Piece,
    Store,
    Variable,
    batches,
    check_data,
    count_values,
    pieces,
)
from numpyro_dvae.diagnostics.readings import (
    Pair,
    Readings,
    constraints_of,
    enumerate_states,
    posterior_sites,
    prepare_pair,
    prior_sites,
    score_states,
)
from numpyro_dvae.fit.data import Batch, as_batch
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.programs.run import Particles
from numpyro_dvae.programs.sites import Layout

Record = dict[str, Any]  # log-densities and codes of each draw and datum


class Trained(NamedTuple):
    """A model and guide, and the values of their parameters."""

    model: Callable
    guide: Callable
    params: Mapping[str, Any]

    def substituted(self, params: Mapping[str, Any] | None = None) -> tuple[Callable, Callable]:
        """The programs with their parameters, or with others."""
        data = self.params if params is None else params
        own = jax.tree.map(lambda leaf: leaf, data)  # a guide's codebook moves when it runs
        return substitute(self.model, data=data), substitute(self.guide, data=own)


def trained(result: Any, params: Mapping[str, Any] | None) -> Trained:
    """Take a `FitResult`, or a (model, guide) pair with parameters."""
    if isinstance(result, tuple) and len(result) == 2 and all(map(callable, result)):
        return Trained(*result, {} if params is None else params)
    if not (hasattr(result, "model") and hasattr(result, "guide")):
        raise ValueError(
            f"`result` must be a FitResult, or a pair (model, guide); got {type(result).__name__}."
        )
    return Trained(result.model, result.guide, result.params if params is None else params)


def prepare(rng_key: Array, programs: Trained, args: tuple) -> Pair:
    """Read the structure of the programs, and see that no parameter is left to chance."""
    model, guide = programs.substituted()
    missing = constraints_of(rng_key, model, guide, args, {}).keys() - programs.params.keys()
    if missing:
        raise ValueError(
            f"`params` lacks {sorted(missing)[:5]}, so that these would be initial values. Pass "
            "the FitResult, or `params=svi.get_params(svi_state)`."
        )
    return prepare_pair(rng_key, model, guide, args, {})


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
) -> Store:
    """Draw from the guide and read the sites, piece by piece.

    With `prior`, also draw from the model alone: readings "prior" and "prior_predictive".
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1; got {num_draws}.")
    programs = trained(result, params)
    args, _ = as_batch(data)
    num_rows = check_data(args, batch_size)
    store, pair, run = Store(num_draws, num_rows), None, None
    for i, rows in enumerate(batches(num_rows, batch_size)):
        cut = args if rows is None else tuple(_cut(value, rows) for value in args)
        if pair is None or run is None:
            pair = prepare(rng_key, programs, cut)
            run = _compiled(programs, pair, frozenset(wanted), prior)
        arrays, static = split(Batch(cut, {}))
        for j, (draws, size) in enumerate(pieces(num_draws, count_values(cut))):
            key = jax.random.fold_in(jax.random.fold_in(rng_key, i), j)
            found = jax.device_get(run(key, programs.params, arrays, static, size))
            _put(store, Piece(draws, rows), pair.layout, *found)
    return store


def collect_states(
    rng_key: Array,
    result: Any,
    data: tuple,
    max_states: int,
    *,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Store:
    """Score every joint state of a datum's latents, in place of draws."""
    programs = trained(result, params)
    args, _ = as_batch(data)
    num_rows = check_data(args, batch_size)
    store: Store | None = None
    for rows in batches(num_rows, batch_size):
        cut = args if rows is None else tuple(_cut(value, rows) for value in args)
        if store is None:
            pair = prepare(rng_key, programs, cut)
            states = enumerate_states(rng_key, pair, max_states)
            num_states = len(next(iter(states.values())))
            store, run = Store(num_states, num_rows), _compiled_scores(programs, pair)
        arrays, static = split(Batch(cut, {}))
        for part, size in pieces(num_states, count_values(cut)):
            index = np.minimum(np.arange(part.start, part.start + size), num_states - 1)
            some = {name: values[index] for name, values in states.items()}
            record = jax.device_get(run(rng_key, programs.params, arrays, static, some))
            _put(store, Piece(part, rows), pair.layout, record, {}, {})
    assert store is not None
    return store


def summed_over_processes(counts: np.ndarray) -> np.ndarray:
    """Counts of all processes of a distributed run; of this one, if it is alone."""
    if jax.process_count() == 1:
        return counts
    return np.asarray(multihost_utils.process_allgather(counts)).sum(0)


def _compiled_scores(programs: Trained, pair: Pair) -> Callable[..., Record]:
    @partial(jax.jit, static_argnums=3)
    def run(
        rng_key: Array, params: Any, arrays: tuple[Array, ...], static: Template, states: Any
    ) -> Record:
        args, _ = static.join(arrays)
        model, guide = programs.substituted(params)
        now = pair._replace(model=model, guide=guide, args=args)
        return _record_of(score_states(rng_key, now, states), (*RECORD, "log_draw"))

    return run


def _record_of(particles: Particles, names: tuple[str, ...] = RECORD) -> Record:
    return {name: getattr(particles, name) for name in names}


def _compiled(
    programs: Trained, pair: Pair, wanted: frozenset[str], prior: bool
) -> Callable[..., tuple[Record, Readings, Readings]]:
    @partial(jax.jit, static_argnums=(3, 4))
    def run(
        rng_key: Array, params: Any, arrays: tuple[Array, ...], static: Template, size: int
    ) -> tuple[Record, Readings, Readings]:
        args, _ = static.join(arrays)
        model, guide = programs.substituted(params)
        now = pair._replace(model=model, guide=guide, args=args)
        posterior_key, prior_key = jax.random.split(rng_key)
        particles, readings = posterior_sites(posterior_key, now, size, wanted)
        record = _record_of(particles)
        return record, readings, prior_sites(prior_key, now, size) if prior else {}

    return run


def _cut(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, jax.Array) and value.ndim else value


def _put(
    store: Store,
    piece: Piece,
    layout: Layout,
    record: Record,
    readings: Readings,
    prior: Readings,
) -> None:
    store.put_record(piece, layout.plates, record)
    _put_readings(store, piece, readings, {})
    _put_readings(store, piece, prior, PRIOR_NAMES)


def _put_readings(store: Store, piece: Piece, readings: Readings, names: Mapping[str, str]) -> None:
    for reading, sites in readings.items():
        for name, found in sites.items():
            values = np.asarray(found.values)
            variable = Variable(found.dims, values, found.discrete, found.num_codes)
            store.put(piece, names.get(reading, reading), name, variable)
