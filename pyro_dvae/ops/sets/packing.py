"""Pack states into words of 32 bits, and work on them as they are.

A state is one code for each of H latents, the code of latent h below ``cardinalities[h]``, a tuple
that is static under jit. A latent of v codes takes ceil(log2 v) bits; the latents of a state fill
one word after the other, from the lowest bit up, and none straddles two words. A state of 64
binary latents is then 8 bytes, not 64, to keep, to select and to change.

Shapes: codes are ``(*batch, H)``, a byte each if that is enough, the same states as words
``(*batch, W)``, 32 bits each.
"""

import functools
import sys
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int32, Int64, Integer, Shaped
from torch import Tensor
from torch.nn import functional

__all__ = [
    "WORD_BITS",
    "BitPlan",
    "as_numbers",
    "bit_plan",
    "code_dtype",
    "keep_latents",
    "num_words",
    "pack",
    "places_of",
    "unpack",
]

WORD_BITS = 32
_GATHER_BITS = 0x0102040810204080  # the lowest bit of byte h goes to bit 56 + h


class BitPlan(NamedTuple):
    """Where `pack` puts the bits of a state."""

    widths: tuple[int, ...]  # bits of each latent
    shifts: tuple[int, ...]  # of each latent, within its word
    spans: tuple[slice, ...]  # the latents of each word

    @property
    def columns(self) -> tuple[int, ...]:
        """The word that each latent is in."""
        return tuple(n for n, span in enumerate(self.spans) for _ in range(span.start, span.stop))


class Places(NamedTuple):
    """A plan on a device, an entry for each latent."""

    columns: Int64[Tensor, " H"]
    shifts: Int32[Tensor, " H"]
    masks: Int32[Tensor, " H"]  # all bits of a latent, in the lowest place


@functools.cache
def bit_plan(cardinalities: tuple[int, ...]) -> BitPlan:
    """Where the bits of states of these latents go.

    Raises:
        ValueError: If there is no latent, or one has fewer codes than 1 or more than 2**31.
    """
    if not cardinalities or min(cardinalities) < 1 or max(cardinalities) > 2**31:
        raise ValueError(
            "`cardinalities` must hold one number of codes, from 1 to 2**31, for each latent; got "
            f"{cardinalities}."
        )
    widths = tuple((v - 1).bit_length() for v in cardinalities)
    starts, shifts, used = [0], [], 0
    for latent, width in enumerate(widths):
        if used + width > WORD_BITS:
            starts.append(latent)
            used = 0
        shifts.append(used)
        used += width
    stops = [*starts[1:], len(cardinalities)]
    return BitPlan(widths, tuple(shifts), tuple(map(slice, starts, stops)))


@functools.lru_cache(maxsize=64)
def places_of(cardinalities: tuple[int, ...], device: torch.device) -> Places:
    """The `bit_plan`, sent to a device once."""
    plan = bit_plan(cardinalities)
    return Places(
        torch.tensor(plan.columns, device=device),
        torch.tensor(plan.shifts, dtype=torch.int32, device=device),
        torch.tensor([(1 << width) - 1 for width in plan.widths], dtype=torch.int32).to(device),
    )


def code_dtype(cardinalities: tuple[int, ...]) -> torch.dtype:
    """The dtype of codes: one byte where it is enough, else 32 bits."""
    return torch.uint8 if max(cardinalities) <= 256 else torch.int32


def num_words(cardinalities: tuple[int, ...]) -> int:
    """Words of 32 bits that one packed state takes."""
    return len(bit_plan(cardinalities).spans)


