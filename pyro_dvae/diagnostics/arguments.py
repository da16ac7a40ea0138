"""Which argument of a program holds what a site observes, and programs called with other data.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["find_arguments", "replaced"]

TreePath = tuple[Any, ...]  # keys and positions that lead to an array in a tree of arguments


def find_arguments(arrays: Any, observed: Mapping[str, np.ndarray]) -> dict[str, TreePath]:
    """TreePath of the array that each site observes, by its values.

    Raises:
        ValueError: If a site observes none of the arrays as it is.
    """
    leaves, places = list(_leaves(arrays, ())), {}
    for name, values in observed.items():
        flat = np.ravel(values)
        paths = [path for path, leaf in leaves if np.array_equal(np.ravel(leaf), flat)]
        if not paths:
            raise ValueError(
                f"site '{name}' observes none of the arguments as it is, so that simulated data "
                "cannot take its place. Give the model the observations as an argument, and let it "
                "compute with that alone."
            )
        places[name] = paths[0]
    return places


def replaced(tree: Any, path: TreePath, change: Callable[[Any], Any]) -> Any:
    """A copy of a tree of tuples, lists and dicts with one leaf changed."""
    if not path:
        return change(tree)
    key, below = path[0], path[1:]
    if isinstance(tree, Mapping):
        return {**tree, key: replaced(tree[key], below, change)}
    changed = [replaced(leaf, below, change) if i == key else leaf for i, leaf in enumerate(tree)]
    return type(tree)(changed)


def _leaves(tree: Any, path: TreePath) -> Iterator[tuple[TreePath, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key, leaf in tree.items():
            yield from _leaves(leaf, (*path, key))
    elif isinstance(tree, tuple | list):
        for i, leaf in enumerate(tree):
            yield from _leaves(leaf, (*path, i))
    elif hasattr(tree, "shape"):
        yield path, np.asarray(tree.detach().cpu() if hasattr(tree, "detach") else tree)
