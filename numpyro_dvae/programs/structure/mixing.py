"""Which plates' cells are led by the draws of others: a gradient may not take them one by one.

A plate declares its cells independent, and the score function credits a draw with its own cell. A
program that centres latents by their mean over the data, normalises a batch or takes a neighbour's
draw breaks that promise, and a draw is then worth more than its own cell tells. Most programs show
by their operations alone that they keep it (`axes`), which costs nothing. Of the others draws are
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
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool
from numpyro.distributions import constraints
from numpyro.ops.provenance import eval_provenance

from numpyro_dvae.programs.densities import has_inverse, without_mask
from numpyro_dvae.programs.draw import Draw, run_pair, run_program
from numpyro_dvae.programs.sites import Layout, Pair, Run, Site, sample_sites
from numpyro_dvae.programs.structure.axes import GATHERED, axis_of, places_of
from numpyro_dvae.programs.structure.stand_ins import FromZero, with_stand_ins

__all__ = ["with_mixed_together"]

_LOW, _HIGH, _ABOVE, _BELOW = range(4)  # values of all cells that trials are made of

Values = Mapping[str, np.ndarray]


class _Drawn(NamedTuple):
    """A latent of the guide."""

    shape: tuple[int, ...]
    dtype: Any
    event_dim: int
    plates: Mapping[str, tuple[int, int]]  # their dims and sizes; none if no draw leads to it
    codes: tuple[int, int] | None  # the lowest and the highest; None of one-hot vectors, or reals

    def axis(self, plate: str) -> int:
        """Of the plate's cells."""
        return len(self.shape) - self.event_dim + self.plates[plate][0]


class _Term(NamedTuple):
    """What a site adds to the objective."""

    shape: tuple[int, ...]
    plates: Mapping[str, int]  # their dims


def with_mixed_together(rng_key: Array, pair: Pair) -> Layout:
    """The layout of a pair, whose draws share one weight over the cells of plates that mix.

    Args:
        rng_key: Key of the runs.
        pair: The programs, with their layout.
    """
    layout = pair.layout
    if not layout.credited:
        return layout
    mixed = _mixed_plates(rng_key, pair)
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
    return layout._replace(
        plates=tuple(kept), dims=tuple(dims), one_scale=False, mixed=tuple(mixed)
    )


def _mixed_plates(rng_key: Array, pair: Pair) -> list[str]:
    """The plates of credited sites in which a draw leads to the terms of other cells."""
    drawn = _drawn(rng_key, pair)
    credited = {name: site for name, site in drawn.items() if name in pair.layout.credited}
    sizes = {n: size for site in credited.values() for n, (_, size) in site.plates.items()}
    if all(size == 1 for size in sizes.values()):
        return []
    program, terms = _traced(rng_key, pair, drawn)
    seen = {n: _are_apart(program, n, sizes[n], drawn, terms) for n in sizes if sizes[n] > 1}
    if all(seen.values()):
        return []
    program, terms = _traced(rng_key, pair, credited)
    run = with_stand_ins(program)
    return [
        name
        for name, is_apart in seen.items()
        if is_apart is False
        or (is_apart is None and _mixes(run, name, sizes[name], credited, terms))
    ]


def _traced(rng_key: Array, pair: Pair, drawn: Mapping[str, _Drawn]) -> tuple[Any, Sequence[_Term]]:
    """The programs from values of these sites to the terms of all, and what these are."""
    found: list[_Term] = []

    def run(given: Mapping[str, Array]) -> list[Array]:
        with FromZero():
            values = _terms(run_pair(rng_key, pair, Draw(rng_key, pair.layout, given)))
        plates = [{n: f.dim for n, f in site.plates.items()} for site, _ in values]
        found[:] = [_Term(tuple(v.shape), p) for (_, v), p in zip(values, plates, strict=True)]
        return [value for _, value in values]

    example = {n: jax.ShapeDtypeStruct(site.shape, site.dtype) for n, site in drawn.items()}
    return jax.make_jaxpr(run)(example), found


def _drawn(rng_key: Array, pair: Pair) -> dict[str, _Drawn]:
    """The guide's latents that can be given, and of which the credited ones lead to what others."""
    found: dict[str, _Drawn] = {}

    def latents(draws: Mapping[str, Array]) -> dict[str, Site]:
        assert pair.guide is not None
        with Draw(rng_key, Layout(), draws):
            sites = sample_sites(run_program(rng_key, pair.guide, pair.args, pair.kwargs))
        return {name: site for name, site in sites.items() if not site.is_observed}

    def inspect() -> None:
        sites = latents({})
        draws = {name: sites[name].value for name in pair.layout.credited}
        led: Mapping[str, Any] = {}
        if len(sites) > len(draws):
            led = eval_provenance(lambda d: {n: s.value for n, s in latents(d).items()}, d=draws)
        for name, site in sites.items():
            if name in draws or has_inverse(site):
                leads = name in draws or bool(led[name])
                plates = {n: (f.dim, f.size) for n, f in site.plates.items()} if leads else {}
                codes = _codes(site) if name in draws else None
                value = site.value
                found[name] = _Drawn(value.shape, value.dtype, site.fn.event_dim, plates, codes)

    jax.eval_shape(inspect)
    return dict(sorted(found.items()))  # as the leaves of a tree


