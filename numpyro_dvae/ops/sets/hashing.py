"""Hash states, and find those of a set that are there already.

Two states are equal if their hashes are: ``Σ_h z_h r_h`` modulo 2**32, a Zobrist hash [1] with one
random odd r per latent, so a change of one code changes the hash by one product. Where all bits of
a state fit into 32, r_h is the place of latent h and the hash is the packed state.

Shapes: S members (or C children) lead, B data follow, as in ``(S, B)``; a hash is one integer.

References:
    [1] Zobrist. A new hashing method with application for game playing. 1970.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer, UInt32

from numpyro_dvae.ops.sets.packing import bit_plan

__all__ = [
    "change_hash",
    "first_occurrences",
    "hash_states",
    "newcomers",
    "zobrist_table",
]

_HASH_BITS = 32
# XLA's sort on a CPU is 3 times slower than comparing all pairs of 400 states, as fast at 1000.
_MAX_PAIRED = 1024
_UNROLL = 16


def zobrist_table(cardinalities: tuple[int, ...], device: Any = None) -> UInt32[Array, " H"]:
    """The multipliers r of the hash, always the same for the same cardinalities.

    Where the bits of a state fit into 32, no two states share a hash. Otherwise two given binary
    states do for 1 in 2**32 tables of random r: a false duplicate, which costs a child.
    """
    widths = bit_plan(cardinalities).widths
    if sum(widths) <= _HASH_BITS:
        table = np.array([1 << sum(widths[:h]) for h in range(len(widths))], np.uint32)
    else:
        rng = np.random.default_rng(0)
        table = rng.integers(2**32, size=len(widths), dtype=np.uint32) | np.uint32(1)
    return jnp.asarray(table, device=device)


@jax.jit
def hash_states(
    codes: Integer[Array, "*batch H"], table: UInt32[Array, " H"]
) -> UInt32[Array, "*batch"]:
    """Hashes ``Σ_h z_h r_h``, equal for equal states.

    Args:
        codes: The states, unpacked.
        table: Their `zobrist_table`.
    """

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
    """The hashes once one latent of each state has moved from an `old` to a `new` code.

    Args:
        hashes: Those before.
        table: The `zobrist_table` of the states.
        latents: Which latent of each state moves, from 0 to H - 1.
        old: Its code before.
        new: Its code afterwards.
    """
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


def _first_by_sort(hashes: UInt32[Array, "S B"]) -> Bool[Array, "S B"]:
    places = jax.lax.broadcasted_iota(jnp.int32, hashes.shape, 0)
    ordered, order = jax.lax.sort((hashes, places), dimension=0, num_keys=1, is_stable=True)
    first = jnp.concatenate([jnp.ones_like(ordered[:1], bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros_like(first).at[order, jnp.arange(hashes.shape[1])].set(first)


def _first_by_pairs(hashes: UInt32[Array, "S B"], start: int = 0) -> Bool[Array, "C B"]:
    """Of the places from `start` on: those that no place before them overwrites, last to first."""
    late = hashes[start:]
    places = start + jax.lax.broadcasted_iota(jnp.int32, late.shape, 0)

    def overwrite(step: Array, earliest: Array) -> Array:
        place = (len(hashes) - 1 - step).astype(places.dtype)
        return jnp.where(hashes[place] == late, place, earliest)

    return jax.lax.fori_loop(0, len(hashes), overwrite, places, unroll=_UNROLL) == places
