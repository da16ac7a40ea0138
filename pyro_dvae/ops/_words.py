"""Operations on packed states that need no unpacking.

A set of S states of 64 binary latents is then 8 bytes a state, not 64, to select, change and merge.
"""

import functools
import sys
from itertools import accumulate

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from pyro_dvae.ops._sorting import PAIR, WORD_BITS, are_bits
from pyro_dvae.ops.states import (
    change_hash,
    hash_states,
    other_codes,
    pack,
    places_of,
    unpack,
    zobrist_table,
)


def change_latents(
    words: Int32[Tensor, "n W"],
    hashes: Int64[Tensor, " n"] | None,
    latents: Int64[Tensor, " n"],
    cardinalities: tuple[int, ...],
) -> Int64[Tensor, " n"] | None:
    """Give one latent of each state another of its codes, in place; returns the new hashes."""
    if words.shape[-1] == PAIR and are_bits(cardinalities):
        whole = words.view(torch.int64)[:, 0]  # which is the hash, too
        whole.bitwise_xor_(torch.ones_like(latents).bitwise_left_shift_(latents))
        return None if hashes is None else whole.clone()
    places = places_of(cardinalities, words.device)
    shifts = places.shifts.index_select(0, latents)
    cells = places.words.index_select(0, latents)
    cells = cells.add_(torch.arange(0, words.numel(), words.shape[-1], device=words.device))
    before = words.view(-1).index_select(0, cells)
    masks = 1 if set(cardinalities) == {2} else places.masks.index_select(0, latents)
    old = (before >> shifts) & masks
    new = other_codes(old, latents, cardinalities)
    words.view(-1).scatter_(0, cells, before + ((new - old) << shifts))
    if hashes is None:
        return None
    return change_hash(hashes, zobrist_table(cardinalities, words.device), latents, old, new)


def hash_words(
    words: Int32[Tensor, "*batch W"], cardinalities: tuple[int, ...]
) -> Int64[Tensor, "*batch"]:
    """`hash_states` of packed states: a view of them where it can be."""
    if not are_hashes(cardinalities):
        codes = unpack(words, cardinalities)
        return hash_states(codes, zobrist_table(cardinalities, words.device))
    if words.shape[-1] == PAIR and sys.byteorder == "little" and words.is_contiguous():
        return words.view(torch.int64)[..., 0]
    low = words[..., 0].long().bitwise_and_(2**WORD_BITS - 1)
    return low if words.shape[-1] == 1 else low.bitwise_or_(words[..., 1].long() << WORD_BITS)


@functools.cache
def are_hashes(cardinalities: tuple[int, ...]) -> bool:
    """Whether the words of a state, one after the other, are its hash."""
    bits = [(v - 1).bit_length() for v in cardinalities]
    places = places_of(cardinalities, torch.device("cpu"))
    starts = (places.words * WORD_BITS + places.shifts).tolist()
    return sum(bits) <= 2 * WORD_BITS and starts == [0, *accumulate(bits[:-1])]


def keep_latents(
    words: Int32[Tensor, "S B W"], kept: Bool[Tensor, "B H"], cardinalities: tuple[int, ...]
) -> Int32[Tensor, "S B W"]:
    """Code 0 for the latents that are not kept."""
    all_bits = places_of(cardinalities, words.device).masks
    return words & pack(torch.where(kept, all_bits, 0), cardinalities)
