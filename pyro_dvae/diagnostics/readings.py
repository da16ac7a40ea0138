"""Run a model and its guide, and hand back their sites as labelled arrays, without gradient.

Beside what a loss needs, the values and what is read off their distributions; see `labels`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.auxiliary import (
    Alone,
    check_discrete,
    check_listed,
    read_auxiliary,
    sites_alone,
    without,
    without_told,
)
from pyro_dvae.diagnostics.labels import Readings, SiteReader, join_runs
from pyro_dvae.diagnostics.left_out import is_left_out
from pyro_dvae.diagnostics.patience import Patience
from pyro_dvae.diagnostics.points import OF_POINTS, computed_sites
from pyro_dvae.diagnostics.silence import (
    OF_MASKS,
    in_full,
    otherwise_drawn,
    read_counted_impossible,
    with_matters,
)
from pyro_dvae.diagnostics.simulations import AT_DRAWS, OneByOneError, at_draws
from pyro_dvae.diagnostics.weighed import OF_WEIGHTS, with_all_names
from pyro_dvae.infer.relaxation import unrelaxed
from pyro_dvae.programs.codes import enumerate_draws
from pyro_dvae.programs.draw import (
    AnyValue,
    Draw,
    run_pair,
    run_program,
)
from pyro_dvae.programs.handlers.paths import list_paths
from pyro_dvae.programs.handlers.subsamples import HeldRows, drawn_subsamples
from pyro_dvae.programs.messages import rows_of_plates
from pyro_dvae.programs.readers.impossible import read_impossible, read_num_states, read_zeros
from pyro_dvae.programs.record import (
    Particles,
    Reader,
    concatenate,
    make_record,
    read_codes,
    read_silenced,
)
from pyro_dvae.programs.run import run_particles
from pyro_dvae.programs.sites import (
    Layout,
    Pair,
    Run,
    StructureError,
    deterministic_sites,
    sample_sites,
)
from pyro_dvae.programs.structure.broadcasting import takes_particles, takes_singletons
from pyro_dvae.programs.structure.cells import check_cells
from pyro_dvae.programs.structure.layout import common_layout, find_layout
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.mixing import with_mixed_together

__all__ = [
    "Notes",
    "enumerate_states",
    "posterior_sites",
    "prepare_pair",
    "run_given",
    "score_paths",
    "score_states",
    "states_left_out",
    "vary",
]


class Notes(NamedTuple):
    """What is known of a pair, for all its runs."""

    subsamples: Any  # those that plates of the programs drew, which all runs have; see `HeldRows`
    shared: tuple[str, ...]  # sites that no datum owns, as the data share them
    computed: tuple[str, ...] = ()  # sites of the guide whose values others tell
    alone: Alone = Alone()  # sites that the guide alone has
    patience: Patience | None = None  # with programs that take draws one by one


_STATE_READERS = {
    "codes": read_codes,
    "silenced": read_silenced,
    "impossible": read_impossible,
    "counted_impossible": read_counted_impossible,
    "zeros": read_zeros,
    **OF_WEIGHTS,
}


def prepare_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """Run the pair without draws and read its structure; its notes are `Notes`."""
    pair = Pair(unrelaxed(model), unrelaxed(guide), args, kwargs)
    with torch.no_grad():
        layout, structure = find_layout(pair)
        pair = pair._replace(layout=layout, structure=structure)
        pair = pair._replace(layout=with_mixed_together(pair))
        run = run_pair(pair, Draw(pair.layout, None))
        pair = pair._replace(vectorize=takes_particles(pair, warn=False))
    if not pair.layout.credited:
        pair = pair._replace(layout=_without_discrete(pair.layout, run))
    shared = _shared_sites(pair.layout, run)
    notes = Notes(drawn_subsamples(run), shared, computed_sites(run))
    with torch.no_grad(), HeldRows(notes.subsamples):
        alone = sites_alone(pair, 1)
    shared = without_told(notes.shared, alone)
    return pair._replace(notes=notes._replace(alone=alone, shared=shared))


def _shared_sites(layout: Layout, run: Run) -> tuple[str, ...]:
    sites = (*run.guide.values(), *run.model.values())
    return tuple(dict.fromkeys(site.name for site in sites if not layout.owns(site)))


def vary(pair: Pair) -> Pair:
    """The pair, of programs whose sites depend on the draws: all data make one datum then."""
    layout, notes = pair.layout._replace(plates=(), dims=()), pair.notes._replace(shared=())
    pair = pair._replace(layout=layout, structure=None, vectorize=False, notes=notes)
    with torch.no_grad(), HeldRows(notes.subsamples):
        return pair._replace(notes=notes._replace(alone=sites_alone(pair, 20)))  # some of each way


def _without_discrete(layout: Layout, run: Run) -> Layout:
    """A datum is then a cell of the plates that all sites share."""
    frames = [site.plates for sites in (run.guide, run.model) for site in sites.values()]
    shared = set.intersection(*map(set, frames)) if frames else set()
    plates = sorted(shared, key=lambda name: frames[0][name].dim)
    dims = tuple(frames[0][name].dim for name in plates)
    return layout._replace(plates=tuple(plates), dims=dims)


def posterior_sites(
    pair: Pair,
    num_draws: int,
    wanted: Collection[str],
    given: Mapping[str, Tensor] = MappingProxyType({}),
    *,
    weighs: bool = False,
) -> tuple[Particles, Readings]:
    """Draw from the guide, score the draws, and read `wanted`, some of `READINGS`.

    The log-densities are those of the same draws. What the data share is drawn with each, unless
    its values are `given`; what the guide computes of others is computed again, as a point has no
    density a rounding away. The record has all of them as "given". If it `weighs` draws, it has
    what is said of masked latents in `silence`, too.
    """
    layout, given = pair.layout, _without_computed(pair, given)
    size = num_draws if pair.vectorize else 1
    axes = _draw_axes(pair) if "deterministic" in wanted else {}
    records, readings = [], []
    with torch.no_grad(), HeldRows(pair.notes.subsamples):
        draw = Draw(layout, size if pair.vectorize else None, given)
        patience, count = pair.notes.patience, num_draws // size
        places = patience.over(count) if patience else range(count)
        runs = [run_pair(pair, draw) for _ in places]
        if pair.structure is None:  # any of them may have the deepest plates
            layout = layout._replace(nesting=common_layout(runs).nesting)
        for run in runs:
            _check_sites(pair, run, 2)
            records.append(make_record(run, layout, size, reads=_readers(pair)))
            reader = SiteReader(layout.nesting, size, axes)
            reading = reader.read(run, set(wanted) - AT_DRAWS)
            if "subsample" in wanted:
                reading["subsample"] = _subsamples(run.model_trace)
            reading |= at_draws(pair, given, run, reader, set(wanted))
            readings.append(reading)
        if weighs and pair.structure is None:
            each = zip(runs, records, strict=True)
            records = [_with_masks(pair._replace(layout=layout), *one) for one in each]
        record = concatenate(with_all_names(records))
        if weighs and pair.structure is not None:
            if values := otherwise_drawn(runs, layout, size):
                record = with_matters(record, score_states(pair, values))
    return record, join_runs(readings)


def _without_computed(pair: Pair, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if name not in pair.notes.computed}


def _with_masks(pair: Pair, run: Run, record: Particles) -> Particles:
    """What is said of masked latents in `silence`, of a run that has sites of its own."""
    nothing = torch.zeros_like(record.log_q)
    at_least = {"unmasked": nothing, "masked_apart": nothing > 0}
    read = {n: v for n, v in record.extras.items() if v is not None or n not in at_least}
    record = record._replace(extras={"counted_codes": None} | at_least | read)
    values = otherwise_drawn([run], pair.layout, 1)
    try:
        return with_matters(record, score_states(pair, values) if values else record)
    except ValueError:  # which latents there are depends on one under a mask
        return record._replace(extras={**record.extras, "matters": nothing == 0})


def _check_sites(pair: Pair, run: Run, count: int) -> None:
    """The sites of guide (1), and model (2), are as before; their sizes are those of the data."""
    structures = (pair.structure or ())[:count], run.structure()[:count]
    known, found = ([[site[:2] for site in sites] for sites in each] for each in structures)
    if pair.structure is not None and known != found:
        raise StructureError("the programs have other sites than before")


def _read_given(run: Run, layout: Layout, num_draws: int) -> dict[str, Tensor]:
    """Values of the guide's sites that the data share, ``(K, *batch, *event)``; a reader."""
    sites = {n: s for n, s in run.guide.items() if not (layout.owns(s) or s.is_observed)}
    return {name: in_full(site, layout.nesting, num_draws) for name, site in sites.items()}


