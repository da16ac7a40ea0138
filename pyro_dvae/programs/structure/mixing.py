"""Which plates' cells are led by the draws of others: a gradient may not take them one by one.

A plate declares its cells independent, and the score function credits a draw with its own cell. A
program that centres latents by their mean over the data, normalises a batch or takes a neighbour's
draw breaks that promise, and a draw is then worth more than its own cell tells. So draws are
changed in some cells of a plate, in which no other may notice. Power is by construction: of any two
cells each is changed while the other stays; one cell alone has the highest code among the lowest,
and the lowest among the highest, so that no statistic over all cells stays as it was. What has no
effect at these values shows by the operations of a run (`owners`). A program
that takes a particle axis has several trials in one run; where a cell notices something there, each
has a run for itself.

References:
    [1] Sperner. Ein Satz über Untermengen einer endlichen Menge. Mathematische Zeitschrift, 1928.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from jaxtyping import Bool
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pyro_dvae.programs.densities import has_inverse
from pyro_dvae.programs.draw import Draw, moved, run_pair
from pyro_dvae.programs.record import draw_log_prob, in_batch_dims
from pyro_dvae.programs.sites import Layout, Pair, Run, Site
from pyro_dvae.programs.structure.broadcasting import telling_values
from pyro_dvae.programs.structure.looking import only_looking, raise_slip
from pyro_dvae.programs.structure.owners import Owners
from pyro_dvae.programs.structure.plain import keeps_draws_apart
from pyro_dvae.programs.structure.tracking import find_sources, tracked

__all__ = ["with_mixed_together"]

_LOW, _HIGH, _ABOVE, _BELOW = range(4)  # values of all cells that trials are made of
_AT_ONCE = 8  # trials in a run, and cells of a plate from which on they are so many

Values = Mapping[str, Tensor]
Terms = Mapping[tuple[str, str], Tensor]  # of "guide" or "model", by site; with all batch dims


class _Trial(NamedTuple):
    """Which values the cells of a plate have, and which other ones some of them, and these."""

    start: int
    end: int
    cells: Bool[np.ndarray, "cells"]


def with_mixed_together(pair: Pair) -> Layout:
    """The layout of a pair, whose draws share one weight over the cells of plates that mix.

    Args:
        pair: The programs, with their layout.
    """
    layout = pair.layout
    if not layout.credited or layout.asked or keeps_draws_apart(pair):
        return layout
    mixed = only_looking(lambda: _mixed_plates(pair))
    if not mixed:
        return layout
    warnings.warn(
        f"under plate {sorted(mixed)} the log-density of a cell changes with the draws of others "
        "(a mean over the data, a batch normalisation, an index from the left), so all their draws "
        "have one weight: values and gradients are right, but noisier the more cells there are. "
        "Use a cell's own draws in its density (normalise each datum alone), or a loss by "
        "pathwise gradients, such as relax.",
        stacklevel=8,
    )
    kept = [n for n in layout.plates if n not in mixed]
    dims = [layout.dims[layout.plates.index(n)] for n in kept]
    return layout._replace(plates=tuple(kept), dims=tuple(dims), mixed=tuple(mixed))


def _mixed_plates(pair: Pair) -> list[str]:
    """The plates of credited sites in which a draw leads to the terms of other cells."""
    found, layout = tracked(pair, TrackNonReparam()), pair.layout
    guide = {name: site for name, site in found.run.guide.items() if not site.is_observed}
    led = set(layout.credited)
    if len(guide) > len(led):  # what a draw leads to leads on
        led |= {name for name, draws in find_sources(pair, found, led).guide.items() if draws}
    held = {name: site for name, site in guide.items() if has_inverse(site)}
    values = {name: detach_provenance(site.value) for name, site in held.items()}
    state = pyro.util.get_rng_state()

    def terms(plate: str, given: Values, count: int | None = None) -> Terms:
        pyro.util.set_rng_state(state)  # the same noise and subsample in each run
        if count is not None:
            given = {name: _left_of_plates(held[name], v, layout) for name, v in given.items()}
        with pyro.validation_enabled(False):
            run = run_pair(pair, Draw(layout, count, {**values, **given}))
        return _terms(run, layout, plate, count or 1)

    frames = {f.name: f for name in layout.credited for f in guide[name].plates.values()}
    mixed = []
    for plate, frame in frames.items():
        sites = [s for n, s in held.items() if n in led and plate in s.plates]
        of_plate = partial(terms, plate)
        if frame.size > 1 and (_is_led(of_plate, sites, frame) or _mixes(of_plate, sites, frame)):
            mixed.append(plate)
    return mixed


def _is_led(terms: Callable[..., Terms], sites: Sequence[Site], frame: Any) -> bool:
    """Whether the operations of a run lead from the draws of a cell to the terms of another."""
    with Owners(frame.size) as owners:
        given = {site.name: detach_provenance(site.value).clone() for site in sites}
        for site in sites:
            owners.give(given[site.name], frame.dim - site.fn.event_dim)
        found = _attempt(terms, given) or {}
        return any(owners.has_others(value, frame.dim) for value in found.values())


def _left_of_plates(site: Site, values: Tensor, layout: Layout) -> Tensor:
    """Values of particles in front, with these left of all plates."""
    missing = layout.nesting - (values.dim() - 1 - site.fn.event_dim)
    return values.reshape(len(values), *[1] * missing, *values.shape[1:])


def _terms(run: Run, layout: Layout, plate: str, count: int) -> Terms:
    """What the sites under a plate add to the objective; of draws, whatever their masks."""
    found = {}
    for name, site in run.guide.items():
        is_drawn = not site.is_observed
        values = draw_log_prob(site, site.log_prob()) if is_drawn else site.term()
        found["guide", name] = site, values
    found |= {("model", name): (site, site.term()) for name, site in run.model.items()}
    return {
        key: in_batch_dims(site, values, layout.nesting, count)
        for key, (site, values) in found.items()
        if plate in site.plates
    }


def _mixes(terms: Callable[..., Terms], sites: Sequence[Site], frame: Any) -> bool:
    """Whether cells that were not changed notice that others were."""
    bases = _bases(sites)
    is_binary = all(bases[_ABOVE][s.name].equal(bases[_HIGH][s.name]) for s in sites)
    trials = list(_trials(frame.size, is_binary))
    before = {base: _attempt(terms, bases[base]) for base in (_LOW, _HIGH)}
    joined = partial(_joined, bases, sites, frame.dim)
    if _are_apart_at_once(terms, before, trials, joined, frame):
        return False
    again = _attempt(terms, bases[_LOW]) or {}
    noisy = {key for key in again if not _same(again[key], (before[_LOW] or {}).get(key))}
    silent = {b: t and {k: v for k, v in t.items() if k not in noisy} for b, t in before.items()}
    num_tried = 0
    for trial in trials:
        after = _attempt(terms, joined(trial))
        if after is None or before[trial.start] is None:
            continue
        num_tried += 1
        if not _are_kept(silent, after, [trial], frame.dim):
            return True
    return num_tried == 0  # it cannot be told, and one weight is right in any case


def _are_apart_at_once(
    terms: Callable[..., Terms],
    before: Mapping[int, Terms | None],
    trials: Sequence[_Trial],
    joined: Callable[[_Trial], Values],
    frame: Any,
) -> bool:
    """Whether trials that are particles of few runs show no mixing; False if they cannot tell.

    All cells low, and all high, are among them, and have beside others what they have alone.
    """
    if None in before.values() or frame.size <= _AT_ONCE:
        return False
    none = np.zeros(frame.size, bool)
    trials = [_Trial(_LOW, _LOW, none), _Trial(_HIGH, _HIGH, none), *trials]
    for first in range(0, len(trials), _AT_ONCE):
        few = trials[first : first + _AT_ONCE]
        values = list(map(joined, few))
        given = {name: torch.stack([v[name] for v in values]) for name in values[0]}
        after = _attempt(partial(terms, count=len(few)), given)
        if after is None or not _are_kept(before, after, few, frame.dim):
            return False
    return True


def _attempt(terms: Callable[[Values], Terms], values: Values) -> Terms | None:
    """The terms at these values; None of values that the program never draws."""
    try:
        return terms(values)
    except Exception as error:  # whatever it says of them
        raise_slip(error)
        return None


def _bases(sites: Sequence[Site]) -> list[Values]:
    """The lowest values and the highest, and for each another one, as `_LOW` and so on say."""
    low = {site.name: detach_provenance(site.value) for site in sites}
    high = {site.name: _other(site, low[site.name], 1) for site in sites}
    for site in sites:
        told = telling_values(replace(site, value=low[site.name][None]))
        if told is not None and len(told) > 1:
            high[site.name], low[site.name] = told[0], told[1]
    above = {site.name: _other(site, low[site.name], 1) for site in sites}
    below = {site.name: _other(site, high[site.name], 2) for site in sites}
    return [low, high, above, below]


def _other(site: Site, value: Tensor, by: int) -> Tensor:
    other = moved(site, value, by)
    return detach_provenance(site.fn.sample() if other is None else other)


def _trials(size: int, is_binary: bool) -> Iterator[_Trial]:
    """Trials in which of any two cells each is changed while the other stays, low or high.

    No cell's trials are all another's: all have as many, and no two the same [1]. One trial of two
    values shows what stays low and what stays high.
    """
    count = next(k for k in itertools.count(2) if math.comb(k, k // 2) >= size)
    taken = itertools.islice(itertools.combinations(range(count), count // 2), size)
    changed = np.zeros((size, count), bool)
    np.put_along_axis(changed, np.array(list(taken)), True, 1)
    np.random.default_rng(0).shuffle(changed)
    one = np.arange(size) == size // 2
    yield _Trial(_LOW, _HIGH, one)
    yield _Trial(_HIGH, _LOW, one)
    for place, cells in enumerate(changed.T):
        if is_binary or place % 2:
            yield _Trial(_LOW, _HIGH, cells)
        else:
            yield _Trial(_LOW, _ABOVE, cells)
            yield _Trial(_HIGH, _BELOW, ~cells)


def _joined(bases: Sequence[Values], sites: Sequence[Site], dim: int, trial: _Trial) -> Values:
    """The values of a trial."""
    joined = {}
    for site in sites:
        inner = site.fn.event_dim - dim - 1
        places = torch.as_tensor(trial.cells).reshape(-1, *[1] * inner)
        start, end = (bases[base][site.name] for base in (trial.start, trial.end))
        joined[site.name] = torch.where(places.to(start.device), end, start)
    return joined


def _are_kept(
    before: Mapping[int, Terms | None], after: Terms, trials: Sequence[_Trial], dim: int
) -> bool:
    """Whether each cell has what it has where all cells are like it; trials are in front."""
    bases = np.stack([np.where(t.cells, t.end, t.start) for t in trials])
    for base, terms in before.items():
        for key, one in (terms or {}).items():
            other = after.get(key)
            if other is None or other.shape[1:] != one.shape[1:]:
                return False
            shape = [len(trials), *[1] * (one.dim() - 1)]
            shape[dim] = bases.shape[1]
            kept = torch.as_tensor(bases == base).reshape(shape).to(one.device)
            kept, one, other = torch.broadcast_tensors(kept, one, other)
            if not _same(one[kept], other[kept]):
                return False
    return True


def _same(one: Tensor, other: Tensor | None) -> bool:
    most = 1e-9 if one.dtype == torch.float64 else 1e-5
    return other is not None and torch.allclose(one, other, rtol=most, atol=most, equal_nan=True)
