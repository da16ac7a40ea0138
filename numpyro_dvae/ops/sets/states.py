"""Draw states, and random changes of them.

Codes are drawn for each latent h from 0 to ``cardinalities[h] - 1``. Sets start from
`random_states`; `other_codes`, `distinct_latents` and `perturb` are the draws that the operators
of `ops.sets.evolution` are made of.

Shapes: S states (or C children, P parents) lead, B data follow, as in ``(S, B, H)``; scores are
log joints in nats.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.sets.hashing import first_occurrences, hash_states, zobrist_table
from numpyro_dvae.ops.sets.packing import code_dtype
from numpyro_dvae.ops.sets.ranking import without_nan

__all__ = ["distinct_latents", "other_codes", "perturb", "random_states"]


@checked
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


def other_codes(
    rng_key: Array,
    codes: Integer[Array, "*batch"],
    latents: Integer[Array, "*batch"],
    cardinalities: tuple[int, ...],
) -> Integer[Array, "*batch"]:
    """One of the other codes of each latent, all equally probable; the same if there is none.

    Args:
        rng_key: The key of the draws.
        codes: What the latents hold.
        latents: Which latent each is, from 0 to H - 1.
        cardinalities: Codes of each latent.
    """
    if set(cardinalities) == {2}:
        return 1 - codes
    sizes = jnp.asarray(np.array(cardinalities, np.int32))[latents]
    uniforms = jax.random.uniform(rng_key, codes.shape, jnp.float32)
    steps = 1 + (uniforms * (sizes - 1)).astype(jnp.int32)
    return ((codes.astype(jnp.int32) + steps) % sizes).astype(codes.dtype)


def distinct_latents(
    rng_key: Array, num_children: int, free: list[int], shape: tuple[int, ...]
) -> Int[Array, "C P B"]:
    """Draws without replacement, over again after each full round (Floyd's algorithm).

    Args:
        rng_key: The key of the draws.
        num_children: C, how many to draw for each parent.
        free: The latents to draw from, in order.
        shape: (P, B).
    """
    rounds, rest = divmod(num_children, len(free))
    uniforms = jax.random.uniform(rng_key, (rest, *shape), jnp.float32)

    def draw(child: Array, chosen: Array) -> Array:
        last = len(free) - rest + child
        drawn = (uniforms[child] * (last + 1)).astype(jnp.int32)
        taken = jnp.any(chosen == drawn, axis=0)
        return chosen.at[child].set(jnp.where(taken, last, drawn))

    chosen = jnp.full((rest, *shape), -1, jnp.int32)
    if rest:
        chosen = jax.lax.fori_loop(0, rest, draw, chosen)
    full = jnp.tile(jnp.arange(len(free), dtype=jnp.int32), rounds)[:, None, None]
    chosen = jnp.concatenate([jnp.broadcast_to(full, (len(full), *shape)), chosen])
    return chosen if free == list(range(len(free))) else jnp.asarray(free)[chosen]


def perturb(rng_key: Array, scores: Float[Array, "S B"], temperature: float) -> Float[Array, "S B"]:
    """Scores whose top P are a draw without replacement (Gumbel top-k).

    Args:
        rng_key: The key of the draws.
        scores: Log joints; a NaN counts as -inf.
        temperature: Chances are ``∝ exp(scores / temperature)``; inf makes all alike, 0 gives the
            scores as they are.
    """
    if math.isinf(temperature):
        return jax.random.uniform(rng_key, scores.shape, scores.dtype)
    scores = without_nan(scores)
    if temperature == 0.0:
        return scores
    return scores / temperature + jax.random.gumbel(rng_key, scores.shape, scores.dtype)


def _random_subsets(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    probs: Array | None,
) -> Integer[Array, "S B H"]:
    """Draws without replacement from the whole, small space: the top of perturbed logs."""
    strides = np.cumprod([1, *cardinalities[:-1]])
    states = np.arange(math.prod(cardinalities))[:, None] // strides % np.array(cardinalities)
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
