"""Draw from a trained guide, or list its states, and read what is wanted, block by block.

What is run at once is bounded: draws come in blocks, and rows of the data in batches if asked for.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.batches import rows_of
from pyro_dvae.diagnostics.cutting import RowsCut
from pyro_dvae.diagnostics.draws import (
    PRIOR_NAMES,
    RECORD,
    Chunk,
    Draws,
    count_numbers,
    cut_draws,
)
from pyro_dvae.diagnostics.patience import Patience
from pyro_dvae.diagnostics.readings import (
    Pair,
    Readings,
    enumerate_states,
    posterior_sites,
    prepare_pair,
    score_paths,
    score_states,
    states_left_out,
    vary,
)
from pyro_dvae.diagnostics.reports import CodeUsage
from pyro_dvae.diagnostics.simulations import OneByOneError, prior_sites
from pyro_dvae.diagnostics.trained import Trained, as_trained
from pyro_dvae.diagnostics.waiting import waited
from pyro_dvae.fit.svi import device_of
from pyro_dvae.programs.record import Particles
from pyro_dvae.programs.sites import StructureError

__all__ = ["collect", "collect_given_shared", "collect_states", "usage_of_processes"]

T = TypeVar("T")

Mode = Callable[[Pair], Pair]  # how a pair is run

_OF_DRAWS = ("given", "points", "unmasked", "matters", "auxiliary", "shared_auxiliary")
_OF_STATES = (
    *(n for n in RECORD if n not in _OF_DRAWS),
    *("log_draw", "silenced", "impossible", "counted_impossible"),
)


def collect(
    result: Any,
    data: tuple,
    num_draws: int,
    wanted: Collection[str],
    *,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    prior: bool = False,
) -> Draws:
    """Draw from the guide and read the sites.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        num_draws: K, draws per datum.
        wanted: What to read of the sites, of `READINGS`.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.
        prior: Also draw from the model alone: readings "prior" and "prior_predictive".
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be at least 1; got {num_draws}.")
    trained = as_trained(result, params)
    args = trained.arguments(data)

    def run(mode: Mode) -> Draws:
        cut = rows_of(trained, args, batch_size)
        draws, patience = Draws(num_draws, cut), Patience(len(cut.parts) * num_draws)
        pairs = _pairs(trained, args, cut, mode)
        for rows, pair in waited(pairs, "batches", len(cut.parts)):
            pair = _patient(pair, patience)
            _fill(draws, rows, pair, wanted, prior=prior)
        return draws

    with trained.at_parameters():
        return _whatever_varies(run)


def _whatever_varies(run: Callable[[Mode], T]) -> T:
    """Run programs as they were found to be; if they turn out to be otherwise, one by one."""
    try:
        return run(_as_found)
    except OneByOneError:
        return run(_one_by_one)
    except StructureError:
        return run(vary)


def _as_found(pair: Pair) -> Pair:
    return pair


def _one_by_one(pair: Pair) -> Pair:
    return pair._replace(vectorize=False)


def collect_given_shared(
    result: Any,
    data: tuple,
    outer: Draws,
    num_shared: int,
    num_draws: int,
    summarize: Callable[[Draws, int], T],
    *,
    params: Mapping[str, Tensor] | None = None,
) -> list[T]:
    """Draw a datum's own latents K times at each of some draws of what the data share.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        outer: Draws of all latents, of the same programs.
        num_shared: How many of these, from the first on.
        num_draws: K, draws per datum at each of them.
        summarize: What to keep of the K draws at each, from the draws, with readings "outside",
            "latent" and, if `outer` has it, "summed", and the number of what is given.
        params: Parameters by name, in place of those of `result`.
    """
    wanted = ("outside", "latent", *(["summed"] if outer["summed"] else []))
    trained = as_trained(result, params)
    args = trained.arguments(data)
    device = device_of(trained, trained.params.values())
    found = []
    with trained.at_parameters():
        for _, pair in _pairs(trained, args, RowsCut(0, 0)):
            pair = _patient(pair, Patience(num_shared * num_draws))
            for place in waited(range(num_shared), "draws of what the data share"):
                given = {
                    name: torch.from_numpy(site.values[place : place + 1]).to(device)
                    for name, site in outer["given"].items()
                }
                draws = Draws(num_draws)
                _fill(draws, None, pair, wanted, given)
                found.append(summarize(draws, place))
    return found


def _patient(pair: Pair, patience: Patience) -> Pair:
    """The pair, of which is told how long it takes if it is run draw by draw."""
    if pair.vectorize:
        return pair
    return pair._replace(notes=pair.notes._replace(patience=patience))


