"""Arguments of a model cut by rows, so that the sets of many data evolve a part at a time.

Rows are those of the first array among the arguments; every array that has as many is cut along its
first axis, the others, and what is no array, are the same for all parts.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from numpyro_dvae.infer.truncated.scoring import ModelCall

__all__ = ["Part", "alone", "check_part", "evolve_parts", "parts_of"]


class Part(NamedTuple):
    """Some rows of the arguments."""

    args: tuple
    kwargs: dict
    start: int  # the first of the rows
    num_rows: int  # of all arguments


def parts_of(args: tuple, kwargs: dict, batch_size: int) -> Iterator[Part]:
    """Parts of so many rows; the last one goes back over some of those before it.

    Raises:
        ValueError: If `batch_size` is not positive, or no argument is an array.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more; got {batch_size}.")
    leaves, tree = jax.tree.flatten((args, kwargs))
    lengths = [len(leaf) for leaf in leaves if _has_rows(leaf)]
    if not lengths:
        raise ValueError(
            "`batch_size` cuts the arrays among the model's arguments, but there is none. Leave it "
            "out."
        )
    num_rows = lengths[0]
    size = min(batch_size, num_rows)
    for start in range(0, num_rows, size):
        rows = slice(min(start, num_rows - size), min(start, num_rows - size) + size)
        cut = [leaf[rows] if _has_rows(leaf) and len(leaf) == num_rows else leaf for leaf in leaves]
        some_args, some_kwargs = jax.tree.unflatten(tree, cut)
        yield Part(some_args, some_kwargs, rows.start, num_rows)


def check_part(part: Part, num_rows: int, num_data: int) -> None:
    """Whether the model takes a part for as many data as it has rows.

    Raises:
        ValueError: If not.
    """
    if num_data != num_rows:
        raise ValueError(
            f"`batch_size` cuts the {part.num_rows} rows of the first array among the arguments, "
            f"but the model takes {num_rows} of these for {num_data} data. Put the data first, "
            "with one row for each, or leave `batch_size` out."
        )


def alone(call: ModelCall) -> ModelCall:
    """The call with its data as all that there are, for sets of their own."""
    rows = jnp.arange(len(call.batch.rows))
    return call._replace(batch=call.batch._replace(num_data=len(rows), rows=rows))


def evolve_parts(
    rng_key: Array,
    params: Any,
    parts: Iterator[Part],
    read: Callable[[tuple, dict], ModelCall],
    evolve: Callable[[Array, Any, tuple, dict], tuple[Array, UInt32[Array, "B S W"]]],
) -> UInt32[Array, "N S W"]:
    """The sets of all data, a part after another; compiled once, as parts are of one size.

    Args:
        rng_key: Key of all.
        params: Parameters and mutable state.
        parts: The arguments' parts.
        read: From arguments to what they are about.
        evolve: From key, parameters and arguments to rows and sets.
    """
    first = next(parts)
    batch, num_rows = read(first.args, first.kwargs).batch, len(_arrays_of(first)[0])
    check_part(first, num_rows, len(batch.rows))
    is_all = batch.num_data != num_rows  # the model knows of all data
    step = jax.jit(lambda key, params, arrays: evolve(key, params, *_with_arrays(first, arrays)))
    words = None
    for i, part in enumerate(itertools.chain([first], parts)):
        rows, found = step(jax.random.fold_in(rng_key, i), params, _arrays_of(part))
        if words is None:
            num_data = batch.num_data if is_all else part.num_rows
            words = jnp.zeros((num_data, *found.shape[1:]), found.dtype)
        words = words.at[rows if is_all else part.start + rows].set(found)
    assert words is not None
    return words


def _arrays_of(part: Part) -> list[Any]:
    """The arrays among the arguments, those that are cut and others."""
    return [leaf for leaf in jax.tree.leaves((part.args, part.kwargs)) if _has_rows(leaf)]


def _with_arrays(part: Part, arrays: list[Any]) -> tuple[tuple, dict]:
    """The arguments of a part, with these arrays in place of its own."""
    rest = iter(arrays)
    return jax.tree.map(
        lambda leaf: next(rest) if _has_rows(leaf) else leaf, (part.args, part.kwargs)
    )


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and leaf.ndim > 0
