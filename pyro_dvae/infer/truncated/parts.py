"""Arguments of a model cut by rows, so that the sets of many data evolve a part at a time.

Rows are those of the first array among the arguments; every array that has as many is cut along its
first axis, the others, and what is no array, are the same for all parts.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["Part", "check_part", "parts_of"]


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
    leaves, tree = tree_flatten((args, kwargs))
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
        some_args, some_kwargs = tree_unflatten(cut, tree)
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


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 0