def _readers(pair: Pair) -> dict[str, Reader]:
    """What is read of draws; sites of the guide alone are none of the latents."""
    names = pair.notes.alone.auxiliary
    of_latents = {"codes": read_codes, "num_states": read_num_states, **OF_MASKS, **OF_POINTS}
    found = {name: without(names, read) for name, read in of_latents.items()}
    return {
        **found,
        "given": _read_given,
        "zeros": read_zeros,
        **OF_WEIGHTS,
        **read_auxiliary(names),
    }


def _draw_axes(pair: Pair) -> dict[str, int]:
    """The axis of each deterministic site of the model that is as long as there are draws.

    Found by two runs of other numbers of draws: an axis of the same size by chance stays as it is.

    Raises:
        OneByOneError: If a site has not for each draw what it has when that is run alone.
    """
    if not pair.vectorize:
        return {}
    pair = pair._replace(layout=pair.layout._replace(summed=()))

    def shapes(num_draws: int) -> dict[str, torch.Size]:
        trace = run_pair(pair, Draw(pair.layout, num_draws)).model_trace
        return {n: torch.as_tensor(s.value).shape for n, s in deterministic_sites(trace).items()}

    two, three = only_looking(lambda: (shapes(2), shapes(3)))
    grown = {
        name: [axis for axis, size in enumerate(shape) if (size, three[name][axis]) == (2, 3)]
        for name, shape in two.items()
        if len(three.get(name, ())) == len(shape)
    }
    found = {name: axes[0] for name, axes in grown.items() if axes}
    if two and not takes_particles(pair, warn=False, computed=found):
        raise OneByOneError
    return found


