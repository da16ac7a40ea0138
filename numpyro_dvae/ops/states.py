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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

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

_WORD_BITS = 32
_HASH_BITS = 32
# XLA's sort on a CPU is 3 times slower than comparing all pairs of 400 states, as fast at 1000.
_MAX_PAIRED = 1024
_UNROLL = 16


class _Layout(NamedTuple):
    """Where the bits of a packed state lie; no latent straddles a word."""

    shifts: tuple[int, ...]  # of each latent, within its word
    spans: tuple[slice, ...]  # the latents of each word


class Survivors(NamedTuple):
    """What `keep_best` keeps, the best first."""

    codes: Integer[Array, "S B H"]
    scores: Float[Array, "S B"]
    origins: Int[Array, "S B"]
    """Where they stood among the candidates."""


def code_dtype(cardinalities: tuple[int, ...]) -> Any:
    """The dtype of unpacked codes: one byte where it is enough, else 32 bits."""
    return jnp.uint8 if max(cardinalities) <= 256 else jnp.int32


def num_words(cardinalities: tuple[int, ...]) -> int:
    """Words of 32 bits that one packed state takes."""
    return len(_layout(cardinalities).spans)


def pack(
    codes: Integer[Array, "*batch H"], cardinalities: tuple[int, ...]
) -> UInt32[Array, "*batch W"]:
    """Codes as bits, ceil(log2 v) of them for a latent of v codes."""
    _check_latents(codes, cardinalities)
    shifts, spans = _layout(cardinalities)
    shifted = codes.astype(jnp.uint32) << np.array(shifts, np.uint32)
    words = [jnp.sum(shifted[..., span], axis=-1, dtype=jnp.uint32) for span in spans]
    return jnp.stack(words, axis=-1)


def unpack(
    words: UInt32[Array, "*batch W"], cardinalities: tuple[int, ...]
) -> Integer[Array, "*batch H"]:
    """The codes that `pack` packed."""
    shifts, spans = _layout(cardinalities)
    if words.shape[-1] != len(spans):
        raise ValueError(
            f"`words` must have {len(spans)} words a state on its last axis, as `cardinalities` "
            f"says; got {words.shape}."
        )
    shift = np.array(shifts, np.uint32)
    mask = np.array([(1 << _bits(v)) - 1 for v in cardinalities], np.uint32)
    codes = [(words[..., n, None] >> shift[span]) & mask[span] for n, span in enumerate(spans)]
    dtype = code_dtype(cardinalities)
    return jnp.concatenate([piece.astype(dtype) for piece in codes], axis=-1)


def zobrist_table(cardinalities: tuple[int, ...], device: Any = None) -> UInt32[Array, " H"]:
    """The multipliers r of the hash, always the same for the same cardinalities.

    Where the bits of a state fit into 32, no two states share a hash. Otherwise two given binary
    states do for 1 in 2**32 tables of random r: a false duplicate, which costs a child.
    """
    bits = [_bits(v) for v in cardinalities]
    if sum(bits) <= _HASH_BITS:
        table = np.array([1 << sum(bits[:h]) for h in range(len(bits))], np.uint32)
    else:
        rng = np.random.default_rng(0)
        table = rng.integers(2**32, size=len(bits), dtype=np.uint32) | np.uint32(1)
    return jnp.asarray(table, device=device)


@jax.jit
def hash_states(
    codes: Integer[Array, "*batch H"], table: UInt32[Array, " H"]
) -> UInt32[Array, "*batch"]:
    """Hashes ``Σ_h z_h r_h``, equal for equal states."""

    def hash_all(codes: Array) -> Array:
        return jnp.sum(codes.astype(jnp.uint32) * table, axis=-1, dtype=jnp.uint32)

    if codes.ndim < 3:
        return hash_all(codes)
    # XLA writes out the products; in pieces they stay in a core's cache, 12 times as fast.
    piecewise = functools.partial(jax.lax.map, hash_all)
    return jax.lax.platform_dependent(codes, cpu=piecewise, default=hash_all)


def change_hash(
    hashes: UInt32[Array, "*#batch"],
    table: UInt32[Array, " H"],
    latents: Integer[Array, "*batch"],
    old: Integer[Array, "*batch"],
    new: Integer[Array, "*batch"],
) -> UInt32[Array, "*batch"]:
    """The hashes once one latent of each state has moved from an `old` to a `new` code."""
    return hashes + table[latents] * (new.astype(jnp.uint32) - old.astype(jnp.uint32))


