"""Batches taken apart for compiled programs: arrays are arguments, all else is constant.

A new value of a constant, such as a number or None, compiles anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from numpyro_dvae.fit.data import Batch

__all__ = ["Template", "explained", "split"]

_ASKING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


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


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a compiled program asks for a value, and JAX says that it is traced.

    Raises:
        ValueError: In place of JAX's error.
    """
    try:
        yield
    except _ASKING as error:
        raise ValueError(
            "model or guide asks for the value of an array, by `if`, bool(), int(), an index or "
            "NumPy; it has none yet, as programs are compiled. Compute with jax.numpy (jnp.where "
            "for if), or pass an argument that is a setting as a number of Python (True for "
            f"jnp.array(True)), which is constant. JAX says: {str(error).splitlines()[0]}"
        ) from error
