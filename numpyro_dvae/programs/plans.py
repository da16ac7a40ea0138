"""How the programs of a call are run, remembered for calls like it.

`Plans` finds out how the programs of a call are run, once for calls that look alike: an abstract
run tells how the sites lie. That holds for calls whose arguments have the same structure, shapes
and types, and the same values where these are no arrays, as JAX compiles them once; and as long as
the programs go the same way, by the operations of an abstract run, whatever has them branch. A
program that asks NumPy's arrays for their values, which it can where it is not compiled, is looked
at for each.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import substitute

from numpyro_dvae.programs.sites import Layout, Pair, same_programs
from numpyro_dvae.programs.structure.layout import find_layout
from numpyro_dvae.programs.structure.path import path_taken

__all__ = ["Plans", "explained", "looks"]

_MOST_PLANS = 256  # of calls of different shapes that are remembered
T = TypeVar("T")


_ASKING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


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


class Plans:
    """What is known of the programs that were run last.

    Args:
        vectorize: How programs are run over particles: `Pair.vectorize`.
        find: From a key and a pair to its layout.
        inspect: From a key and a pair to its notes.
    """

    def __init__(
        self,
        *,
        vectorize: bool | Callable = True,
        find: Callable[[Array, Pair], Layout] = find_layout,
        inspect: Callable[[Array, Pair], Any] = lambda rng_key, pair: None,
    ) -> None:
        self.vectorize, self.find, self.inspect = vectorize, find, inspect
        self._programs: tuple[Any, ...] = ()
        self._plans: dict[tuple, tuple[Layout, Any] | None] = {}

    def run(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        pair: Pair,
        evaluate: Callable[[Array, Pair], T],
    ) -> T:
        """Evaluate programs, with their layout and how they are run.

        Args:
            rng_key: Key of the abstract run, and of what evaluates.
            params: Parameters and mutable state, to be substituted in the programs.
            pair: Model, guide and arguments, without these.
            evaluate: Runs them.
        """
        programs = pair.model, pair.guide
        if not same_programs(self._programs, programs) or len(self._plans) > _MOST_PLANS:
            self._programs, self._plans = programs, {}
        model, guide = (substitute(program, data=dict(params)) for program in programs)
        pair = pair._replace(model=model, guide=guide, vectorize=self.vectorize)
        with explained():
            key: tuple = looks((pair.args, pair.kwargs)), path_taken(rng_key, pair)
        if key not in self._plans:
            self._plans[key] = self._plan_for_any(rng_key, pair)
        if self._plans[key] is None:
            key = *key, _values((pair.args, pair.kwargs))
            if key not in self._plans:
                self._plans[key] = self._plan(rng_key, pair)
        layout, notes = self._plans[key]  # type: ignore[misc]
        return evaluate(rng_key, pair._replace(layout=layout, notes=notes))

    @explained()
    def _plan(self, rng_key: Array, pair: Pair) -> tuple[Layout, Any]:
        layout = self.find(rng_key, pair)
        return layout, self.inspect(rng_key, pair._replace(layout=layout))

    def _plan_for_any(self, rng_key: Array, pair: Pair) -> tuple[Layout, Any] | None:
        """The plan of arrays that look like these; None if their values may choose a branch."""
        leaves, structure = jax.tree.flatten((pair.args, pair.kwargs))
        arrays = {place: leaf for place, leaf in enumerate(leaves) if _has_numbers(leaf)}
        plans = []

        def plan(arrays: Mapping[int, Array]) -> None:
            given = [arrays.get(place, leaf) for place, leaf in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(structure, given)
            traced = pair._replace(args=args, kwargs=kwargs)
            layout = self.find(rng_key, traced)
            plans.append((layout, self.inspect(rng_key, traced._replace(layout=layout))))

        try:
            jax.eval_shape(plan, arrays)
        except _ASKING:
            return None
        except ValueError as error:  # as a guide's own
            if not isinstance(error.__cause__, _ASKING):
                raise
            return None
        return plans[0]


def looks(value: Any) -> Any:
    """What an argument looks like: its structure, shapes and types, and values that are static."""
    leaves, structure = jax.tree.flatten(value)
    return structure, tuple(map(_looks_of_leaf, leaves))


def _has_numbers(leaf: Any) -> bool:
    is_array = isinstance(leaf, np.ndarray | jax.Array)
    return is_array and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number))


def _values(args: Any) -> tuple[bytes, ...]:
    """Of the arrays that have any yet."""
    arrays = (leaf for leaf in jax.tree.leaves(args) if _has_numbers(leaf))
    return tuple(np.asarray(a).tobytes() for a in arrays if not isinstance(a, jax.core.Tracer))


def _looks_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return type(leaf), leaf.item()
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        fields = (getattr(leaf, field.name) for field in dataclasses.fields(leaf))
        return type(leaf), *map(looks, fields)
    try:
        hash(leaf)
    except TypeError:
        return type(leaf)
    return leaf  # it may choose a branch
