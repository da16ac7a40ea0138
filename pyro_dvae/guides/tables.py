"""What an automatic guide learns of a latent: logits of each place, given the latent's parents.

A latent without parents has logits ``(*batch, *cells, P)``. With parents it has ``(*batch, F, M)``,
M = cells times P logits for each of F features: a row for each joint state of the parents, if there
are few, or else a bias and a row for each value of each parent, which are summed.

A guide starts at the prior: of each row, at what the model says of the latent where its parents are
in that state, in the mean over all else that it depends on. Of the data it knows at the start what
they rule out, of the rows that the first call holds: see `ruling`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_dvae.guides.families import Latent, PriorProbs, prior_and_beyond, vectors
from pyro_dvae.guides.joint_states import (
    LARGEST_TABLE,
    choose_states,
    num_states,
    row_of,
    value_of_state,
)
from pyro_dvae.guides.ruling import possible_values
from pyro_dvae.programs.handlers.rows import check_indices
from pyro_dvae.programs.handlers.swapping import given_run
from pyro_dvae.programs.structure.looking import only_looking

__all__ = [
    "check_known",
    "check_table",
    "given_parents",
    "num_features",
    "of_rows",
    "start_at_prior",
]

_NUM_RUNS = 64  # of the model, for the mean over what a prior depends on
_LEAST_PROB = 1e-6  # at which a value starts that the prior rules out here, but not everywhere
_NEVER = -1e4  # logit of a value that the data rule out: of probability 0, without a slope


def check_known(latents: Mapping[str, Latent], error: Exception | None = None) -> None:
    """Raise if a guide has not looked at its model, and why it could not, if it has tried."""
    if not latents:
        raise ValueError(
            "the guide has not run its model yet, and knows no latent. Pass what the model is "
            f"called with, as in guide.median(x), or call the guide first: {error}."
        ) from error


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
            f"'{latent.name}' have {shape}. Parameters of a guide before this one stay in Pyro's "
            "store: call pyro.clear_param_store() first, to start at the prior, or give those that "
            "a run with this model and plates of these sizes has made."
        )
    return table


def num_features(parents: Sequence[Latent]) -> tuple[int, bool]:
    """F, and whether each joint state of the parents has a row of its own."""
    states = math.prod(num_states(parent) for parent in parents)
    if states <= LARGEST_TABLE:
        return states, True
    return 1 + sum(math.prod(p.cells) * p.num_values for p in parents), False


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
            check_indices(plate.name, index, plate.size)
            table = table.index_select(_dim(latent, plate.dim), index)
    return table


def _dim(latent: Latent, dim: int) -> int:
    """The place of a batch dim in the parameters."""
    return len(latent.batch_shape) + dim


# -------------------------------------------------------------------------------------- the start


def start_at_prior(
    model: Callable,
    args: tuple,
    kwargs: dict,
    latents: Mapping[str, Latent],
    *,
    depends: bool,
    reached: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> dict[str, tuple[Tensor, PriorProbs]]:
    """Parameters that agree with the model's prior, and the prior's probabilities by latent.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latents: The discrete latents, in the order of the model.
        depends: Whether the distribution of any depends on a draw.
        reached: By latent that not all runs have, values of draws that lead to it.
    """
    return only_looking(lambda: _start(model, args, kwargs, latents, depends, reached))


def _start(
    model: Callable,
    args: tuple,
    kwargs: dict,
    latents: Mapping[str, Latent],
    depends: bool,
    reached: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, tuple[Tensor, PriorProbs]]:
    minibatch = given_run(model, args, kwargs, {}, {})[1]
    possible = possible_values(model, args, kwargs, latents, minibatch)
    states = choose_states([_parents(latent) for latent in latents.values()], latents)
    num_runs = max([len(column) for column in states.values()] + [_NUM_RUNS if depends else 1])
    sums: dict[str, _Sums] = {}
    for run in range(num_runs):
        chosen = {name: int(column[run % len(column)]) for name, column in states.items()}
        values = {name: value_of_state(latents[name], state) for name, state in chosen.items()}
        sites, _ = given_run(model, args, kwargs, values, minibatch)
        for name, latent in latents.items():
            if name in sites:
                sums.setdefault(name, _Sums()).add(
                    prior_and_beyond(latent, sites[name]), row_of(_parents(latent), latents, chosen)
                )
    for name in reached.keys() - sums.keys():
        sites, _ = given_run(model, args, kwargs, reached[name], minibatch)
        sums.setdefault(name, _Sums()).add(prior_and_beyond(latents[name], sites[name]), 0)
    return {n: _table(latents[n], sums[n], possible.get(n), minibatch) for n in latents}


def _parents(latent: Latent) -> tuple[str, ...]:
    """The latents whose joint states have rows of their own."""
    return latent.parents if latent.table else ()


class _Sums:
    """Sums over runs of the prior's probabilities, by row of a table."""

    def __init__(self) -> None:
        self.probs: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, probs: Tensor, row: int) -> None:
        self.probs[row] = self.probs.get(row, 0) + probs
        self.counts[row] = self.counts.get(row, 0) + 1


def _table(
    latent: Latent, sums: _Sums, possible: Tensor | None, minibatch: Mapping[str, Tensor]
) -> tuple[Tensor, PriorProbs]:
    whole = torch.stack([*sums.probs.values()]).sum(0) / sum(sums.counts.values())
    means = [  # where parents leave no such latent, of all
        sums.probs[row] / sums.counts[row] if row in sums.probs else whole
        for row in range(latent.num_features if _parents(latent) else 1)
    ]
    stacked = torch.stack(means)  # (rows, *batch, *cells, V + 1)
    mean, beyond = stacked[..., :-1], stacked[..., -1]
    seen = PriorProbs(mean.amin(0), beyond.amax(0))
    probs = torch.where(mean > 0, mean, _LEAST_PROB)
    table = _all_rows(latent, _parameters(latent, probs), minibatch)
    if possible is None:
        return table, seen
    ruled = _parameters(latent, torch.where(possible, probs, 0.0))
    return torch.where(
        _held(latent, table, minibatch), _all_rows(latent, ruled, minibatch), table
    ), seen


def _parameters(latent: Latent, probs: Tensor) -> Tensor:
    """Of probabilities; those of 0 stay so in each precision, and their logits are finite."""
    logits = (probs / probs.sum(-1, keepdim=True)).log().clamp(min=_NEVER)
    logits = logits[..., 1:] - logits[..., :1] if latent.num_logits < latent.num_values else logits
    if latent.parents:
        logits = logits.movedim(0, len(latent.batch_shape)).flatten(len(latent.batch_shape) + 1)
        if not latent.table:
            wide = logits.new_zeros(*logits.shape[:-2], latent.num_features, logits.shape[-1])
            wide[..., :1, :] = logits
            logits = wide
    else:
        logits = logits[0]
    return logits


def _held(latent: Latent, table: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Which of all rows a minibatch holds."""
    held = torch.ones((1,) * table.dim(), dtype=torch.bool, device=table.device)
    for plate in latent.plates:
        if plate.name in rows:
            shape = [1] * table.dim()
            shape[_dim(latent, plate.dim)] = plate.size
            own = torch.zeros(plate.size, dtype=torch.bool, device=table.device)
            own[torch.as_tensor(rows[plate.name], device=table.device)] = True
            held = held & own.reshape(shape)
    return held


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