@jax.jit
def first_occurrences(hashes: UInt32[Array, "S B"]) -> Bool[Array, "S B"]:
    """Whether no state before it has the same hash; so put members before their children."""
    if len(hashes) > _MAX_PAIRED:
        return _first_by_sort(hashes)
    return jax.lax.platform_dependent(hashes, cpu=_first_by_pairs, default=_first_by_sort)


@jax.jit
def newcomers(members: UInt32[Array, "S B"], children: UInt32[Array, "C B"]) -> Bool[Array, "C B"]:
    """Whether a child's hash is neither a member's nor that of a child before it."""
    hashes = jnp.concatenate([members, children])
    if len(hashes) > _MAX_PAIRED:
        return _first_by_sort(hashes)[len(members) :]
    late = functools.partial(_first_by_pairs, start=len(members))
    first = jax.lax.platform_dependent
    return first(hashes, cpu=late, default=lambda all: _first_by_sort(all)[len(members) :])


def keep_best(
    codes: Integer[Array, "C B H"], scores: Float[Array, "C B"], num_states: int
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
    index = _top(scores, num_states)
    return Survivors(take_states(codes, index), jnp.take_along_axis(scores, index, axis=0), index)


def merge_best(
    members: Integer[Array, "S B H"],
    member_scores: Float[Array, "S B"],
    children: Integer[Array, "C B H"],
    child_scores: Float[Array, "C B"],
) -> Survivors:
    """The S best of members and children: `keep_best` of both in a row, without copying them.

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
    num_states = len(members)
    scores = jnp.concatenate([member_scores, child_scores])
    index = _top(scores, num_states)
    old = take_states(members, jnp.minimum(index, num_states - 1))
    new = take_states(children, jnp.maximum(index - num_states, 0))
    codes = jnp.where((index < num_states)[..., None], old, new)
    return Survivors(codes, jnp.take_along_axis(scores, index, axis=0), index)


def take_states(
    codes: Integer[Array, "S B H"], index: Int[Array, "P B"]
) -> Integer[Array, "P B H"]:
    """The states of each datum that stand at `index` in its set."""
    return codes[index, jnp.arange(codes.shape[1])]


def other_codes(
    rng_key: Array,
    codes: Integer[Array, "*batch"],
    latents: Integer[Array, "*batch"],
    cardinalities: tuple[int, ...],
) -> Integer[Array, "*batch"]:
    """One of the other codes of each latent, all equally probable; the same if there is none."""
    if set(cardinalities) == {2}:
        return 1 - codes
    sizes = jnp.asarray(np.array(cardinalities, np.int32))[latents]
    uniforms = jax.random.uniform(rng_key, codes.shape, jnp.float32)
    steps = 1 + (uniforms * (sizes - 1)).astype(jnp.int32)
    return ((codes.astype(jnp.int32) + steps) % sizes).astype(codes.dtype)


@functools.partial(jax.jit, static_argnames=("num_states", "num_data", "cardinalities"))
def random_states(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    probs: Float[Array, "H V"] | None = None,
) -> Integer[Array, "S B H"]:
    """Distinct states for each datum.

    Latents are drawn independently. A state that is there already walks, one random code at a
    time, until it is new: few bits away for a sparse prior, and at hand at any size of the space.

    Args:
        rng_key: The key of the draws.
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
            f"for each latent; got {probs.shape}."
        )
    if total < 2 * num_states:
        return _random_subsets(rng_key, num_states, num_data, cardinalities, probs)
    draw_key, walk_key = jax.random.split(rng_key)
    codes = _draw_codes(draw_key, num_states, num_data, cardinalities, probs)
    return _walk_apart(walk_key, codes, cardinalities)


