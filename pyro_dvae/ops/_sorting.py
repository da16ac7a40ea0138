"""What `states` and `evolution` do most often, in the form that a CPU does fastest.

NumPy sorts plain integers with vector instructions, several times faster than a sort that also
returns an order; so a key carries the place of its state in its low bits. Binary codes, a byte
each, are packed eight at a time.
"""

import functools
import math
import sys

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, Integer, Shaped
from torch import Tensor
from torch.nn import functional

_GOLDEN = -0x61C8864680B583EB  # 2**64 over the golden ratio, odd: neighbours end far apart
_GATHER_BITS = 0x0102040810204080  # the lowest bit of byte h goes to bit 56 + h
WORD_BITS = 32
PAIR = 2  # words that make one number of 64 bits


def uniforms(shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
    """Draws from [0, 1), multiples of 2**-24 as those of `torch.rand`, two of them at a time."""
    if device.type != "cpu":
        return torch.rand(shape, device=device)
    count = math.prod(shape)
    pairs = torch.empty(-(-count // 2), dtype=torch.int64, device=device).random_()
    bits = pairs.view(torch.int32)[:count]
    return (bits & 0xFFFFFF).float().mul_(2.0**-24).view(shape)


def replace_repeats(draws: Integer[Tensor, "C *batch"], last: int) -> None:
    """Floyd's algorithm, in place: a draw that is there already becomes the last of its range.

    Draw n is from 0 to ``last + n``.
    """
    for n in range(1, len(draws)):
        if draws.device.type == "cpu":
            before, draw = draws[:n].numpy(), draws[n].numpy()
            np.putmask(draw, np.logical_or.reduce(before == draw, axis=0), last + n)
        else:
            draws[n].masked_fill_((draws[:n] == draws[n]).any(0), last + n)


def top_indices(scores: Float[Tensor, "C B"], count: int) -> Int64[Tensor, "S B"]:
    """Indices of the largest, in order; the first of equal ones, which `topk` does not promise."""
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
    """NaN ranks with -inf."""
    return torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _ordered_bits(values: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Integers that compare as the floats do."""
    bits = (values + 0.0).view(torch.int32)  # + 0: zeros of both signs are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def first_by_keys(hashes: Int64[Tensor, "S B"]) -> Bool[Tensor, "S B"] | None:
    """`first_occurrences` from a sort of plain integers, much faster than one with an order.

    A key has the place of a state in its low bits, at the cost of as many of the hash.
    None if two different hashes share those that are left.
    """
    table, count = hashes.numpy(), len(hashes)
    low = (1 << (count - 1).bit_length()) - 1
    keys = np.multiply(table.T, _GOLDEN, order="C")
    keys &= ~low
    keys |= np.arange(count)
    keys.sort(axis=1)
    kept = (keys & ~low).ravel()
    again = 1 + np.flatnonzero(kept[1:] == kept[:-1])
    again = again[again % count != 0]  # a datum's first has none before it
    before, place = (keys.ravel()[n] & low for n in (again - 1, again))
    data = again // count
    if not np.array_equal(table[before, data], table[place, data]):
        return None
    first = np.ones(table.shape, bool)
    first[place, data] = False
    return torch.from_numpy(first)


def rows_at(index: Int64[Tensor, "P B"]) -> Int64[Tensor, "P B"]:
    """Where members of sets stand, once sets and data are one axis."""
    return index * index.shape[1] + torch.arange(index.shape[1], device=index.device)


def take_rows(
    states: Shaped[Tensor, "S B *H"], rows: Int64[Tensor, "P B"]
) -> Shaped[Tensor, "P B *H"]:
    """What stands at `rows_at`."""
    flat, index = states.flatten(0, 1), rows.flatten()
    if states.dtype == torch.int32 and states.shape[2:] == (PAIR,) and flat.is_contiguous():
        # Plain numbers are taken three times as fast.
        taken = flat.view(torch.int64)[:, 0].index_select(0, index).view(torch.int32)
    else:
        taken = flat.index_select(0, index)
    return taken.view(*rows.shape, *states.shape[2:])


def are_bits(cardinalities: tuple[int, ...]) -> bool:
    return set(cardinalities) == {2} and sys.byteorder == "little"


def pack_bits(codes: Integer[Tensor, "*batch H"]) -> Int32[Tensor, "*batch W"]:
    """Eight codes, one a byte, become a byte by one product."""
    spare = -codes.shape[-1] % WORD_BITS
    eights = functional.pad(codes.to(torch.uint8), (0, spare)).contiguous().view(torch.int64)
    return (eights * _GATHER_BITS >> 56).to(torch.uint8).view(torch.int32)


def unpack_bits(words: Int32[Tensor, "*batch W"], num_latents: int) -> Tensor:
    """A byte picks its eight codes, a byte each, out of a table."""
    packed = words.contiguous().view(torch.uint8).flatten().int()
    codes = _eights(words.device).index_select(0, packed).view(torch.uint8)
    return codes.view(*words.shape[:-1], -1)[..., :num_latents]


@functools.cache
def _eights(device: torch.device) -> Int64[Tensor, "256"]:
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return (bits & 1).to(torch.uint8).view(torch.int64).flatten()
