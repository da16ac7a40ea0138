"""What an automatic guide learns of a latent: logits of each place, given the latent's parents.

A latent without parents has logits ``(*batch, *cells, P)``. With parents it has ``(*batch, F, M)``,
M = cells times P logits for each of F features: a row for each joint state of the parents, if there
are few, or else a bias and a row for each value of each parent, which are summed.

A guide starts at the prior: of each row, at what the model says of the latent where its parents are
in that state, in the mean over all else that it depends on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_dvae.guides.families import Latent, Prior, prior, value_of, vectors
from pyro_dvae.programs.handlers.swapping import given_run
from pyro_dvae.programs.structure.looking import only_looking

__all__ = [
    "LARGEST_TABLE",
    "check_table",
    "choose_states",
    "given_parents",
    "num_features",
    "of_rows",
    "row_of",
    "start_at_prior",
]

LARGEST_TABLE = 64  # joint states of a latent's parents; with more, their values are summed over
_NUM_RUNS = 64  # of the model, for the mean over what a prior depends on
_LEAST_PROB = 1e-6  # at which a value starts that the prior rules out here, but not everywhere


def check_table(latent: Latent, param: str, table: Tensor) -> Tensor:
    """The parameters, which may be given: those of another model need not fit the latent's places.

    Raises:
        ValueError: If they have another shape.
    """
    of_place = (*latent.cells, latent.num_logits)
    if latent.parents:
        of_place = (latent.num_features, math.prod(of_place))
    shape = (*latent.batch_shape, *of_place)
    if tuple(table.shape) != shape:
        raise ValueError(
            f"parameter '{param}' has shape {tuple(table.shape)}, but the guide's logits of site "
            f"'{latent.name}' have {shape}. Give those that a run with this model and plates of "
            "these sizes has made, or leave it out, to start at the prior."
        )
    return table


def num_features(parents: Sequence[Latent]) -> tuple[int, bool]:
    """F, and whether each joint state of the parents has a row of its own."""
    states = math.prod(_num_states(parent) for parent in parents)
    if states <= LARGEST_TABLE:
        return states, True
    return 1 + sum(math.prod(p.cells) * p.num_values for p in parents), False


def _num_states(latent: Latent) -> int:
    """Joint states of the cells of one place; those of very many cells are not counted."""
    return latent.num_values ** min(math.prod(latent.cells), 64)


def given_parents(
    latent: Latent,
    table: Tensor,
    latents: Mapping[str, Latent],
    values: Mapping[str, Tensor],
) -> Float[Tensor, "*batch_cells P"]:
    """Logits of a latent at these values of its parents."""
    if not latent.parents:
        return table
    parents = [(latents[name], values[name]) for name in latent.parents]
    rows = _features(latent, [_flat(parent, value) for parent, value in parents])
    logits = (rows.to(table.dtype).unsqueeze(-1) * table).sum(-2)
    return logits.reshape(*logits.shape[:-1], *latent.cells, latent.num_logits)


def _flat(parent: Latent, value: Tensor) -> Num[Tensor, "*batch cells V"]:
    hot = vectors(parent, value)
    batch = hot.shape[: hot.dim() - len(parent.cells) - 1]
    return hot.reshape(*batch, -1, parent.num_values)


def _features(latent: Latent, parents: Sequence[Tensor]) -> Num[Tensor, "*batch F"]:
    """The joint state of the parents as a one-hot vector, or a one and those of each parent."""
    if not latent.table:
        flat = [hot.flatten(-2) for hot in parents]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        ones = flat[0].new_ones(1).expand(*shape, 1)
        return torch.cat([ones, *(part.expand(*shape, part.shape[-1]) for part in flat)], -1)
    rows: Any = None
    for hot in parents:
        for cell in hot.unbind(-2):
            rows = cell if rows is None else (rows.unsqueeze(-1) * cell.unsqueeze(-2)).flatten(-2)
    return rows


def of_rows(latent: Latent, table: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """The parameters of the rows of plates that a minibatch holds.

    Raises:
        ValueError: If a row is out of the range of its plate.
    """
    for plate in latent.plates:
        if plate.name in rows:
            index = torch.as_tensor(rows[plate.name]).to(table.device)
            _check_rows(plate.name, index, plate.size)
            table = table.index_select(_dim(latent, plate.dim), index)
    return table


def _dim(latent: Latent, dim: int) -> int:
    """The place of a batch dim in the parameters."""
    return len(latent.batch_shape) + dim


def _check_rows(name: str, index: Tensor, size: int) -> None:
    """On a CPU: another device would have to be waited for."""
    if index.device.type == "cpu" and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"plate '{name}' has size {size}, so its rows are from 0 to {size - 1}; got rows "
                f"from {low} to {high}. Check `subsample`, the rows of this minibatch."
            )


# -------------------------------------------------------------------------------------- the start


def start_at_prior(
    model: Callable, args: tuple, kwargs: dict, latents: Mapping[str, Latent], *, depends: bool
) -> dict[str, tuple[Tensor, Prior]]:
    """Parameters that agree with the model's prior, and the prior's probabilities by latent.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latents: The discrete latents, in the order of the model.
        depends: Whether the distribution of any depends on a draw.
    """
    return only_looking(lambda: _start(model, args, kwargs, latents, depends))


def _start(
    model: Callable, args: tuple, kwargs: dict, latents: Mapping[str, Latent], depends: bool
) -> dict[str, tuple[Tensor, Prior]]:
    states = choose_states(latents)
    num_runs = max([len(column) for column in states.values()] + [_NUM_RUNS if depends else 1])
    sums: dict[str, _Sums] = {}
    minibatch: dict[str, Tensor] = {}
    for run in range(num_runs):
        chosen = {name: int(column[run % len(column)]) for name, column in states.items()}
        values = {name: _value_of_state(latents[name], state) for name, state in chosen.items()}
        sites, minibatch = given_run(model, args, kwargs, values, minibatch)
        for name, latent in latents.items():
            if name in sites:
                sums.setdefault(name, _Sums()).add(
                    prior(latent, sites[name]), row_of(latent, latents, chosen)
                )
    return {name: _table(latents[name], total, minibatch) for name, total in sums.items()}


def choose_states(latents: Mapping[str, Latent]) -> dict[str, np.ndarray]:
    """States of the latents that others have as parents, for some runs of the model.

    Each row of each table is met by one of the runs at least.
    """
    tabled = [latent for latent in latents.values() if latent.parents and latent.table]
    names = list(dict.fromkeys(name for latent in tabled for name in latent.parents))
    rng, runs = np.random.default_rng(0), list[dict[str, int]]()
    missing = {latent.name: set(range(latent.num_features)) for latent in tabled}
    while any(missing.values()):
        chosen = {name: int(rng.integers(_num_states(latents[name]))) for name in names}
        for latent in tabled:
            missing[latent.name].discard(row_of(latent, latents, chosen))
        runs.append(chosen)
    return {name: np.array([run[name] for run in runs]) for name in names}


def row_of(latent: Latent, latents: Mapping[str, Latent], chosen: Mapping[str, int]) -> int:
    """The row of a table where the parents are in these states."""
    row = 0
    for name in latent.parents if latent.table else ():
        row = row * _num_states(latents[name]) + chosen[name]
    return row


def _value_of_state(latent: Latent, state: int) -> Tensor:
    """A joint state of the cells as their values, the same at each place."""
    codes = np.unravel_index(state, (latent.num_values,) * math.prod(latent.cells))
    return value_of(latent, torch.tensor(np.array(codes)).reshape(latent.cells))


class _Sums:
    """Sums over runs of the prior's probabilities, by row of a table."""

    def __init__(self) -> None:
        self.cut_off: Tensor = torch.zeros(())
        self.probs: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, found: Prior, row: int) -> None:
        self.probs[row] = self.probs.get(row, 0) + found.probs
        self.counts[row] = self.counts.get(row, 0) + 1
        self.cut_off = torch.maximum(self.cut_off.to(found.cut_off), found.cut_off)


