"""Arguments of a program as trees of tuples, lists and dicts, whose leaves are arrays.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["TreePath", "arrays_in", "replaced", "with_rows"]

TreePath = tuple[Any, ...]  # keys and positions that lead to an array in a tree


def arrays_in(tree: Any, path: TreePath = ()) -> Iterator[tuple[TreePath, Any]]:
    """The arrays of a tree, in order, with the paths to them; `path` is that of the tree."""
    if isinstance(tree, Mapping):
        for key, leaf in tree.items():
            yield from arrays_in(leaf, (*path, key))
    elif isinstance(tree, tuple | list):
        for i, leaf in enumerate(tree):
            yield from arrays_in(leaf, (*path, i))
    elif isinstance(getattr(tree, "shape", None), tuple):  # a distribution's is a method
        yield path, tree


def replaced(tree: Any, path: TreePath, change: Callable[[Any], Any]) -> Any:
    """A copy of a tree with one leaf changed."""
    if not path:
        return change(tree)
    key, below = path[0], path[1:]
    if isinstance(tree, Mapping):
        return {**tree, key: replaced(tree[key], below, change)}
    changed = [replaced(leaf, below, change) if i == key else leaf for i, leaf in enumerate(tree)]
    return type(tree)(*changed) if hasattr(tree, "_fields") else type(tree)(changed)


def with_rows(tree: Any, rows: Any, paths: Sequence[TreePath]) -> Any:
    """A copy of a tree with some rows of the arrays at these places."""
    for path in paths:
        tree = replaced(tree, path, lambda leaf: leaf[rows])
    return tree
