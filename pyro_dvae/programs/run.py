"""Run guide and model with K particles and return plain arrays, for any Pyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

Shapes: particles lead, left of all plates. Each site is drawn once for all K particles from the
distribution that the plates left, so its parameters are never copied K times. Values in nats.

`Plans` finds out how the programs of a call are run, once for calls that look alike. A plain run
tells how the sites lie, a trial whether they take a particle axis. Both hold for calls whose
arguments have the same shapes, and for networks that train, or do not, as they did then, as long as
the sites stay what they were: each run is compared with the plan, and a plan that is out of date is
made anew. So is one of programs that go another way, where a number among the arguments, a setting
around them, or a value that Python asks for may have them branch. Where sites still differ, they
depend on the draws, and the programs run one particle at a time.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from pyro_dvae.programs.draw import Draw, Sampler, drawn_subsamples, run_pair, run_program
from pyro_dvae.programs.record import Ledger, Particles, Reader, make_record, make_records
from pyro_dvae.programs.settings import settings_of
from pyro_dvae.programs.sites import (
    Layout,
    Pair,
    Rows,
    Run,
    StructureError,
    no_one_list,
    rows_of_plates,
    sample_sites,
    sizes_of,
)
from pyro_dvae.programs.structure.broadcasting import takes_particles
from pyro_dvae.programs.structure.layout import common_layout, find_layout
from pyro_dvae.programs.structure.looking import (
    Path,
    is_ours,
    modules_noted,
    numbers_of,
    statistics_kept,
)

__all__ = [
    "Plans",
    "dream",
    "looks",
    "run_particles",
]


def run_particles(
    pair: Pair,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
    values: Mapping[str, Tensor] | None = None,
    sampler: Sampler | None = None,
    pathwise: bool = True,
) -> Particles:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        pair: The programs, with their layout, and how they are run.
        num_particles: K.
        reads: What to read of the run beside the log-densities, into `Particles.extras`.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast, or one for all K as ``(1, *batch, *event)``; every
            other site is then drawn once for all K. The guide may lack sites that are given.
        sampler: Draws some sites in its own way.
        pathwise: Whether reparameterised draws of a datum keep their gradient.

    Raises:
        StructureError: If the run has other sites than the pair's structure says.
        ValueError: If the shape of a site's log-density is not explained by its plates, or if
            which latents there are depends on those that are given.
    """
    given, layout = values or {}, pair.layout
    options: dict[str, Any] = {"reads": reads, "with_entropy": with_entropy}
    if pair.vectorize:
        num_draws = 1 if given else num_particles
        draws: dict[str, Any] = {"sampler": sampler, "pathwise": pathwise, "expand": pair.expand}
        run = run_pair(pair, Draw(layout, num_draws, given, **draws))
        check_structure(pair, [run], given)
        return make_record(run, layout, num_particles, **options)
    runs, minibatch, rows = list[Run](), poutine.Trace(), dict[str, Rows]()
    for k in range(num_particles):
        one = {name: value[k if len(value) > 1 else 0] for name, value in given.items()}
        draw = Draw(layout, None, one, sampler=sampler, particle=k, pathwise=pathwise)
        # Every particle sees the same subsample; a step is one, whatever the number of runs.
        with poutine.replay(trace=minibatch), statistics_kept(k > 0):
            runs.append(run_pair(pair, draw))
        rows = _check_rows(rows, runs[-1])
        minibatch.nodes |= drawn_subsamples(runs[-1]).nodes  # a particle may lack a plate
    layout = check_structure(pair, runs, given)
    return make_records(runs, layout, **options)


def _check_rows(before: dict[str, Rows], run: Run) -> dict[str, Rows]:
    """Particles see the same rows, so that a plate must have as many in each.

    Returns:
        The rows of the plates before, and of those that this run has, too.
    """
    after = rows_of_plates(run.guide_trace) | rows_of_plates(run.model_trace)
    for name in before.keys() & after.keys():
        sizes = before[name].full_size, after[name].full_size
        taken = len(before[name].indices), len(after[name].indices)
        if sizes[0] != sizes[1] and taken != sizes:
            raise ValueError(
                f"plate '{name}' draws rows of {sizes[0]} in one particle and of {sizes[1]} in "
                "another, so they have no minibatch in common. Let the size of a plate that "
                "subsamples depend on no draw, or let it have all its rows."
            )
    return after | before


def check_structure(pair: Pair, runs: Sequence[Run], values: Mapping[str, Tensor]) -> Layout:
    """Compare the sites of runs with those that the pair's layout is of.

    Returns:
        The pair's layout; where the sites differ from draw to draw, what all runs share.

    Raises:
        StructureError: If the runs have other sites, all of them the same, or if values are given
            and the sites depend on them.
    """
    structures = {run.structure() for run in runs}
    if structures == {pair.structure}:
        return pair.layout
    if values:
        _refuse_values(pair, runs, values)
        if pair.structure is None:  # of a model whose latents are all given
            return pair.layout
    if pair.structure is not None and len(structures) == 1:
        raise StructureError("the programs have other sites than before")
    return common_layout(runs)


