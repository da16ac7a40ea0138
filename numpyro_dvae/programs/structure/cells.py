"""Whether the data keep apart: decided by states that differ from one datum to the next.

A plate declares its cells independent, and what lists the states of a datum relies on it: all data
go through theirs side by side. A program that centres latents by their mean over the data,
normalises a batch or takes a neighbour's draw breaks that promise without a word. So a few states
are run in all cells at once, then mixed, some cells in one and some in another: each cell must have
what it has where all are in its state. What a program raises on the way is its own, and shown.
What is traced has no value: other numbers stand in for it (`stand_ins`).

References:
    [1] Sperner. Ein Satz über Untermengen einer endlichen Menge. Mathematische Zeitschrift, 1928.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from numpyro_dvae.programs.draw import Draw, run_pair
from numpyro_dvae.programs.record import make_record
from numpyro_dvae.programs.sites import Layout, Pair
from numpyro_dvae.programs.structure.axes import GATHERED, axis_of, places_of
from numpyro_dvae.programs.structure.stand_ins import FromZero, with_stand_ins

__all__ = ["check_cells", "with_cells_apart"]

_AS_ONE = "draw the latents of all data under no plate, as one with .to_event(1)"
_KINDS = ("log_likelihood", "log_prior", "log_q_discrete", "log_q_pathwise")


def with_cells_apart(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> Layout:
    """The layout of a pair; if its data do not keep apart, without plates, which is said.

    All data are then one, whose states are those of all together.

    Args:
        rng_key: Key of the runs.
        pair: The programs, with their layout.
        values: Of all discrete latents of a datum, S states in front.
    """
    if _are_apart(rng_key, pair, values):
        return pair.layout
    warnings.warn(
        f"under plate {sorted(pair.layout.plates)} the log-density of a datum changes with the "
        "draws of others (a mean over the data, a batch normalisation, an index from the left), "
        "so the states of all data are listed together: right, but for few data alone. Use a "
        "datum's own draws in its density, or a loss that samples (Reinforce_ELBO, DAPS_ELBO), in "
        "which all their draws share one weight.",
        stacklevel=8,
    )
    return pair.layout._replace(plates=(), dims=(), one_scale=False)


def check_cells(
    rng_key: Array, pair: Pair, values: Mapping[str, Array], way_out: str = _AS_ONE
) -> None:
    """Refuse a pair whose data do not keep apart, and say what to do; arguments as above.

    Raises:
        ValueError: If no datum has a posterior of its own.
    """
    plates = sorted({*pair.layout.plates, *pair.layout.mixed})
    if not _are_apart(rng_key, pair, values):
        raise ValueError(
            f"under plate {plates} the log-density of a datum changes with the "
            "draws of others (a mean over the data, a batch normalisation, an index from the "
            "left), so no datum has a posterior of its own. Use a datum's own draws in its "
            f"density, or {way_out}."
        )


def _are_apart(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> bool:
    """Whether no datum's log-density changes with the draws of others."""
    if pair.layout.mixed:  # that is known already
        return False
    if not pair.layout.plates or not values:
        return True
    count = len(next(iter(values.values())))
    few = np.array(sorted({0, count - 1, count // 3}))
    one = {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in values.items()}
    dims: dict[str, int] = {}

    def by_datum(given: Mapping[str, Array]) -> Float[Array, "4 *plates"]:
        draw = Draw(rng_key, pair.layout, given, expand=True)
        with FromZero():
            run = run_pair(rng_key, pair, draw)
        dims.update({n: site.fn.event_dim for n, site in {**run.model, **run.guide}.items()})
        record = make_record(run, pair.layout, 1)
        return jnp.stack([getattr(record, kind) for kind in _KINDS])

    sizes = jax.eval_shape(by_datum, one).shape[1:]
    if np.prod(sizes) <= 1:
        return True
    some = {n: np.asarray(v)[few] for n, v in values.items()}
    wide = {n: _mixed(v, np.zeros(sizes, int), pair.layout, dims[n]) for n, v in some.items()}
    program = jax.make_jaxpr(by_datum)(wide)
    inputs = [(wide[name].shape, dims[name]) for name in sorted(wide)]  # as the leaves of a tree
    is_apart = _are_seen_apart(program, inputs, sizes, pair.layout)
    if is_apart is not None:
        return is_apart
    compiled = with_stand_ins(program)
    return _keep_apart(lambda v: compiled(v)[0], some, sizes, pair.layout, dims)


def _are_seen_apart(
    program: Any,
    inputs: Sequence[tuple[tuple[int, ...], int]],
    sizes: tuple[int, ...],
    layout: Layout,
) -> bool | None:
    """Whether data keep apart; None if operations alone do not tell, which costs nothing.

    Args:
        program: From values of sites to log-densities by kind and datum.
        inputs: Shapes and event dims of these values.
        sizes: Of the plates that make a datum.
        layout: How the sites lie.
    """
    is_apart: bool | None = True
    for place, (dim, size) in enumerate(zip(layout.dims, sizes, strict=True)):
        places = [math.prod(shape[len(shape) - event + dim + 1 :]) for shape, event in inputs]
        (found,) = places_of(program, places, size)
        shape = (len(_KINDS), *sizes)
        if size == 1 or found is None:
            continue
        if found == GATHERED:
            return False
        if not found or axis_of(found, shape, size) != (1 + place, 1):
            is_apart = None
    return is_apart


def _keep_apart(
    by_datum: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    values: Mapping[str, np.ndarray],
    sizes: tuple[int, ...],
    layout: Layout,
    dims: Mapping[str, int],
) -> bool:
    def mixed(places: np.ndarray) -> np.ndarray:
        return by_datum({n: _mixed(v, places, layout, dims[n]) for n, v in values.items()})

    num_states = len(next(iter(values.values())))
    alone = np.stack([mixed(np.full(sizes, k)) for k in range(num_states)])
    for places in _mixtures(sizes, num_states):
        expected = np.take_along_axis(alone, np.broadcast_to(places, alone.shape[1:])[None], 0)[0]
        most = 1e-6 if alone.dtype == np.float64 else 1e-3
        if not np.allclose(mixed(places), expected, rtol=most, atol=most, equal_nan=True):
            return False
    return True


def _mixtures(sizes: tuple[int, ...], num_states: int) -> Iterator[Integer[np.ndarray, "*plates"]]:
    """Which of the states each cell is in: all in one, one in another, then mixtures.

    Neighbours differ, then pairs of them, then any. Of any two cells one is in the first state and
    the other in the last, and the other way round: those in the first state are other cells, as
    many, for each [1].
    """
    size, last = math.prod(sizes), num_states - 1
    count, rng, one = np.arange(size), np.random.default_rng(0), np.zeros(size, int)
    one[size // 2] = 1
    drawn = rng.integers(num_states, size=size)
    ways = [np.full(size, state) for state in range(num_states)]
    ways += [count % num_states, count // 2 % num_states, drawn]
    ways += [np.where(one, other, state) for state in (0, last) for other in range(num_states)]
    length = next(k for k in itertools.count(2) if math.comb(k, k // 2) >= size)
    for place in range(length):
        taken = itertools.islice(itertools.combinations(range(length), length // 2), size)
        ways.append(np.array([last if place in places else 0 for places in taken]))
    for way in ways:
        yield way.reshape(sizes)


def _mixed(
    value: np.ndarray, places: Integer[np.ndarray, "*plates"], layout: Layout, event_dim: int
) -> np.ndarray:
    """Each cell's value, of those in front, without the axis that they have there."""
    shape = [1] * layout.nesting
    for dim, size in zip(layout.dims, places.shape, strict=True):
        shape[dim] = size
    index = places.reshape(*shape, *[1] * event_dim)
    missing = index.ndim - (value.ndim - 1)
    index = index.reshape(*[1] * -missing, *index.shape)  # steps of a `scan` lead
    value = value.reshape(len(value), *[1] * missing, *value.shape[1:])
    whole = np.broadcast_shapes(value.shape[1:], index.shape)
    index, value = np.broadcast_to(index, whole), np.broadcast_to(value, (len(value), *whole))
    return np.take_along_axis(value, index[None], 0)[0]
