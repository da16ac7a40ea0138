"""How the programs of a call are run: found out once for calls that look alike.

An abstract run tells how the sites lie. That holds for calls whose arguments have the same
structure, shapes and types, and the same values where these are no arrays: as JAX compiles them
once.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jaxtyping import Array
from numpyro.handlers import substitute

from numpyro_dvae.programs.sites import Layout, Pair
from numpyro_dvae.programs.structure.asking import explained
from numpyro_dvae.programs.structure.layout import find_layout

__all__ = ["Plans"]

_MOST_PLANS = 256  # of calls of different shapes that are remembered

T = TypeVar("T")


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
        self._programs: tuple[Any, Any] | None = None
        self._plans: dict[Any, tuple[Layout, Any]] = {}

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
        programs, key = (pair.model, pair.guide), (_looks(pair.args), _looks(pair.kwargs))
        if self._programs is None or self._programs != programs or len(self._plans) > _MOST_PLANS:
            self._programs, self._plans = programs, {}
        model, guide = (substitute(program, data=dict(params)) for program in programs)
        pair = pair._replace(model=model, guide=guide, vectorize=self.vectorize)
        if key not in self._plans:
            self._plans[key] = self._plan(rng_key, pair)
        layout, notes = self._plans[key]
        return evaluate(rng_key, pair._replace(layout=layout, notes=notes))

    @explained()
    def _plan(self, rng_key: Array, pair: Pair) -> tuple[Layout, Any]:
        layout = self.find(rng_key, pair)
        return layout, self.inspect(rng_key, pair._replace(layout=layout))


def _looks(value: Any) -> Any:
    """What an argument looks like: its structure, shapes and types, and values that are static."""
    leaves, structure = jax.tree.flatten(value)
    return structure, tuple(map(_looks_of_leaf, leaves))


def _looks_of_leaf(leaf: Any) -> Any:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    try:
        hash(leaf)
    except TypeError:
        return type(leaf)
    return leaf  # it may choose a branch