def _refuse_values(pair: Pair, runs: Sequence[Run], values: Mapping[str, Tensor]) -> None:
    """Whether each run draws what is given, and nothing else but what the guide draws."""
    for run in runs:
        latent = {name for name, site in run.model.items() if not site.is_observed}
        known = values.keys() | (run.guide.keys() if pair.guide is not None else set())
        odd = sorted(latent - known) or sorted(values.keys() - latent - run.guide.keys())
        drawn = [n for n, s in run.guide.items() if s.is_credited]
        odd = odd or sorted(set(drawn) - values.keys())
        if odd:
            raise no_one_list(f"'{odd[0]}' is not in each run", values)
    for name in values:
        if len({sizes_of(run.guide[name]) for run in runs if name in run.guide}) > 1:
            raise no_one_list(f"'{name}' has other values or sizes in some runs", values)


def dream(
    pair: Pair, replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]
) -> Float[Tensor, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them, as weighed.

    Args:
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    with torch.no_grad(), statistics_kept():
        model_trace = run_program(poutine.uncondition(pair.model), pair.args, pair.kwargs)
    sites = sample_sites(model_trace)
    made = {n: site.value for n, site in sites.items() if site.infer.get("was_observed")}
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = poutine.replay(pair.guide, trace=model_trace)
    with statistics_kept():
        dreamt = sample_sites(run_program(replayed, args, kwargs))
    latent = [site for name, site in dreamt.items() if name in sites]
    ledger = Ledger(pair.layout, 1, latent)
    for site in latent:
        ledger.add("q", site, site.log_prob())
    return ledger.scale() * ledger.total("q")[0]


_MOST_PLANS = 256  # of calls of different shapes that are remembered
_ENOUGH_NUMBERS = 4  # that have a plan each, before others are tried with the last one
T = TypeVar("T")


class _Plan(NamedTuple):
    """How programs are run, which of their networks trained then, and the way that they went."""

    pair: Pair
    modes: Mapping[nn.Module, bool]
    numbers: tuple  # among the arguments, and settings
    path: int

    def may_branch(self, numbers: tuple) -> bool:
        """Whether a call with these numbers may go another way; one that draws say is no other."""
        layout = self.pair.layout
        is_open = not layout.asked and self.pair.structure is not None
        return is_open and (layout.asks or numbers != self.numbers)


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
        self._plans: dict[Any, list[_Plan]] = {}
        self._modules: dict[nn.Module, bool] = {}  # of the last plan
        self._has_warned = False

    def run(self, pair: Pair, evaluate: Callable[[Pair], T]) -> T:
        """Evaluate programs, with their layout and how they are run.

        Args:
            pair: Model, guide and arguments.
            evaluate: Runs them, and raises `StructureError` where they are not as planned.
        """
        if self._programs is None or self._programs != (pair.model, pair.guide):
            self._programs, self._plans = (pair.model, pair.guide), {}
            self._modules, self._has_warned = {}, False
        given = [v for v in (*pair.args, *pair.kwargs.values()) if not isinstance(v, Tensor)]
        settings = settings_of(pair.model, pair.guide, *given)
        numbers = *numbers_of((pair.args, pair.kwargs)), *settings
        known = self._known(pair, numbers)
        planned: Pair | None = None
        if known is not None:
            as_known = known.pair._replace(args=pair.args, kwargs=pair.kwargs)
            try:
                with Path(known.may_branch(numbers)) as path:
                    result = evaluate(as_known)
                if self._is_known(pair, known, path):
                    return result
            except Exception as error:  # the plan may be out of date
                planned = self._plan_anew(pair, as_known, error)
                if planned is None:
                    raise
        pair = planned or self._plan(pair)
        with Path() as path:
            try:
                result = evaluate(pair)
            except StructureError:
                pair = pair._replace(structure=None, vectorize=False)
                result = evaluate(pair)
        if sum(map(len, self._plans.values())) >= _MOST_PLANS:
            self._plans.clear()
        plan = _Plan(pair._replace(args=(), kwargs={}), self._modules, numbers, path.taken)
        self._plans.setdefault(self._key(pair), []).append(plan)
        return result

    def _known(self, pair: Pair, numbers: tuple) -> _Plan | None:
        """The plan of a call like this one, or one to be tried.

        A number may choose a branch, or count the steps: once there are several, the plan of the
        last one is tried.
        """
        plans = self._plans.get(self._key(pair), [])
        same = [plan for plan in plans if plan.numbers == numbers]
        if not same and len({plan.numbers for plan in plans}) >= _ENOUGH_NUMBERS:
            same = plans
        if not same or any(m.training != mode for m, mode in same[-1].modes.items()):
            return None
        return same[-1]

    def _is_known(self, pair: Pair, plan: _Plan, path: Path) -> bool:
        """Whether a run has gone a way that is known to have this plan."""

        def how(plan: _Plan) -> tuple[Layout, bool, int]:
            return plan.pair.layout, plan.pair.vectorize, path.taken

        plans = self._plans[self._key(pair)]
        return not path.is_noted or any(how(plan) == (*how(p)[:2], p.path) for p in plans)

    def _key(self, pair: Pair) -> tuple:
        """What a call looks like, and which networks train: batch normalisation mixes then."""
        modes = frozenset(module.training for module in self._modules)
        return looks(pair.args), looks(pair.kwargs), modes

    def _plan(self, pair: Pair) -> Pair:
        with modules_noted() as self._modules:
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