def pack(
    codes: Integer[Tensor, "*batch H"], cardinalities: tuple[int, ...]
) -> Int32[Tensor, "*batch W"]:
    """Pack states into words, as `bit_plan` says.

    Args:
        codes: The states, each code below its cardinality.
        cardinalities: Codes of each latent.

    Raises:
        ValueError: If the last axis of `codes` is not that of the latents.

    Example:
        >>> pack(torch.tensor([1, 0, 1]), (2, 2, 2))
        tensor([5], dtype=torch.int32)
    """
    _check_latents(codes, cardinalities)
    if _are_bits(cardinalities):
        return _pack_bits(codes)
    spans = bit_plan(cardinalities).spans
    shift = places_of(cardinalities, codes.device).shifts
    words = [(codes[..., span].int() << shift[span]).sum(-1, dtype=torch.int32) for span in spans]
    return torch.stack(words, dim=-1)


def unpack(
    words: Int32[Tensor, "*batch W"], cardinalities: tuple[int, ...]
) -> Integer[Tensor, "*batch H"]:
    """The codes that `pack` packed.

    Raises:
        ValueError: If the last axis of `words` is not that of the words of a state.

    Example:
        >>> unpack(pack(torch.tensor([1, 0, 1]), (2, 2, 2)), (2, 2, 2))
        tensor([1, 0, 1], dtype=torch.uint8)
    """
    spans = bit_plan(cardinalities).spans
    if words.shape[-1] != len(spans):
        raise ValueError(
            f"`words` must have {len(spans)} words a state on its last axis, as `cardinalities` "
            f"says; got {tuple(words.shape)}."
        )
    if _are_bits(cardinalities):
        return _unpack_bits(words, len(cardinalities))
    _, shift, mask = places_of(cardinalities, words.device)
    codes = [(words[..., n, None] >> shift[span]) & mask[span] for n, span in enumerate(spans)]
    dtype = code_dtype(cardinalities)
    return torch.cat([piece.to(dtype) for piece in codes], dim=-1)


def keep_latents(
    words: Int32[Tensor, "S B W"], kept: Bool[Tensor, "B H"], cardinalities: tuple[int, ...]
) -> Int32[Tensor, "S B W"]:
    """Code 0 for the latents of each datum that are not kept, without unpacking."""
    all_bits = places_of(cardinalities, words.device).masks
    return words & pack(torch.where(kept, all_bits, 0), cardinalities)


def as_numbers(words: Shaped[Tensor, "*batch W"]) -> Int64[Tensor, "*batch"] | None:
    """States of two words as one number each, the first word its low half: a view.

    Plain numbers are compared, changed and taken several times as fast. None where the words are
    not two, or do not lie so in memory.
    """
    is_pair = words.dtype == torch.int32 and words.shape[-1] == 2 and sys.byteorder == "little"
    return words.view(torch.int64)[..., 0] if is_pair and words.is_contiguous() else None


def _are_bits(cardinalities: tuple[int, ...]) -> bool:
    return set(cardinalities) == {2} and sys.byteorder == "little"


def _pack_bits(codes: Integer[Tensor, "*batch H"]) -> Int32[Tensor, "*batch W"]:
    """Eight codes, one a byte, become a byte by one product."""
    spare = -codes.shape[-1] % WORD_BITS
    eights = functional.pad(codes.to(torch.uint8), (0, spare)).contiguous().view(torch.int64)
    return (eights * _GATHER_BITS >> 56).to(torch.uint8).view(torch.int32)


def _unpack_bits(words: Int32[Tensor, "*batch W"], num_latents: int) -> Tensor:
    """A byte picks its eight codes, a byte each, out of a table."""
    packed = words.contiguous().view(torch.uint8).flatten().int()
    codes = _eights(words.device).index_select(0, packed).view(torch.uint8)
    return codes.view(*words.shape[:-1], -1)[..., :num_latents]


@functools.cache
def _eights(device: torch.device) -> Int64[Tensor, "256"]:
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return (bits & 1).to(torch.uint8).view(torch.int64).flatten()


def _check_latents(codes: Tensor, cardinalities: tuple[int, ...]) -> None:
    if codes.shape[-1] != len(cardinalities):
        raise ValueError(
            f"`codes` must have a last axis of {len(cardinalities)} latents, as `cardinalities` "
            f"says; got {tuple(codes.shape)}."
        )
