"""How the programs of a call are run, remembered for calls like it.

`Plans` finds out how the programs of a call are run, once for calls that look alike. A plain run
tells how the sites lie, a trial whether they take a particle axis. Both hold for calls whose
arguments have the same shapes, and for networks that train, or do not, as they did then, as long as
the sites stay what they were: each run is compared with the plan, and a plan that is out of date is
made anew. So is one of programs that go another way than they are known to go, by the operations of
each run, whatever had them branch. Where sites still differ, they depend on the draws, and the
programs run one particle at a time.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

from pyro_dvae.programs.settings import settings_of
from pyro_dvae.programs.sites import Layout, Pair, StructureError, same_programs
from pyro_dvae.programs.structure.broadcasting import takes_particles
from pyro_dvae.programs.structure.layout import find_layout
from pyro_dvae.programs.structure.looking import (
    Path,
    is_ours,
    modules_noted,
    numbers_within,
    uncompiled,
)
from pyro_dvae.programs.structure.plain import made_of

__all__ = ["Plans", "looks"]

_MOST_PLANS = 256  # of calls of different shapes that are remembered
_ENOUGH = 4  # numbers with a plan each, and ways in turn that need no other, before all do
T = TypeVar("T")


class _Plan(NamedTuple):
    """How programs are run, which of their networks trained then, and the way that they went."""

    pair: Pair
    modes: Mapping[nn.Module, bool]
    numbers: tuple  # among the arguments, and settings
    path: int

    @property
    def how(self) -> tuple:
        """What a run goes by."""
        return self.pair.layout, self.pair.vectorize, self.pair.structure

    @property
    def has_one_way(self) -> bool:
        """Whether draws lead no other way."""
        return not self.pair.layout.asked and self.pair.structure is not None


class _Call(NamedTuple):
    """What is asked for."""

    pair: Pair
    numbers: tuple  # among the arguments, and settings
    way: int | None

    def planned_as(self, plan: _Plan) -> Pair:
        """The pair as the plan wants it run, with the arguments of this call."""
        return plan.pair._replace(args=self.pair.args, kwargs=self.pair.kwargs)


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
        self._programs: tuple[Any, ...] = ()
        self._plans: dict[Any, list[_Plan]] = {}
        self._modules: dict[nn.Module, bool] = {}  # of the last plan
        self._gone: set[tuple] = set()  # made of what asks no draw, calls like which, and the way
        self._has_warned, self._in_vain = False, 0

    def run(self, pair: Pair, evaluate: Callable[[Pair], T], way: int | None = None) -> T:
        """Evaluate programs, with their layout and how they are run.

        Args:
            pair: Model, guide and arguments.
            evaluate: Runs them, and raises `StructureError` where they are not as planned.
            way: That a run of them went, where `evaluate` runs none.
        """
        if not same_programs(self._programs, (pair.model, pair.guide)):
            self._programs, self._plans = (pair.model, pair.guide), {}
            self._modules, self._has_warned, self._in_vain = {}, False, 0
            self._gone = set()
        given = [v for v in (*pair.args, *pair.kwargs.values()) if not isinstance(v, Tensor)]
        around = settings_of(pair.model, pair.guide, *given)
        call = _Call(pair, (*numbers_within((pair.args, pair.kwargs)), *around), way)
        if (known := self._known(call)) is not None:
            result, planned = self._as_known(call, known, evaluate)
            return result if planned is None else self._anew(call, planned, evaluate)
        return self._anew(call, self._plan(pair), evaluate)

    def _as_known(
        self, call: _Call, known: _Plan, evaluate: Callable[[Pair], T]
    ) -> tuple[Any, Pair | None]:
        """What programs evaluate to as a plan has them, or another plan if that is not theirs."""
        is_open = call.way is None and known.has_one_way and self._in_vain < _ENOUGH
        made = made_of(call.pair) if is_open else None
        gone = made, self._key(call), known.path
        path = Path(is_open and gone not in self._gone)
        pair = call.planned_as(known)._replace(watch=path)
        try:
            result = evaluate(pair)
        except Exception as error:  # the plan may be out of date
            planned = self._plan_anew(call.pair, pair, error)
            if planned is None:
                raise
            return None, planned
        if not path.is_noted or path.taken == known.path:
            if path.is_noted and made is not None:
                if len(self._gone) >= _MOST_PLANS:
                    self._gone.clear()
                self._gone.add(gone)
            return result, None
        plans = self._plans[self._key(call)]
        if any((*known.how, path.taken) == (*p.how, p.path) for p in plans):
            return result, None
        of_way = [plan for plan in plans if plan.path == path.taken]
        if of_way:
            return None, call.planned_as(of_way[-1])
        planned = self._plan(call.pair)
        if self._keep(call, planned, path).how != known.how:
            return None, planned
        self._in_vain += 1
        return result, None

    def _anew(self, call: _Call, planned: Pair, evaluate: Callable[[Pair], T]) -> T:
        self._in_vain, path = 0, Path(call.way is None)
        planned = planned._replace(watch=path)
        try:
            result = evaluate(planned)
        except StructureError:
            path = Path()
            planned = planned._replace(structure=None, vectorize=False, watch=path)
            result = evaluate(planned)
        self._keep(call, planned, path)
        return result

    def _keep(self, call: _Call, planned: Pair, path: Path) -> _Plan:
        if sum(map(len, self._plans.values())) >= _MOST_PLANS:
            self._plans.clear()
        bare = planned._replace(args=(), kwargs={}, watch=nullcontext())
        plan = _Plan(bare, self._modules, call.numbers, path.taken)
        self._plans.setdefault(self._key(call), []).append(plan)  # networks are known by now
        return plan

    def _known(self, call: _Call) -> _Plan | None:
        """The plan of a call like this one, or one to be tried.

        A number may choose a branch, or count the steps: once there are several, the plan of the
        last one is tried. A plan that was made before any run is of the way of the first one.
        """
        key = self._key(call)
        if call.way is not None and key not in self._plans:
            before = self._key(call._replace(way=None))
            if before in self._plans:
                self._plans[key] = self._plans.pop(before)
        plans = self._plans.get(key, [])
        same = [plan for plan in plans if plan.numbers == call.numbers]
        if not same and len({plan.numbers for plan in plans}) >= _ENOUGH:
            same = plans
        if not same or any(m.training != mode for m, mode in same[-1].modes.items()):
            return None
        return same[-1]

    def _key(self, call: _Call) -> tuple:
        """What a call looks like, and which networks train: batch normalisation mixes then."""
        modes = frozenset(module.training for module in self._modules)
        return looks(call.pair.args), looks(call.pair.kwargs), modes, call.way

    def _plan(self, pair: Pair) -> Pair:
        with uncompiled(), modules_noted() as self._modules:
            layout, structure = self.find(pair)
            pair = pair._replace(layout=layout, structure=structure)
            pair = pair._replace(notes=self.inspect(pair))
            if not self.vectorize:
                return pair._replace(vectorize=False)
            takes = takes_particles(pair, warn=self.warn and not self._has_warned)
            self._has_warned = self._has_warned or not takes
            return pair._replace(vectorize=takes)

    def _plan_anew(self, pair: Pair, known: Pair, error: Exception) -> Pair | None:
        """Another plan than the one that ended in an error; None if that is the programs' own.

        Raises:
            ValueError: If the programs are refused, as they are now.
        """
        is_stale = isinstance(error, StructureError)
        if known.structure is None and not is_stale:  # then nothing is planned that could be
            return None
        try:
            planned = self._plan(pair)
        except Exception as refusal:
            if isinstance(refusal, ValueError) and is_ours(refusal):
                raise refusal from error
            return None
        as_before = known.layout, known.vectorize, known.structure
        is_new = (planned.layout, planned.vectorize, planned.structure) != as_before
        return planned if is_stale or is_new else None


def looks(value: Any) -> Any:
    """What an argument looks like: shapes, types, and the few values that choose a branch."""
    if isinstance(value, Tensor | np.ndarray):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return tuple((key, looks(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(looks, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return type(value), *map(looks, fields)
    return value if value is None or isinstance(value, bool | str | Enum) else type(value)
