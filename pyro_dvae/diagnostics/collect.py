"""Draw from a trained guide, or list its states, and read what is wanted, block by block.

What is run at once is bounded: draws come in blocks, and rows of the data in batches if asked for.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.draws import (
    PRIOR_NAMES,
    RECORD,
    Block,
    Draws,
    check_data,
    count_values,
    cut_draws,
    cut_rows,
)
from pyro_dvae.diagnostics.readings import (
    Pair,
    Readings,
    enumerate_states,
    posterior_sites,
    prepare_pair,
    prior_sites,
    score_states,
)
from pyro_dvae.diagnostics.trained import Trained, as_trained
from pyro_dvae.fit.data import take_rows
from pyro_dvae.programs.record import Particles

__all__ = ["collect", "collect_states", "summed_over_processes"]


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
    num_rows = check_data(args, batch_size)
    draws = Draws(num_draws, num_rows)
    with trained.at_parameters():
        for rows, pair in _pairs(trained, args, cut_rows(num_rows, batch_size)):
            for some, size in cut_draws(num_draws, count_values(pair.args)):
                block = Block(some, rows)
                record, readings = posterior_sites(pair, size, wanted)
                draws.add_record(block, pair.layout.plates, _as_numpy(record, RECORD))
                _add_readings(draws, block, readings, {})
                if prior:
                    _add_readings(draws, block, prior_sites(pair, size), PRIOR_NAMES)
    return draws


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
    num_rows = check_data(args, batch_size)
    draws: Draws | None = None
    with trained.at_parameters():
        for rows, pair in _pairs(trained, args, cut_rows(num_rows, batch_size)):
            states = enumerate_states(pair, max_states)
            num_states = len(next(iter(states.values())))
            draws = draws or Draws(num_states, num_rows)
            for part, _ in cut_draws(num_states, count_values(pair.args)):
                some = {name: values[part] for name, values in states.items()}
                record = _as_numpy(score_states(pair, some), (*RECORD, "log_draw", "silenced"))
                draws.add_record(Block(part, rows), pair.layout.plates, record)
    assert draws is not None
    return draws


def summed_over_processes(counts: np.ndarray) -> np.ndarray:
    """Counts of all processes of a distributed run; of this one, if it is alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(counts).to(device)
    distributed.all_reduce(total)
    return total.cpu().numpy()


def _pairs(
    trained: Trained, args: tuple, parts: list[slice | None]
) -> Iterator[tuple[slice | None, Pair]]:
    """The pair with the arguments of each part of the rows; its structure is read once."""
    pair: Pair | None = None
    for rows in parts:
        some = args if rows is None else take_rows(args, rows)
        pair = pair and pair._replace(args=some)
        pair = pair or prepare_pair(trained.model, trained.guide, some, {})
        yield rows, pair


def _as_numpy(record: Particles, names: tuple[str, ...]) -> dict[str, np.ndarray | None]:
    values = {name: getattr(record, name, record.extras.get(name)) for name in names}
    return {name: None if v is None else _to_host(v) for name, v in values.items()}


def _add_readings(draws: Draws, block: Block, readings: Readings, names: Mapping[str, str]) -> None:
    """Add what was read; `names` renames readings."""
    for reading, sites in readings.items():
        for name, array in sites.items():
            values = _to_host(array.values)
            array = NamedArray(array.dims, values, array.discrete, array.num_codes)
            draws.add(block, names.get(reading, reading), name, array)


def _to_host(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
