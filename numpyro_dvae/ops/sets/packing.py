"""Pack states into words of 32 bits.

A state is one code for each of H latents, the code of latent h below ``cardinalities[h]``, a tuple
that is static under jit. A latent of v codes takes ceil(log2 v) bits; the latents of a state fill
one word after the other, from the lowest bit up, and none straddles two words. A state of 64
binary latents is then 8 bytes, not 64, to keep from step to step; an E-step works on codes.

Shapes: codes are ``(*batch, H)``, a byte each if that is enough, the same states as words
``(*batch, W)``, 32 bits each.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, UInt32

__all__ = [
    "WORD_BITS",
    "BitPlan",
    "bit_plan",
    "code_dtype",
    "num_words",
    "pack",
    "unpack",
]

WORD_BITS = 32


class BitPlan(NamedTuple):
    """Where `pack` puts the bits of a state."""

    widths: tuple[int, ...]  # bits of each latent
    shifts: tuple[int, ...]  # of each latent, within its word
    spans: tuple[slice, ...]  # the latents of each word


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


def code_dtype(cardinalities: tuple[int, ...]) -> Any:
    """The dtype of codes: one byte where it is enough, else 32 bits."""
    return jnp.uint8 if max(cardinalities) <= 256 else jnp.int32


def num_words(cardinalities: tuple[int, ...]) -> int:
    """Words of 32 bits that one packed state takes."""
    return len(bit_plan(cardinalities).spans)


def pack(
    codes: Integer[Array, "*batch H"], cardinalities: tuple[int, ...]
) -> UInt32[Array, "*batch W"]:
    """Pack states into words, as `bit_plan` says.

    Args:
        codes: The states, each code below its cardinality.
        cardinalities: Codes of each latent.

    Raises:
        ValueError: If the last axis of `codes` is not that of the latents.

    Example:
        >>> pack(jnp.array([1, 0, 1]), (2, 2, 2))
        Array([5], dtype=uint32)
    """
    _check_latents(codes, cardinalities)
    _, shifts, spans = bit_plan(cardinalities)
    shifted = codes.astype(jnp.uint32) << np.array(shifts, np.uint32)
    words = [jnp.sum(shifted[..., span], axis=-1, dtype=jnp.uint32) for span in spans]
    return jnp.stack(words, axis=-1)


def unpack(
    words: UInt32[Array, "*batch W"], cardinalities: tuple[int, ...]
) -> Integer[Array, "*batch H"]:
    """The codes that `pack` packed.

    Raises:
        ValueError: If the last axis of `words` is not that of the words of a state.

    Example:
        >>> unpack(pack(jnp.array([1, 0, 1]), (2, 2, 2)), (2, 2, 2))
        Array([1, 0, 1], dtype=uint8)
    """
    widths, shifts, spans = bit_plan(cardinalities)
    if words.shape[-1] != len(spans):
        raise ValueError(
            f"`words` must have {len(spans)} words a state on its last axis, as `cardinalities` "
            f"says; got {words.shape}."
        )
    shift = np.array(shifts, np.uint32)
    mask = np.array([(1 << width) - 1 for width in widths], np.uint32)
    codes = [(words[..., n, None] >> shift[span]) & mask[span] for n, span in enumerate(spans)]
    dtype = code_dtype(cardinalities)
    return jnp.concatenate([piece.astype(dtype) for piece in codes], axis=-1)


def _check_latents(codes: Array, cardinalities: tuple[int, ...]) -> None:
    if codes.shape[-1] != len(cardinalities):
        raise ValueError(
            f"`codes` must have a last axis of {len(cardinalities)} latents, as `cardinalities` "
            f"says; got {codes.shape}."
        )
