"""What the log-density of each site depends on: followed through a run, and tried by other draws.

A run tracks the provenance of draws [1], through tensors. A table that is filled in place, `vmap`,
TorchScript, `torch.tensor(z)` or a printed number lose it. So draws are changed as well, a few at a
time, while all noise stays: a log-density that changes though none of them was seen in it depends
on draws by a way that is not known, maybe on all of them.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_dvae.programs.densities import has_inverse
from pyro_dvae.programs.draw import Draw, moved, run_pair
from pyro_dvae.programs.messages import is_drawn
from pyro_dvae.programs.sites import Layout, Pair, Run, Site, is_flow
from pyro_dvae.programs.structure.looking import only_looking, raise_slip

__all__ = ["Exits", "Sources", "TrackDraws", "Tracked", "find_sources", "tracked"]

_EXITS = {
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__contains__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__int__,
    Tensor.allclose,
    Tensor.data_ptr,
    Tensor.equal,
    Tensor.is_nonzero,
    Tensor.item,
    Tensor.numpy,
    Tensor.tolist,
    torch.allclose,
    torch.equal,
    torch.is_nonzero,
}
_FEW = 4  # draws that are changed one after another; of more, random halves
_ROUNDS = 8

_Key = tuple[str, str]  # "guide" or "model", and the site's name


class Tracked(NamedTuple):
    """A plain run whose values know their draws."""

    run: Run
    exits: frozenset[str]  # draws whose values Python has asked for
    asks: bool  # whether it has asked for any tensor's


class Sources(NamedTuple):
    """Which draws the log-density of each site is computed from."""

    guide: Mapping[str, frozenset[str]]
    model: Mapping[str, frozenset[str]]
    mixed: bool = False  # whether a draw of one cell reaches others by a way that is not known


class Exits(TorchFunctionMode):
    """Notes the draws whose values leave the tensors that carry their provenance.

    What distributions make of their parameters, tensors of one shape and type, are each of one
    parameter: the trials of a binomial whose probability is drawn are not drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.any = False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _EXITS:
            self.names |= get_provenance(args)
            self.any = True
        if func is torch.functional.broadcast_tensors:
            found = func(*map(detach_provenance, args))
            return tuple(
                track_provenance(x, get_provenance(y)) for x, y in zip(found, args, strict=True)
            )
        if func is Tensor.type_as:
            args = (args[0], detach_provenance(args[1]))
        return func(*args, **(kwargs or {}))


