"""Rank the states of a set by their scores, and keep the S best.

A truncated posterior [1] gives each datum a set of S distinct states; its bound rises whenever a
state of a higher score replaces a member.

Shapes: S members (or C children, P parents) lead, B data follow, as in ``(S, B)``; a state is what
has more axes, ``(S, B, H)`` codes or ``(S, B, W)`` words. Scores are log joints in nats.

References:
    [1] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models.
        JMLR, 2022.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer, Shaped
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.sets.packing import as_numbers

__all__ = [
    "Survivors",
    "keep_best",
    "merge_best",
    "rows_at",
    "take_flat_rows",
    "take_states",
    "top_indices",
    "without_nan",
]


class Survivors(NamedTuple):
    """What `keep_best` keeps, the best first."""

    states: Integer[Tensor, "S B H"]
    """Codes or words, as the candidates were given."""
    scores: Float[Tensor, "S B"]
    origins: Int64[Tensor, "S B"]
    """Where they stood among the candidates."""


@checked
def keep_best(
    states: Integer[Tensor, "C B H"], scores: Float[Tensor, "C B"], num_states: int
) -> Survivors:
    """The states of the highest scores, best first; of equal scores, those that come first.

    Args:
        states: The candidates, as codes or words.
        scores: Their log joints; NaN ranks with -inf, but is kept as it is.
        num_states: How many to keep.

    Raises:
        ValueError: If there are fewer candidates than `num_states`.
    """
    if not 1 <= num_states <= len(states):
        raise ValueError(
            f"`num_states` must be from 1 to the number of candidates, {len(states)}; got "
            f"{num_states}."
        )
    index = top_indices(scores, num_states)
    rows = rows_at(index)
    return Survivors(take_flat_rows(states, rows), take_flat_rows(scores, rows), index)


def merge_best(
    members: Integer[Tensor, "S B H"],
    member_scores: Float[Tensor, "S B"],
    children: Integer[Tensor, "C B H"],
    child_scores: Float[Tensor, "C B"],
) -> Survivors:
    """The S best of members and children: `keep_best` of both in a row.

    Give a child the score -inf if it is none of the `newcomers`. Distinct
    members then stay distinct, and no duplicate and no NaN pushes one of them out, even if it is
    impossible itself, since of equal scores the members come first.

    Args:
        members: The present set.
        member_scores: Their log joints.
        children: What may replace them.
        child_scores: Their log joints, -inf for a duplicate.

    Returns:
        The new set; its origins count members first, so a newcomer's is S or more.
    """
    scores = torch.cat([member_scores, child_scores])
    return keep_best(torch.cat([members, children]), scores, len(members))


def take_states(
    states: Shaped[Tensor, "S B *H"], index: Int64[Tensor, "P B"]
) -> Shaped[Tensor, "P B *H"]:
    """What stands at `index` in the set of each datum: codes, words, or a number a state."""
    return take_flat_rows(states, rows_at(index))


def rows_at(index: Int64[Tensor, "P B"]) -> Int64[Tensor, "P B"]:
    """Where members of sets stand, once sets and data are one axis."""
    return index * index.shape[1] + torch.arange(index.shape[1], device=index.device)


def take_flat_rows(
    states: Shaped[Tensor, "S B *H"], rows: Int64[Tensor, "P B"]
) -> Shaped[Tensor, "P B *H"]:
    """What stands at `rows_at`: to take several arrays at one index costs one of these."""
    flat, index = states.flatten(0, 1), rows.flatten()
    numbers = as_numbers(flat) if flat.dim() == 2 else None
    if numbers is None:
        taken = flat.index_select(0, index)
    else:
        taken = numbers.index_select(0, index).view(torch.int32)
    return taken.view(*rows.shape, *states.shape[2:])


def top_indices(scores: Float[Tensor, "C B"], count: int) -> Int64[Tensor, "S B"]:
    """Indices of the largest, in order; the first of equal ones, which `topk` does not promise.

    On a CPU NumPy sorts plain integers with vector instructions, several times faster than a sort
    that also returns an order; so a key carries the place of its score in its low bits.
    """
    ranks = without_nan(scores.detach())
    if ranks.dtype != torch.float32:
        return torch.sort(ranks, dim=0, descending=True, stable=True).indices[:count]
    if ranks.device.type != "cpu":
        places = torch.arange(len(ranks), device=ranks.device)[:, None]
        return torch.topk((_ordered_bits(ranks).long() << 32) - places, count, dim=0).indices
    bits = _ordered_bits(ranks).numpy()
    keys = np.multiply(bits.T, -(2**32), order="C", dtype=np.int64)  # the largest come first
    keys += np.arange(len(ranks))
    keys.partition(count - 1, axis=1)  # with vector instructions, as integers alone
    keys = np.ascontiguousarray(keys[:, :count])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(np.ascontiguousarray(keys.T))


def without_nan(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The scores, with -inf for NaN: what they rank by."""
    return torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _ordered_bits(values: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Integers that compare as the floats do."""
    bits = (values + 0.0).view(torch.int32)  # + 0: zeros of both signs are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