def _fill(
    draws: Draws,
    rows: slice | None,
    pair: Pair,
    wanted: Collection[str],
    given: Mapping[str, Tensor] = MappingProxyType({}),
    *,
    prior: bool = False,
) -> None:
    """Run the pair until the draws of these rows are there."""
    draws.summed_sites = pair.layout.summed
    draws.is_mixed = bool(pair.layout.mixed)
    blocks = cut_draws(draws.num_draws, count_numbers(pair.args))
    if pair.structure is None:  # all draws together tell which sites there are
        blocks = iter([(slice(0, draws.num_draws), draws.num_draws)])
    for some, size in waited(list(blocks), "blocks of draws"):
        block = Chunk(some, rows)
        record, readings = posterior_sites(pair, size, wanted, given, weighs=True)
        _add_record(draws, block, pair, record, RECORD)
        _confirm(pair, size, record.log_q.shape[1:], readings)
        _add_readings(draws, block, readings, {})
        if prior:
            _add_readings(draws, block, prior_sites(pair, size), PRIOR_NAMES)


def _confirm(pair: Pair, num_draws: int, shape: torch.Size, readings: Readings) -> None:
    """Keep that a guide leaves out states of a datum only if the model may have one of them.

    "outside_silent" is of latents under a mask as well, which count if others depend on them.
    """
    outside = readings.get("outside", {})
    if pair.structure is None or not outside:
        return
    names = [name for name, each in outside.items() if bool(each.values.any())]
    found = states_left_out(pair, num_draws, names) if names else {}
    nothing, plates = torch.zeros(shape, dtype=torch.bool), pair.layout.plates
    for place, reading in enumerate(("outside", "outside_silent")):
        values = {name: found[name][place] if name in found else nothing for name in outside}
        readings[reading] = {
            name: NamedArray(plates, each.expand(num_draws, *each.shape))
            for name, each in values.items()
        }


def collect_states(
    result: Any,
    data: tuple,
    max_states: int,
    *,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> Draws:
    """Score every joint state of a datum's latents, in place of draws; arguments as `collect`'s."""
    trained = as_trained(result, params)
    args = trained.arguments(data)

    def run(mode: Mode) -> Draws:
        draws, cut = None, rows_of(trained, args, batch_size)
        pairs = _pairs(trained, args, cut, mode)
        for rows, pair in waited(pairs, "batches", len(cut.parts)):
            for part, record in _scores(pair, max_states):
                draws = draws or Draws(part.num_states, cut)
                _add_record(draws, Chunk(part.states, rows), pair, record, _OF_STATES)
        assert draws is not None
        return draws

    with trained.at_parameters():
        return _whatever_varies(run)


class _Part(NamedTuple):
    """Some of the states of a datum."""

    states: slice
    num_states: int  # of all


def _scores(pair: Pair, max_states: int) -> Iterator[tuple[_Part, Particles]]:
    if pair.structure is None:
        record = score_paths(pair, max_states)
        num_states = len(record.log_p)
        yield _Part(slice(0, num_states), num_states), record
        return
    states = enumerate_states(pair, max_states)
    num_states = max(map(len, states.values()), default=1)
    parts = list(cut_draws(num_states, count_numbers(pair.args)))
    for part, _ in waited(parts, "blocks of states"):
        some = {name: values[part] for name, values in states.items()}
        yield _Part(part, num_states), score_states(pair, some)


def usage_of_processes(usages: Mapping[str, CodeUsage]) -> dict[str, CodeUsage]:
    """The usage of all processes of a run; of this one alone, if counts have no common size."""
    apart = {name for name, usage in usages.items() if usage.is_open or not usage.has_all_codes}
    return {
        name: usage if name in apart else usage._replace(counts=_summed(usage.counts))
        for name, usage in usages.items()
    }


def _summed(counts: np.ndarray) -> np.ndarray:
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(counts).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()


def _pairs(
    trained: Trained, args: tuple, cut: RowsCut, mode: Mode = lambda pair: pair
) -> Iterator[tuple[slice | None, Pair]]:
    """The pair with the arguments of each part of the rows; its structure is read once a size."""
    pair: Pair | None = None
    size: int | None = None
    for rows in cut.parts:
        some = cut.of(args, rows)
        count = None if rows is None else rows.stop - rows.start
        if pair is None or count != size:  # the last part may have fewer rows
            pair, size = mode(prepare_pair(trained.model, trained.guide, some, {})), count
        yield rows, pair._replace(args=some)


def _add_record(
    draws: Draws, block: Chunk, pair: Pair, record: Particles, names: tuple[str, ...]
) -> None:
    values = {name: _to_host(getattr(record, name, record.extras.get(name))) for name in names}
    notes = pair.notes
    draws.add_record(block, pair.layout.plates, values, notes.shared, notes.alone)


def _add_readings(draws: Draws, block: Chunk, readings: Readings, names: Mapping[str, str]) -> None:
    """Add what was read; `names` renames readings."""
    for reading, sites in readings.items():
        for name, array in sites.items():
            values = _to_host(array.values)
            array = NamedArray(array.dims, values, array.discrete, array.num_codes)
            draws.add(block, names.get(reading, reading), name, array)


def _to_host(values: Any) -> Any:
    """Tensors, and dicts of these, as arrays of NumPy."""
    if isinstance(values, Mapping):
        return {name: _to_host(each) for name, each in values.items()}
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