def _codes(site: Site) -> tuple[int, int] | None:
    """The lowest and the highest of a site; some of those that are not known, or are too many."""
    support = site.fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    bounds = getattr(support, "lower_bound", 0), getattr(support, "upper_bound", 1)
    if support is constraints.boolean:
        return 0, 1
    if support.event_dim:
        return None
    if any(isinstance(bound, jax.core.Tracer) for bound in bounds):
        return 0, 1
    low, high = map(np.asarray, bounds)  # or they would be computed, and traced
    return int(low.min()), int(high.max())


def _terms(run: Run) -> list[tuple[Site, Array]]:
    """What sites add to the objective; of the guide's draws, whatever their masks."""
    found = [(site, site.term()) for site in (*run.guide.values(), *run.model.values())]
    for site in run.guide.values():
        bare = without_mask(site.fn)
        if not site.is_observed and bare is not site.fn:
            found.append((site, site.log_prob_under(bare)))
    return found


def _are_apart(
    program: Any, plate: str, size: int, drawn: Mapping[str, _Drawn], terms: Sequence[_Term]
) -> bool | None:
    """Whether draws lead to the terms of their own cells alone; None if operations do not tell."""
    inputs = [
        math.prod(site.shape[site.axis(plate) + 1 :]) if plate in site.plates else None
        for site in drawn.values()
    ]
    places = zip(places_of(program, inputs, size), terms, strict=True)
    known = [(p, term) for p, term in places if p is not None and plate in term.plates]
    if any(place == GATHERED for place, _ in known):
        return False
    at_home = (
        place and axis_of(place, t.shape, size) == (len(t.shape) + t.plates[plate], 1)
        for place, t in known
    )
    return all(at_home) or None


def _mixes(
    run: Callable[[Values], list[np.ndarray]],
    plate: str,
    size: int,
    drawn: Mapping[str, _Drawn],
    terms: Sequence[_Term],
) -> bool:
    """Whether cells that were not changed notice that others were."""
    bases = _bases(drawn)
    before = {start: run(bases[start]) for start in (_LOW, _HIGH)}
    for start, end, cells in _trials(size):
        changed = run(_joined(bases[start], bases[end], cells, plate, drawn))
        for one, other, term in zip(before[start], changed, terms, strict=True):
            if plate in term.plates and not _are_kept(one, other, ~cells, term.plates[plate]):
                return True
    return False


def _bases(drawn: Mapping[str, _Drawn]) -> list[Values]:
    """The lowest values and the highest, and for each another one, as `_LOW` and so on say."""

    def of(site: _Drawn, base: int) -> np.ndarray:
        low, high = (0, site.shape[-1] - 1) if site.codes is None else site.codes
        code = (low, high, min(low + 1, high), max(high - 1, low))[base]
        if site.codes is not None:
            return np.full(site.shape, code, site.dtype)
        return np.broadcast_to(np.eye(site.shape[-1], dtype=site.dtype)[code], site.shape)

    return [{name: of(site, base) for name, site in drawn.items()} for base in range(4)]


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
    before: Values,
    after: Values,
    cells: Bool[np.ndarray, "cells"],
    plate: str,
    drawn: Mapping[str, _Drawn],
) -> Values:
    """The values after in these cells of a plate, the values before in the others."""
    joined = {}
    for name, site in drawn.items():
        joined[name] = before[name]
        if plate in site.plates:
            places = cells.reshape(-1, *[1] * (len(site.shape) - site.axis(plate) - 1))
            joined[name] = np.where(places, after[name], before[name])
    return joined


def _are_kept(
    before: np.ndarray, after: np.ndarray, unchanged: Bool[np.ndarray, "cells"], dim: int
) -> bool:
    """Whether these cells have what they had; of NaN it cannot be told."""
    places = unchanged.reshape(-1, *[1] * (-dim - 1))
    kept, one, other = np.broadcast_arrays(places, before, after)
    most = 1e-9 if before.dtype == np.float64 else 1e-5
    return bool(np.allclose(one[kept], other[kept], rtol=most, atol=most))
