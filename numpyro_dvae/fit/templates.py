"""Batches taken apart for compiled programs: arrays are arguments, all else is constant.

A new value of a constant, such as a number or None, compiles anew.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from numpyro_dvae.fit.data import Batch

__all__ = ["Template", "split"]


class Template(NamedTuple):
    """A batch without its arrays; hashable, so that a compiled program can be known by it."""

    structure: Any
    constants: tuple[tuple[type, Any], ...]  # with types, as 1 == True == 1.0

    def join(self, arrays: Any) -> Batch:
        """Put arrays back where `split` took them."""
        remaining = iter(arrays)
        leaves = [next(remaining) if kind is Array else value for kind, value in self.constants]
        return jax.tree.unflatten(self.structure, leaves)


def split(batch: Batch) -> tuple[tuple[Array, ...], Template]:
    """Take a batch apart into its arrays and the rest."""
    leaves, structure = jax.tree.flatten(batch)
    are_arrays = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    constants = tuple(
        (Array, None) if is_array else (type(leaf), leaf)
        for leaf, is_array in zip(leaves, are_arrays, strict=True)
    )
    arrays = (leaf for leaf, is_array in zip(leaves, are_arrays, strict=True) if is_array)
    return tuple(arrays), Template(structure, constants)
