"""Sets of distinct states of discrete latents: packed, hashed, drawn, and cut to the S best.

A truncated posterior [1] gives each datum a set of S distinct states. A state is one code for each
of H latents, the code of latent h below ``cardinalities[h]``, a tuple that is static under jit.
At rest a state is packed into words of 32 bits; while a minibatch is worked on it is unpacked.

Two states are equal if their hashes are: ``Σ_h z_h r_h`` modulo the word, a Zobrist hash [2] with
one random odd r per latent, so a change of one code changes the hash by one product. Where all
bits of a state fit into the word, r_h is the place of latent h and the hash is the packed state.

Shapes: S states (or C children, P parents) lead, B data follow, as in ``(S, B, H)``; scores are
log joints in nats.

References:
    [1] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models.
        JMLR, 2022.
    [2] Zobrist. A new hashing method with application for game playing. 1970.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, Integer, Shaped
from torch import Tensor

from pyro_dvae.ops._sorting import (
    WORD_BITS,
    are_bits,
    first_by_keys,
    pack_bits,
    rows_at,
    take_rows,
    top_indices,
    unpack_bits,
)

__all__ = [
    "Survivors",
    "change_hash",
    "code_dtype",
    "first_occurrences",
    "hash_states",
    "keep_best",
    "merge_best",
    "newcomers",
    "num_words",
    "other_codes",
    "pack",
    "random_states",
    "take_states",
    "unpack",
    "zobrist_table",
]

_HASH_BITS = 64
_PIECE = 2**18  # codes hashed at a time, 2 MiB as 64-bit integers


class _Layout(NamedTuple):
    """Where the bits of a packed state lie; no latent straddles a word."""

    shifts: tuple[int, ...]  # of each latent, within its word
    spans: tuple[slice, ...]  # the latents of each word


class Places(NamedTuple):
    """Where the bits of each latent of a packed state lie, on a device."""

    words: Int64[Tensor, " H"]
    shifts: Int32[Tensor, " H"]
    masks: Int32[Tensor, " H"]  # all bits of a latent, in the lowest place


class Survivors(NamedTuple):
    """What `keep_best` keeps, the best first."""

    codes: Integer[Tensor, "S B H"]
    scores: Float[Tensor, "S B"]
    origins: Int64[Tensor, "S B"]
    """Where they stood among the candidates."""


def code_dtype(cardinalities: tuple[int, ...]) -> torch.dtype:
    """The dtype of unpacked codes: one byte where it is enough, else 32 bits."""
    return torch.uint8 if max(cardinalities) <= 256 else torch.int32


def num_words(cardinalities: tuple[int, ...]) -> int:
    """Words of 32 bits that one packed state takes."""
    return len(_layout(cardinalities).spans)


def pack(
    codes: Integer[Tensor, "*batch H"], cardinalities: tuple[int, ...]
) -> Int32[Tensor, "*batch W"]:
    """Codes as bits, ceil(log2 v) of them for a latent of v codes."""
    _check_latents(codes, cardinalities)
    if are_bits(cardinalities):
        return pack_bits(codes)
    spans = _layout(cardinalities).spans
    shift = places_of(cardinalities, codes.device).shifts
    words = [(codes[..., span].int() << shift[span]).sum(-1, dtype=torch.int32) for span in spans]
    return torch.stack(words, dim=-1)


def unpack(
    words: Int32[Tensor, "*batch W"], cardinalities: tuple[int, ...]
) -> Integer[Tensor, "*batch H"]:
    """The codes that `pack` packed."""
    spans = _layout(cardinalities).spans
    if words.shape[-1] != len(spans):
        raise ValueError(
            f"`words` must have {len(spans)} words a state on its last axis, as `cardinalities` "
            f"says; got {tuple(words.shape)}."
        )
    if are_bits(cardinalities):
        return unpack_bits(words, len(cardinalities))
    _, shift, mask = places_of(cardinalities, words.device)
    codes = [(words[..., n, None] >> shift[span]) & mask[span] for n, span in enumerate(spans)]
    dtype = code_dtype(cardinalities)
    return torch.cat([piece.to(dtype) for piece in codes], dim=-1)


@functools.lru_cache(maxsize=64)
def places_of(cardinalities: tuple[int, ...], device: torch.device) -> Places:
    """Where `pack` puts the latents."""
    shifts, spans = _layout(cardinalities)
    words = [n for n, span in enumerate(spans) for _ in range(span.start, span.stop)]
    return Places(
        torch.tensor(words, device=device),
        torch.tensor(shifts, dtype=torch.int32, device=device),
        torch.tensor([(1 << _bits(v)) - 1 for v in cardinalities], dtype=torch.int32).to(device),
    )


@functools.lru_cache(maxsize=64)
def zobrist_table(
    cardinalities: tuple[int, ...], device: torch.device | None = None
) -> Int64[Tensor, " H"]:
    """The multipliers r of the hash, always the same for the same cardinalities.

    Where the bits of a state fit into 64, no two states share a hash. Otherwise two given
    states do for at most 1 in 2**56 tables of random r: a false duplicate, which costs a child.
    """
    bits = [_bits(v) for v in cardinalities]
    if sum(bits) <= _HASH_BITS:
        table = np.array([1 << sum(bits[:h]) for h in range(len(bits))], np.uint64)
    else:
        rng = np.random.default_rng(0)
        table = rng.integers(2**64, size=len(bits), dtype=np.uint64) | np.uint64(1)
    return torch.from_numpy(table.view(np.int64)).to(device or "cpu")


def hash_states(
    codes: Integer[Tensor, "*batch H"], table: Int64[Tensor, " H"]
) -> Int64[Tensor, "*batch"]:
    """Hashes ``Σ_h z_h r_h``, equal for equal states."""
    rows = codes.reshape(-1, len(table))
    # As 64-bit integers codes take 8 times the memory: pieces of them stay in a core's cache.
    size = _PIECE if rows.device.type == "cpu" else 64 * _PIECE
    pieces = rows.split(max(size // len(table), 1))
    sums = [_weighted_sum(piece, table) for piece in pieces]
    return torch.cat(sums).view(codes.shape[:-1])


def change_hash(
    hashes: Int64[Tensor, "*#batch"],
    table: Int64[Tensor, " H"],
    latents: Int64[Tensor, "*batch"],
    old: Integer[Tensor, "*batch"],
    new: Integer[Tensor, "*batch"],
) -> Int64[Tensor, "*batch"]:
    """The hashes once one latent of each state has moved from an `old` to a `new` code."""
    steps = table.index_select(0, latents.flatten()).view(latents.shape)
    return hashes + steps * (new.long() - old.long())


def first_occurrences(hashes: Int64[Tensor, "S B"]) -> Bool[Tensor, "S B"]:
    """Whether no state before it has the same hash; so put members before their children."""
    if hashes.device.type == "cpu" and (found := first_by_keys(hashes)) is not None:
        return found
    ordered, order = torch.sort(hashes.T.contiguous(), dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    return torch.empty_like(first).scatter_(1, order, first).T


def newcomers(members: Int64[Tensor, "S B"], children: Int64[Tensor, "C B"]) -> Bool[Tensor, "C B"]:
    """Whether a child's hash is neither a member's nor that of a child before it."""
    return first_occurrences(torch.cat([members, children]))[len(members) :]


def keep_best(
    codes: Integer[Tensor, "C B H"], scores: Float[Tensor, "C B"], num_states: int
) -> Survivors:
    """The states of the highest scores, best first; of equal scores, those that come first.

    Args:
        codes: The candidates.
        scores: Their log joints; NaN ranks with -inf, but is kept as it is.
        num_states: How many to keep.

    Raises:
        ValueError: If there are fewer candidates than `num_states`.
    """
    if not 1 <= num_states <= len(codes):
        raise ValueError(
            f"`num_states` must be from 1 to the number of candidates, {len(codes)}; got "
            f"{num_states}."
        )
    index = top_indices(scores, num_states)
    rows = rows_at(index)
    return Survivors(take_rows(codes, rows), take_rows(scores, rows), index)


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
    codes: Shaped[Tensor, "S B *H"], index: Int64[Tensor, "P B"]
) -> Shaped[Tensor, "P B *H"]:
    """What stands at `index` in the set of each datum: codes, words, or a number a state."""
    return take_rows(codes, rows_at(index))


def other_codes(
    codes: Integer[Tensor, "*batch"],
    latents: Int64[Tensor, "*batch"],
    cardinalities: tuple[int, ...],
) -> Integer[Tensor, "*batch"]:
    """One of the other codes of each latent, all equally probable; the same if there is none."""
    if set(cardinalities) == {2}:
        return 1 - codes
    sizes = _constant(cardinalities, codes.device)[latents]
    steps = 1 + (torch.rand(codes.shape, device=codes.device) * (sizes - 1)).long()
    return ((codes + steps) % sizes).to(codes.dtype)


def random_states(
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    probs: Float[Tensor, "H V"] | None = None,
) -> Integer[Tensor, "S B H"]:
    """Distinct states for each datum, on the device of `probs` or torch's default device.

    Latents are drawn independently. A state that is there already walks, one random code at a
    time, until it is new: few bits away for a sparse prior, and at hand at any size of the space.

    Args:
        num_states: S, at most the number of states; all of them, in random order, if equal.
        num_data: B; some thousand at a time keep the temporaries small.
        cardinalities: Codes of each latent.
        probs: Probabilities of the codes of each latent, zero beyond its cardinality; uniform
            by default.

    Raises:
        ValueError: If there are fewer than `num_states` states, or `probs` has another shape.
    """
    total = math.prod(cardinalities)
    if not 1 <= num_states <= total:
        raise ValueError(
            f"`num_states` must be from 1 to the number of states, {total}; got {num_states}."
        )
    if probs is not None and probs.shape != (len(cardinalities), max(cardinalities)):
        raise ValueError(
            f"`probs` must have shape {(len(cardinalities), max(cardinalities))}, a row of codes "
            f"for each latent; got {tuple(probs.shape)}."
        )
    if total < 2 * num_states:
        return _random_subsets(num_states, num_data, cardinalities, probs)
    codes = _draw_codes(num_states, num_data, cardinalities, probs)
    table = zobrist_table(cardinalities, codes.device)
    while not (first := first_occurrences(hash_states(codes, table))).all():
        codes = torch.where(first[..., None], codes, _walk(codes, cardinalities))
    return codes


def _weighted_sum(rows: Integer[Tensor, "n H"], table: Tensor) -> Int64[Tensor, " n"]:
    # Torch has no product of integer matrices on a GPU.
    return rows.long() @ table if rows.device.type == "cpu" else (rows * table).sum(-1)


def _random_subsets(
    num_states: int, num_data: int, cardinalities: tuple[int, ...], probs: Tensor | None
) -> Integer[Tensor, "S B H"]:
    """Draws without replacement from the whole, small space: the top of perturbed logs."""
    device = None if probs is None else probs.device
    places = np.cumprod([1, *cardinalities[:-1]])
    states = np.arange(math.prod(cardinalities))[:, None] // places % np.array(cardinalities)
    states = torch.from_numpy(states).to(device or torch.get_default_device())
    log_probs = torch.zeros(len(states), 1, device=states.device)
    if probs is not None:
        cells = probs[torch.arange(len(cardinalities), device=device), states]
        log_probs = cells.log().sum(-1, keepdim=True)
    noise = torch.empty(len(states), num_data, device=states.device).exponential_().log()
    index = torch.sort(log_probs - noise, dim=0, descending=True, stable=True).indices
    return states.to(code_dtype(cardinalities))[index[:num_states]]


def _draw_codes(
    num_states: int, num_data: int, cardinalities: tuple[int, ...], probs: Tensor | None
) -> Integer[Tensor, "S B H"]:
    device = torch.get_default_device() if probs is None else probs.device
    uniforms = torch.rand(num_states, num_data, len(cardinalities), device=device)
    sizes = _constant(cardinalities, device)
    if probs is None:
        return (uniforms * sizes).to(code_dtype(cardinalities))
    possible = torch.arange(probs.shape[-1], device=device) < sizes[:, None]
    mass = torch.where(possible, probs, 0.0).cumsum(-1)
    mass = mass / mass[:, -1:]  # exactly 1 from the last possible code on
    codes = torch.zeros_like(uniforms, dtype=code_dtype(cardinalities))
    for column in mass[:, :-1].unbind(-1):
        codes += uniforms >= column
    return codes


def _walk(
    codes: Integer[Tensor, "S B H"], cardinalities: tuple[int, ...]
) -> Integer[Tensor, "S B H"]:
    """Each state with one of its codes changed."""
    free = _constant(tuple(h for h, v in enumerate(cardinalities) if v > 1), codes.device)
    latents = free[torch.randint(len(free), codes.shape[:2], device=codes.device)]
    old = codes.gather(-1, latents[..., None])
    new = other_codes(old, latents[..., None], cardinalities)
    return codes.scatter(-1, latents[..., None], new)


def _bits(cardinality: int) -> int:
    return (cardinality - 1).bit_length()


@functools.cache
def _layout(cardinalities: tuple[int, ...]) -> _Layout:
    if not cardinalities or min(cardinalities) < 1 or max(cardinalities) > 2**31:
        raise ValueError(
            "`cardinalities` must hold one number of codes, from 1 to 2**31, for each latent; got "
            f"{cardinalities}."
        )
    starts, shifts, used = [0], [], 0
    for latent, bits in enumerate(map(_bits, cardinalities)):
        if used + bits > WORD_BITS:
            starts.append(latent)
            used = 0
        shifts.append(used)
        used += bits
    stops = [*starts[1:], len(cardinalities)]
    return _Layout(tuple(shifts), tuple(map(slice, starts, stops)))


@functools.lru_cache(maxsize=256)
def _constant(
    values: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Numbers that a device is sent once, not at every step."""
    return torch.tensor(values, device=device, dtype=dtype)


def _check_latents(codes: Tensor, cardinalities: tuple[int, ...]) -> None:
    if codes.shape[-1] != len(cardinalities):
        raise ValueError(
            f"`codes` must have a last axis of {len(cardinalities)} latents, as `cardinalities` "
            f"says; got {tuple(codes.shape)}."
        )