class TrackDraws(Messenger):
    """Mark what depends on the draw of any latent site, reparameterised or not."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_drawn(msg):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))


def tracked(
    pair: Pair, tracker: Messenger, values: Mapping[str, Tensor] = MappingProxyType({})
) -> Tracked:
    """A plain run, without validation, which asks for values, too.

    Args:
        pair: The programs.
        tracker: Marks what depends on the draws that are of interest.
        values: Of some draws.
    """

    def look() -> Tracked:
        with pyro.validation_enabled(False), tracker, Exits() as exits:
            run = run_pair(pair, Draw(Layout(), None, values))
        return Tracked(run, frozenset(exits.names), exits.any)

    try:
        return only_looking(look)
    except Exception:
        _let_pyro_say_why(pair)
        raise


def _let_pyro_say_why(pair: Pair) -> None:
    """Run a pair that has failed with Pyro's own checks, whose words are better than an index's."""
    try:
        only_looking(lambda: run_pair(pair, Draw(Layout(), None)))
    except ValueError as error:
        raise error from None
    except Exception:  # the first one is its own
        return


def find_sources(
    pair: Pair, found: Tracked, draws: Collection[str], dims: Sequence[int] = ()
) -> Sources:
    """Which of the draws each log-density depends on, its own among them.

    Args:
        pair: The programs.
        found: A run of them that tracks these draws.
        draws: Names of latent sites of the guide.
        dims: Batch dims whose cells are to be independent of each other.
    """
    run, every = found.run, frozenset(draws)
    sites = [run.guide[name] for name in every]
    flows = {site.name for site in sites if is_flow(site.fn) and not has_inverse(site)}
    sides: dict[str, Mapping[str, Site]] = {"guide": run.guide, "model": run.model}
    known = {
        (side, name): (get_provenance(site.term()) | found.exits | flows | {name}) & every
        for side, sites in sides.items()
        for name, site in sites.items()
    }
    mixed = False
    if any(names != every for names in known.values()):
        tried = every - flows  # which have no density of other draws: all may depend on theirs
        hidden, mixed = only_looking(lambda: _hidden(pair, run, known, tried, dims))
        known |= dict.fromkeys(hidden, every)
    guide, model = ({n: known[side, n] for n in sites} for side, sites in sides.items())
    return Sources(guide, model, mixed)


def _hidden(
    pair: Pair,
    run: Run,
    known: Mapping[_Key, frozenset[str]],
    draws: frozenset[str],
    dims: Sequence[int],
) -> tuple[set[_Key], bool]:
    """Log-densities that depend on draws which were not seen in them; whether they mix cells."""
    values = {name: detach_provenance(run.guide[name].value) for name in sorted(draws)}
    state, rng = _noise(), np.random.default_rng(0)
    before = _log_probs(pair, values, state)
    again = _log_probs(pair, values, state)
    before = {key: value for key, value in before.items() if _same(value, again.get(key))}
    hidden, mixed = set[_Key](), False
    for names in _rounds(list(values), rng):
        cells = _cells([run.guide[name] for name in names], dims, rng)
        others = {n: _changed(run.guide[n], values[n], cells, rng) for n in names}
        try:
            after = _log_probs(pair, values | others, state)
        except Exception as error:  # of values that the program never draws
            raise_slip(error)
            continue
        moved = {key for key, value in before.items() if not _same(value, after.get(key))}
        moved = {key for key in moved if known[key].isdisjoint(names)}
        hidden |= moved
        mixed |= any(_is_mixed(before[key], after.get(key), cells) for key in moved)
    return hidden, mixed


def _rounds(names: list[str], rng: np.random.Generator) -> Iterator[list[str]]:
    if len(names) <= _FEW:
        yield from ([name] for name in 2 * names)
        return
    for _ in range(_ROUNDS // 2):  # each draw is changed as often as not
        mixed = [str(name) for name in rng.permutation(names)]
        yield from (mixed[::2], mixed[1::2])


def _log_probs(pair: Pair, values: Mapping[str, Tensor], state: Any) -> dict[_Key, Tensor]:
    _set_noise(state)
    with pyro.validation_enabled(False):
        run = run_pair(pair, Draw(Layout(), None, values))
        sides = {"guide": run.guide, "model": run.model}
        return {(k, name): s.term() for k, sites in sides.items() for name, s in sites.items()}


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


def _cells(sites: Sequence[Site], dims: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Which cells of the plates are changed: some, and never all where there are several."""
    sizes = {frame.dim: frame.size for site in sites for frame in site.plates.values()}
    shape = [sizes.get(dim, 1) if dim in dims else 1 for dim in range(min(dims, default=0), 0)]
    cells = np.array(rng.random(shape) < 0.5)
    if cells.size:
        cells.flat[rng.integers(cells.size)] = True
        if cells.size > 1:
            cells.flat[np.flatnonzero(cells)[0]] = cells.sum() == 1
            cells.flat[np.flatnonzero(cells)[-1]] = not cells.all()
    return torch.as_tensor(cells)


def _is_mixed(before: Tensor, after: Tensor | None, cells: Tensor) -> bool:
    """Whether a cell that was not changed has noticed."""
    if after is None or before.shape != after.shape or cells.numel() == 1:
        return after is None or before.shape != after.shape
    try:
        kept, one, other = torch.broadcast_tensors(~cells.to(before.device), before, after)
    except RuntimeError:  # not under these plates
        return False
    return not _same(one[kept], other[kept])


def _changed(site: Site, value: Tensor, cells: Tensor, rng: np.random.Generator) -> Tensor:
    """Other values in these cells: in all of the site's elements there, or in some."""
    other = moved(site, value, 1)
    other = detach_provenance(site.fn.sample() if other is None else other)
    inner = len(site.base.event_shape)
    shape = value.shape[: value.dim() - inner]
    some = np.asarray(rng.random(shape) < rng.choice([0.5, 1.0]))
    if not some.any():
        some = np.ones(shape, bool)
    event = len(shape) - len(site.fn.batch_shape)
    places = cells.reshape((*cells.shape, *[1] * event)) & torch.as_tensor(some)
    places = places.reshape((*places.shape, *[1] * inner)).to(value.device)
    return torch.where(places, other, value)


def _noise() -> tuple[Any, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return pyro.util.get_rng_state(), cuda


def _set_noise(state: tuple[Any, Any]) -> None:
    pyro.util.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