def enumerate_states(pair: Pair, max_states: int) -> dict[str, Tensor]:
    """All joint values of a datum's latents, as `enumerate_draws` lists those of the guide.

    They are the model's own, so that states which the guide cannot draw are among them.

    Raises:
        ValueError: If there are continuous latents, or more than `max_states` states, or if the
            log-density of a datum changes with the draws of others.
    """
    with torch.no_grad(), HeldRows(pair.notes.subsamples), AnyValue():
        guide_sites = sample_sites(run_program(pair.guide, pair.args, pair.kwargs))
        latent = {name: site for name, site in guide_sites.items() if not site.is_observed}
        check_discrete([name for name, site in latent.items() if not site.needs_credit])
        found = enumerate_draws(pair.model, pair.args, pair.kwargs, pair.layout, max_states)
        check_cells(pair, found)
    check_listed([name for name, site in latent.items() if site.is_auxiliary], found)
    return found


def run_given(pair: Pair, values: Mapping[str, Tensor]) -> Run:
    """One run, in which some latents have these values."""
    with torch.no_grad(), HeldRows(pair.notes.subsamples):
        return run_pair(pair, Draw(pair.layout, None, values))


def score_states(pair: Pair, values: Mapping[str, Tensor]) -> Particles:
    """Log-densities of given values of the latents, which are in front.

    Raises:
        StructureError: If other sites than those of the pair's structure follow from some values.
    """
    num_states = max(map(len, values.values()), default=1)
    with torch.no_grad(), HeldRows(pair.notes.subsamples), AnyValue():
        pair = pair._replace(expand=not takes_singletons(pair, values))
        reads: dict[str, Reader] = dict(_STATE_READERS)
        reads["sites"] = lambda run, *_: _check_sites(pair, run, 1)
        return run_particles(pair, num_states, reads=reads, values=values)


def score_paths(pair: Pair, max_states: int) -> Particles:
    """Log-densities of all ways that programs can take whose sites depend on the draws.

    Raises:
        ValueError: If there are continuous latents, or more than `max_states` ways.
    """
    with torch.no_grad(), HeldRows(pair.notes.subsamples), AnyValue():
        paths = list_paths(pair, max_states)
        runs = [run_pair(pair, Draw(pair.layout, None, values)) for values in paths]
        known = {name for run in runs for name in run.model}  # another way may not have them
        for run in runs:
            check_listed([n for n, site in run.guide.items() if site.is_auxiliary], known)
        layout = pair.layout._replace(nesting=common_layout(runs).nesting)
        records = [make_record(run, layout, 1, reads=_STATE_READERS) for run in runs]
    return concatenate(with_all_names(records))


def _subsamples(trace: Any) -> dict[str, NamedArray]:
    return {
        name: NamedArray((name,), rows.indices)
        for name, rows in rows_of_plates(trace).items()
        if len(rows.indices) < rows.full_size
    }


def states_left_out(pair: Pair, num_draws: int, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """Of each site, for which data the guide leaves out a state that the model may have.

    Of latents that no mask silences, and of all.

    Args:
        pair: With its layout and notes.
        num_draws: Tries.
        names: Sites of which the guide leaves out what the model's distribution has.
    """
    size = num_draws if pair.vectorize else 1
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    with torch.no_grad(), HeldRows(pair.notes.subsamples):
        for _ in range(num_draws // size):
            run = run_pair(pair, Draw(pair.layout, size if pair.vectorize else None))
            for name in names:
                found[name].append(is_left_out(pair, run, name, size))
    both = {name: zip(*parts, strict=True) for name, parts in found.items()}
    return {name: [torch.cat(each).any(0) for each in parts] for name, parts in both.items()}
