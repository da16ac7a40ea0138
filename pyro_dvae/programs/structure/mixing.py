"""Which plates' cells are led by the draws of others: a gradient may not take them one by one.

A plate declares its cells independent, and the score function credits a draw with its own cell. A
program that centres latents by their mean over the data, normalises a batch or takes a neighbour's
draw breaks that promise, and a draw is then worth more than its own cell tells. So draws are
changed in some cells of a plate, in which no other may notice. Power is by construction: of any two
cells each is changed while the other stays; one cell alone has the highest code among the lowest,
and the lowest among the highest, so that no statistic over all cells stays as it was.

References:
    [1] Sperner. Ein Satz über Untermengen einer endlichen Menge. Mathematische Zeitschrift, 1928.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

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
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.tracking import find_sources, tracked

__all__ = ["with_mixed_together"]

_LOW, _HIGH, _ABOVE, _BELOW = range(4)  # values of all cells that trials are made of

Values = Mapping[str, Tensor]
Terms = Mapping[tuple[str, str], Tensor]  # of "guide" or "model", by site; with all batch dims


def with_mixed_together(pair: Pair) -> Layout:
    """The layout of a pair, whose draws share one weight over the cells of plates that mix.

    Args:
        pair: The programs, with their layout.
    """
    layout = pair.layout
    if not layout.credited or layout.asked:
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

    def terms(plate: str, given: Values) -> Terms:
        pyro.util.set_rng_state(state)  # the same noise and subsample in each run
        with pyro.validation_enabled(False):
            run = run_pair(pair, Draw(layout, None, {**values, **given}))
        return _terms(run, layout, plate)

    frames = {f.name: f for name in layout.credited for f in guide[name].plates.values()}
    mixed = []
    for plate, frame in frames.items():
        sites = [s for n, s in held.items() if n in led and plate in s.plates]
        if frame.size > 1 and _mixes(partial(terms, plate), sites, frame):
            mixed.append(plate)
    return mixed


def _terms(run: Run, layout: Layout, plate: str) -> Terms:
    """What the sites under a plate add to the objective; of draws, whatever their masks."""
    found = {}
    for name, site in run.guide.items():
        is_drawn = not site.is_observed
        values = draw_log_prob(site, site.log_prob()) if is_drawn else site.term()
        found["guide", name] = site, values
    found |= {("model", name): (site, site.term()) for name, site in run.model.items()}
    return {
        key: in_batch_dims(site, values, layout.nesting, 1)
        for key, (site, values) in found.items()
        if plate in site.plates
    }


def _mixes(terms: Callable[[Values], Terms], sites: Sequence[Site], frame: Any) -> bool:
    """Whether cells that were not changed notice that others were."""
    bases = _bases(sites)
    before = {start: _attempt(terms, bases[start]) for start in (_LOW, _HIGH)}
    again = _attempt(terms, bases[_LOW]) or {}
    noisy = {key for key in again if not _same(again[key], (before[_LOW] or {}).get(key))}
    num_tried = 0
    for start, end, cells in _trials(frame.size):
        kept = before[start]
        changed = _attempt(terms, _joined(bases[start], bases[end], cells, sites, frame.dim))
        if kept is None or changed is None:
            continue
        num_tried += 1
        unchanged = torch.as_tensor(~cells).reshape(-1, *[1] * (-frame.dim - 1))
        silent = kept.keys() - noisy
        if any(not _are_kept(kept[key], changed.get(key), unchanged) for key in silent):
            return True
    return num_tried == 0  # it cannot be told, and one weight is right in any case


def _attempt(terms: Callable[[Values], Terms], values: Values) -> Terms | None:
    """The terms at these values; None of values that the program never draws."""
    try:
        return terms(values)
    except Exception:  # whatever it says of them
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


def _trials(size: int) -> Iterator[tuple[int, int, Bool[np.ndarray, "cells"]]]:
    """Which base the cells start from, which other one some of them take, and which these are.

    Of any two cells each is changed while the other stays, low or high, as no cell's trials are all
    another's: all have as many, and no two the same [1].
    """
    count = next(k for k in itertools.count(2) if math.comb(k, k // 2) >= size)
    taken = itertools.islice(itertools.combinations(range(count), count // 2), size)
    changed = np.zeros((size, count), bool)
    np.put_along_axis(changed, np.array(list(taken)), True, 1)
    np.random.default_rng(0).shuffle(changed)
    for place, cells in enumerate([np.arange(size) == size // 2, *changed.T]):
        yield _LOW, (_HIGH, _ABOVE)[place % 2], cells
        yield _HIGH, (_LOW, _BELOW)[place % 2], cells


def _joined(
    before: Values, after: Values, cells: Bool[np.ndarray, "cells"], sites: Sequence[Site], dim: int
) -> Values:
    """The values after in these cells of a plate, the values before in the others."""
    joined = {}
    for site in sites:
        inner = site.fn.event_dim - dim - 1
        places = torch.as_tensor(cells).reshape(-1, *[1] * inner)
        one = before[site.name]
        joined[site.name] = torch.where(places.to(one.device), after[site.name], one)
    return joined


def _are_kept(before: Tensor, after: Tensor | None, unchanged: Bool[Tensor, "..."]) -> bool:
    if after is None or before.shape != after.shape:
        return False
    kept, one, other = torch.broadcast_tensors(unchanged.to(before.device), before, after)
    return _same(one[kept], other[kept])


def _same(one: Tensor, other: Tensor | None) -> bool:
    most = 1e-9 if one.dtype == torch.float64 else 1e-5
    return other is not None and torch.allclose(one, other, rtol=most, atol=most, equal_nan=True)
