"""Hash states, and find those of a set that are there already.

Two states are equal if their hashes are: ``Σ_h z_h r_h`` modulo 2**64, a Zobrist hash [1] with one
random odd r per latent, so a change of one code changes the hash by one product. Where all bits of
a state fit into 64, r_h is the place of latent h and the hash is the packed state.

Shapes: S members (or C children) lead, B data follow, as in ``(S, B)``; a hash is one integer.

References:
    [1] Zobrist. A new hashing method with application for game playing. 1970.
"""

import functools
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64, Integer
from torch import Tensor

from pyro_dvae.ops.sets.packing import WORD_BITS, as_numbers, bit_plan, unpack

__all__ = [
    "are_hashes",
    "change_hash",
    "first_occurrences",
    "hash_states",
    "hash_words",
    "newcomers",
    "zobrist_table",
]

_HASH_BITS = 64
_PIECE = 2**18  # codes hashed at a time, 2 MiB as 64-bit integers
_GOLDEN = -0x61C8864680B583EB  # 2**64 over the golden ratio, odd: neighbours end far apart


@functools.lru_cache(maxsize=64)
def zobrist_table(
    cardinalities: tuple[int, ...], device: torch.device | None = None
) -> Int64[Tensor, " H"]:
    """The multipliers r of the hash, always the same for the same cardinalities.

    Where the bits of a state fit into 64, no two states share a hash. Otherwise two given
    states do for at most 1 in 2**56 tables of random r: a false duplicate, which costs a child.
    """
    widths = bit_plan(cardinalities).widths
    if sum(widths) <= _HASH_BITS:
        table = np.array([1 << sum(widths[:h]) for h in range(len(widths))], np.uint64)
    else:
        rng = np.random.default_rng(0)
        table = rng.integers(2**64, size=len(widths), dtype=np.uint64) | np.uint64(1)
    return torch.from_numpy(table.view(np.int64)).to(device or "cpu")


def hash_states(
    codes: Integer[Tensor, "*batch H"], table: Int64[Tensor, " H"]
) -> Int64[Tensor, "*batch"]:
    """Hashes ``Σ_h z_h r_h``, equal for equal states.

    Args:
        codes: The states, unpacked.
        table: Their `zobrist_table`.
    """
    rows = codes.reshape(-1, len(table))
    # As 64-bit integers codes take 8 times the memory: pieces of them stay in a core's cache.
    size = _PIECE if rows.device.type == "cpu" else 64 * _PIECE
    pieces = rows.split(max(size // len(table), 1))
    sums = [_weighted_sum(piece, table) for piece in pieces]
    return torch.cat(sums).view(codes.shape[:-1])


def hash_words(
    words: Int32[Tensor, "*batch W"], cardinalities: tuple[int, ...]
) -> Int64[Tensor, "*batch"]:
    """`hash_states` of packed states: a view of them where it can be."""
    if not are_hashes(cardinalities):
        codes = unpack(words, cardinalities)
        return hash_states(codes, zobrist_table(cardinalities, words.device))
    if (numbers := as_numbers(words)) is not None:
        return numbers
    low = words[..., 0].long().bitwise_and_(2**WORD_BITS - 1)
    return low if words.shape[-1] == 1 else low.bitwise_or_(words[..., 1].long() << WORD_BITS)


@functools.cache
def are_hashes(cardinalities: tuple[int, ...]) -> bool:
    """Whether the words of a state, one after the other, are its hash."""
    plan = bit_plan(cardinalities)
    starts = [WORD_BITS * n + shift for n, shift in zip(plan.columns, plan.shifts, strict=True)]
    return sum(plan.widths) <= _HASH_BITS and starts == [0, *accumulate(plan.widths[:-1])]


def change_hash(
    hashes: Int64[Tensor, "*#batch"],
    table: Int64[Tensor, " H"],
    latents: Int64[Tensor, "*batch"],
    old: Integer[Tensor, "*batch"],
    new: Integer[Tensor, "*batch"],
) -> Int64[Tensor, "*batch"]:
    """The hashes once one latent of each state has moved from an `old` to a `new` code.

    Args:
        hashes: Those before.
        table: The `zobrist_table` of the states.
        latents: Which latent of each state moves, from 0 to H - 1.
        old: Its code before.
        new: Its code afterwards.
    """
    steps = table.index_select(0, latents.flatten()).view(latents.shape)
    return hashes + steps * (new.long() - old.long())


def first_occurrences(hashes: Int64[Tensor, "S B"]) -> Bool[Tensor, "S B"]:
    """Whether no state before it has the same hash; so put members before their children."""
    if hashes.device.type == "cpu" and (first := _first_by_keys(hashes)) is not None:
        return first
    ordered, order = torch.sort(hashes.T.contiguous(), dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    return torch.empty_like(first).scatter_(1, order, first).T


def newcomers(members: Int64[Tensor, "S B"], children: Int64[Tensor, "C B"]) -> Bool[Tensor, "C B"]:
    """Whether a child's hash is neither a member's nor that of a child before it."""
    return first_occurrences(torch.cat([members, children]))[len(members) :]


def _weighted_sum(rows: Integer[Tensor, "n H"], table: Tensor) -> Int64[Tensor, " n"]:
    # Torch has no product of integer matrices on a GPU.
    return rows.long() @ table if rows.device.type == "cpu" else (rows * table).sum(-1)


def _first_by_keys(hashes: Int64[Tensor, "S B"]) -> Bool[Tensor, "S B"] | None:
    """`first_occurrences` from a sort of plain integers, much faster than one with an order.

    NumPy sorts them with vector instructions. A key has the place of a state in its low bits, at
    the cost of as many of the hash. None if two different hashes share those that are left.
    """
    table, count = hashes.numpy(), len(hashes)
    low = (1 << (count - 1).bit_length()) - 1
    keys = np.multiply(table.T, _GOLDEN, order="C")
    keys &= ~low
    keys |= np.arange(count)
    keys.sort(axis=1)
    high = (keys & ~low).ravel()
    again = 1 + np.flatnonzero(high[1:] == high[:-1])
    again = again[again % count != 0]  # a datum's first has none before it
    before, place = (keys.ravel()[n] & low for n in (again - 1, again))
    data = again // count
    if not np.array_equal(table[before, data], table[place, data]):
        return None
    first = np.ones(table.shape, bool)
    first[place, data] = False
    return torch.from_numpy(first)