def _first_by_sort(hashes: UInt32[Array, "S B"]) -> Bool[Array, "S B"]:
    places = jax.lax.broadcasted_iota(jnp.int32, hashes.shape, 0)
    ordered, order = jax.lax.sort((hashes, places), dimension=0, num_keys=1, is_stable=True)
    first = jnp.concatenate([jnp.ones_like(ordered[:1], bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros_like(first).at[order, jnp.arange(hashes.shape[1])].set(first)


def _first_by_pairs(hashes: UInt32[Array, "S B"], start: int = 0) -> Bool[Array, "C B"]:
    """Of the places from `start` on: those that no place before them overwrites, last to first."""
    late = hashes[start:]
    places = start + jax.lax.broadcasted_iota(jnp.int32, late.shape, 0)

    def overwrite(step: Array, found: Array) -> Array:
        place = (len(hashes) - 1 - step).astype(places.dtype)
        return jnp.where(hashes[place] == late, place, found)

    return jax.lax.fori_loop(0, len(hashes), overwrite, places, unroll=_UNROLL) == places


def _top(scores: Float[Array, "C B"], count: int) -> Int[Array, "S B"]:
    """Indices of the largest, in order; the first of equal ones."""
    ranks = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    ranks = jnp.where(ranks == 0.0, 0.0, ranks)  # `top_k` tells zeros of both signs apart
    return jax.lax.top_k(ranks.T, count)[1].T


def _random_subsets(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    probs: Array | None,
) -> Integer[Array, "S B H"]:
    """Draws without replacement from the whole, small space: the top of perturbed logs."""
    places = np.cumprod([1, *cardinalities[:-1]])
    states = np.arange(math.prod(cardinalities))[:, None] // places % np.array(cardinalities)
    log_probs = jnp.zeros((len(states), 1))
    if probs is not None:
        cells = probs[jnp.arange(len(cardinalities)), states]
        log_probs = jnp.sum(jnp.log(cells), axis=-1, keepdims=True)
    noisy = log_probs + jax.random.gumbel(rng_key, (len(states), num_data))
    _, index = jax.lax.top_k(noisy.T, num_states)
    return jnp.asarray(states, code_dtype(cardinalities))[index.T]


def _draw_codes(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    probs: Array | None,
) -> Integer[Array, "S B H"]:
    dtype, sizes = code_dtype(cardinalities), np.array(cardinalities)
    shape = (num_states, num_data, len(cardinalities))
    uniforms = jax.random.uniform(rng_key, shape, jnp.float32)
    if probs is None:
        return (uniforms * sizes.astype(np.float32)).astype(dtype)
    possible = np.arange(probs.shape[-1]) < sizes[:, None]
    mass = jnp.cumsum(jnp.where(possible, probs, 0.0), axis=-1)
    mass = mass / mass[:, -1:]  # exactly 1 from the last possible code on

    def count(column: Array, codes: Array) -> Array:
        return codes + (uniforms >= mass[:, column]).astype(dtype)

    return jax.lax.fori_loop(0, probs.shape[-1] - 1, count, jnp.zeros(shape, dtype))


def _walk_apart(
    rng_key: Array, codes: Integer[Array, "S B H"], cardinalities: tuple[int, ...]
) -> Integer[Array, "S B H"]:
    """Change one code of every state that is there already, until all are distinct."""
    table = zobrist_table(cardinalities)
    free = jnp.asarray([h for h, v in enumerate(cardinalities) if v > 1])
    latent = jnp.arange(len(cardinalities))

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rng_key, codes, first = carry
        rng_key, latent_key, code_key = jax.random.split(rng_key, 3)
        chosen = free[jax.random.randint(latent_key, first.shape, 0, len(free))]
        old = jnp.take_along_axis(codes, chosen[..., None], axis=-1)
        new = other_codes(code_key, old, chosen[..., None], cardinalities)
        moves = ~first[..., None] & (latent == chosen[..., None])
        codes = jnp.where(moves, new, codes)
        return rng_key, codes, first_occurrences(hash_states(codes, table))

    start = rng_key, codes, first_occurrences(hash_states(codes, table))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), step, start)[1]


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
        if used + bits > _WORD_BITS:
            starts.append(latent)
            used = 0
        shifts.append(used)
        used += bits
    stops = [*starts[1:], len(cardinalities)]
    return _Layout(tuple(shifts), tuple(map(slice, starts, stops)))


def _check_latents(codes: Array, cardinalities: tuple[int, ...]) -> None:
    if codes.shape[-1] != len(cardinalities):
        raise ValueError(
            f"`codes` must have a last axis of {len(cardinalities)} latents, as `cardinalities` "
            f"says; got {codes.shape}."
        )