def _table(latent: Latent, sums: _Sums, minibatch: Mapping[str, Tensor]) -> tuple[Tensor, Prior]:
    means = [sums.probs[row] / sums.counts[row] for row in sorted(sums.probs)]
    mean = torch.stack(means)  # (rows, *batch, *cells, V)
    logits = _logits(latent, mean)
    if latent.parents:
        logits = logits.movedim(0, len(latent.batch_shape)).flatten(len(latent.batch_shape) + 1)
        if not latent.table:
            wide = logits.new_zeros(*logits.shape[:-2], latent.num_features, logits.shape[-1])
            wide[..., :1, :] = logits
            logits = wide
    else:
        logits = logits[0]
    return _all_rows(latent, logits, minibatch), Prior(mean.amin(0), sums.cut_off)


def _logits(latent: Latent, probs: Tensor) -> Tensor:
    """Of probabilities, none of which is 0."""
    probs = torch.where(probs > 0, probs, _LEAST_PROB)
    logits = (probs / probs.sum(-1, keepdim=True)).log()
    return logits[..., 1:] - logits[..., :1] if latent.num_logits == 1 else logits


def _all_rows(latent: Latent, table: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Parameters of all rows of the plates: those of a minibatch, again and again elsewhere."""
    for plate in latent.plates:
        dim = _dim(latent, plate.dim)
        held = table.shape[dim]
        index = torch.arange(plate.size, device=table.device) % held
        if plate.name in rows:
            index[torch.as_tensor(rows[plate.name])] = torch.arange(held, device=table.device)
        table = table.index_select(dim, index)
    return table
