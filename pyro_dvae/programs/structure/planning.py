"""How the programs of a call are run: found out once for calls that look alike, checked in each.

A plain run tells how the sites lie, a trial whether they take a particle axis. Both hold for calls
whose arguments have the same shapes, as long as the sites stay what they were: each run is compared
with the plan, and a plan that is out of date is made anew. Where sites still differ, they depend on
the draws, and the programs run one particle at a time.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from pyro_dvae.programs.sites import Layout, Pair, StructureError
from pyro_dvae.programs.structure.broadcasting import takes_particles
from pyro_dvae.programs.structure.layout import find_layout

__all__ = ["Plans"]

_MOST_PLANS = 256  # of calls of different shapes that are remembered

T = TypeVar("T")


class Plans:
    """What is known of the programs that were run last.

    Args:
        vectorize: Whether to run programs once with a particle axis if they can take it.
        warn: Whether to say that they cannot.
        find: From a pair to its layout and structure.
        inspect: From a pair to its notes.
    """

    def __init__(
        self,
        *,
        vectorize: bool = True,
        warn: bool = True,
        find: Callable[[Pair], tuple[Layout, tuple]] = find_layout,
        inspect: Callable[[Pair], Any] = lambda pair: None,
    ) -> None:
        self.vectorize, self.warn, self.find, self.inspect = vectorize, warn, find, inspect
        self._programs: tuple[Any, Any] | None = None
        self._plans: dict[Any, Pair] = {}
        self._has_warned = False

    def run(self, pair: Pair, evaluate: Callable[[Pair], T]) -> T:
        """Evaluate programs, with their layout and how they are run.

        Args:
            pair: Model, guide and arguments.
            evaluate: Runs them, and raises `StructureError` where they are not as planned.
        """
        if self._programs is None or self._programs != (pair.model, pair.guide):
            self._programs, self._plans = (pair.model, pair.guide), {}
            self._has_warned = False
        key = _looks(pair.args), _looks(pair.kwargs)
        known = self._plans.get(key)
        if known is not None:
            try:
                return evaluate(known._replace(args=pair.args, kwargs=pair.kwargs))
            except Exception:  # the plan may be out of date; if it is not, the next run says so
                pass
        pair = self._plan(pair)
        try:
            result = evaluate(pair)
        except StructureError:
            pair = pair._replace(structure=None, vectorize=False)
            result = evaluate(pair)
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[key] = pair._replace(args=(), kwargs={})
        return result

    def _plan(self, pair: Pair) -> Pair:
        layout, structure = self.find(pair)
        pair = pair._replace(layout=layout, structure=structure)
        pair = pair._replace(notes=self.inspect(pair))
        if not self.vectorize:
            return pair._replace(vectorize=False)
        takes = takes_particles(pair, warn=self.warn and not self._has_warned)
        self._has_warned = self._has_warned or not takes
        return pair._replace(vectorize=takes)


def _looks(value: Any) -> Any:
    """What an argument looks like: shapes, types, and the few values that choose a branch."""
    if isinstance(value, Tensor | np.ndarray):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return tuple((key, _looks(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_looks, value))
    return value if value is None or isinstance(value, bool | str) else type(value)
