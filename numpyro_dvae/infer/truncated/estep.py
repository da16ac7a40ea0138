"""E-steps of truncated posteriors: score states under a model, propose children, keep the best.

At fixed parameters the bound of a datum is the logsumexp of its members' scores; a set only ever
swaps a member for a state that scores higher, so the bound never falls. `first_words` makes the
sets that training starts from: distinct states of every datum, drawn at random.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, UInt32

from numpyro_dvae.infer.truncated.minibatch import prior_probs
from numpyro_dvae.infer.truncated.scoring import ModelCall, Scorer
from numpyro_dvae.ops.sets.evolution import Operator, Population, chain, flip, propose, select
from numpyro_dvae.ops.sets.hashing import (
    first_occurrences,
    hash_states,
    newcomers,
    zobrist_table,
)
from numpyro_dvae.ops.sets.packing import pack
from numpyro_dvae.ops.sets.ranking import merge_best
from numpyro_dvae.ops.sets.states import random_states

__all__ = [
    "Evolved",
    "default_evolve",
    "distinct",
    "evolve_sets",
    "first_words",
    "hashes_of",
    "share_replaced",
    "unmasked",
]

_PARENTS, _CHILDREN = 10, 9  # of the published E-step for image patches


class Evolved(NamedTuple):
    """Sets after an E-step."""

    states: Integer[Array, "S B H"]
    is_first: Bool[Array, "S B"]  # False where a state is there already
    replaced: Float[Array, ""]  # fraction of the members that are new


def evolve_sets(
    rng_key: Array,
    scorer: Scorer,
    states: Integer[Array, "S B H"],
    evolve: Operator | None,
    generations: int = 1,
    sweeps: int | Array = 1,
) -> Evolved:
    """Propose children of the sets' states, and keep the S best distinct ones.

    Args:
        rng_key: Key of the proposals.
        scorer: Scores the states of a call; operators find it as their population's `context`.
        states: The sets, unpacked.
        evolve: From a population to children's codes.
        generations: Rounds of children in a sweep, each from those of the one before.
        sweeps: How often to start from the sets; traced, if a schedule says so.
    """
    operator, hashes = evolve or default_evolve(len(states)), hashes_of(scorer.call, states)
    is_first, scores = first_occurrences(hashes), jax.eval_shape(scorer.of_codes, states)
    unknown, old = jnp.full(scores.shape, -jnp.inf, scores.dtype), jnp.ones(scores.shape, bool)
    members = _Members(states, unknown, hashes, is_first, old)
    run = partial(_run, scorer, partial(_sweep, scorer, operator, generations), sweeps)
    if isinstance(sweeps, int):
        members = run(rng_key, members)
    else:
        members = _if(sweeps > 0, run, rng_key, members)
    replaced = share_replaced(members.is_old, scores.dtype)
    return Evolved(members.codes, members.is_first, replaced)


def share_replaced(is_old: Bool[Array, "S B"], dtype: Any) -> Float[Array, ""]:
    """Which fraction of the members is new; 1 less a mean of ones may be below 0."""
    return (~is_old).astype(dtype).mean()


def default_evolve(num_states: int) -> Operator:
    """The published proposal: parents by their weights, children that differ in one latent."""
    return chain(select(min(_PARENTS, num_states)), flip(_CHILDREN))


def hashes_of(call: ModelCall, states: Integer[Array, "S B H"]) -> UInt32[Array, "S B"]:
    """Keys of unpacked states: equal ones share one."""
    return hash_states(states, zobrist_table(call.space.cardinalities))


def distinct(call: ModelCall, states: Integer[Array, "S B H"]) -> Bool[Array, "S B"]:
    """The first of equal states; duplicates must not count twice."""
    return first_occurrences(hashes_of(call, states))


def unmasked(call: ModelCall, states: Integer[Array, "S B H"]) -> Integer[Array, "S B H"]:
    """Code 0 for latents that a mask takes out: states that differ in these alone are one."""
    kept = call.batch.unmasked
    return states if kept is None else jnp.where(kept, states, 0)


class _Members(NamedTuple):
    """The sets in the course of an E-step, or the children of a generation."""

    codes: Integer[Array, "S B H"]
    scores: Float[Array, "S B"]
    hashes: UInt32[Array, "S B"]
    is_first: Bool[Array, "S B"]
    is_old: Bool[Array, "S B"]


class _Generation(NamedTuple):
    """The sets, and the children that are parents next."""

    members: _Members
    children: _Members


def _run(
    scorer: Scorer, sweep: Callable, sweeps: int | Array, rng_key: Array, members: _Members
) -> _Members:
    """Score the members, then some sweeps."""
    scores = scorer.of_codes(members.codes)
    members = members._replace(scores=jnp.where(members.is_first, scores, -jnp.inf))
    if isinstance(sweeps, int) and sweeps == 1:
        return sweep(rng_key, members)
    keys = partial(jax.random.fold_in, rng_key)
    return jax.lax.fori_loop(0, sweeps, lambda i, old: sweep(keys(i), old), members)


def _sweep(
    scorer: Scorer, operator: Operator, generations: int, rng_key: Array, members: _Members
) -> _Members:
    def generation(carry: _Generation, key: Array) -> tuple[_Generation, None]:
        children = _children(key, scorer, operator, carry.children, carry.members)
        return _Generation(_merged(carry.members, children), children), None

    keys = jax.random.split(rng_key, generations)
    carry, _ = generation(_Generation(members, members), keys[0])
    if generations > 1:
        carry = _repeated(generation, carry, keys[1:])
    return carry.members


def _repeated(step: Callable, carry: _Generation, keys: Array) -> _Generation:
    """As a loop that is compiled once, if each generation has the size of the one before."""
    after = jax.eval_shape(step, carry, keys[0])[0]
    if jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry):
        return jax.lax.scan(step, carry, keys)[0]
    for key in keys:
        carry, _ = step(carry, key)
    return carry


def _children(
    rng_key: Array, scorer: Scorer, operator: Operator, parents: _Members, members: _Members
) -> _Members:
    """Children of the parents, scored; -inf where a state is a member already, or there twice."""
    codes, hashes = _propose(rng_key, scorer, operator, parents)
    scores = scorer.of_codes(codes)
    first = newcomers(members.hashes, hashes)
    scores, none = jnp.where(first, scores, -jnp.inf), jnp.zeros(scores.shape, bool)
    return _Members(codes, scores, hashes, first, none)


def _propose(
    rng_key: Array, scorer: Scorer, operator: Operator, parents: _Members
) -> tuple[Integer[Array, "C B H"], UInt32[Array, "C B"]]:
    """Children and their hashes."""
    call, (codes, scores, hashes, *_) = scorer.call, parents
    population = Population(codes, scores, call.space.cardinalities, hashes, scorer)
    children = propose(rng_key, operator, population)
    if call.batch.unmasked is None and children.hashes is not None:
        return children.codes, children.hashes
    codes = unmasked(call, children.codes)
    return codes, hashes_of(call, codes)


def _merged(members: _Members, children: _Members) -> _Members:
    """The best of both."""
    best = merge_best(members.codes, members.scores, children.codes, children.scores)
    hashes, is_first, is_old = (
        jnp.take_along_axis(jnp.concatenate(pair), best.origins, axis=0)
        for pair in zip(members[2:], children[2:], strict=True)
    )
    return _Members(best.states, best.scores, hashes, is_first, is_old)


def _if(condition: Array, step: Callable[[Array, Any], Any], rng_key: Array, state: Any) -> Any:
    """As `jax.lax.cond`, which under `jax.vmap` would take the step in any case.

    State and key change, as XLA would move what is the same in each turn out of the loop.
    """

    def turn(carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        _, rng_key, state = carry
        return jnp.zeros((), bool), jax.random.fold_in(rng_key, 0), step(rng_key, state)

    start = jnp.asarray(condition, bool), rng_key, state
    return jax.lax.while_loop(lambda carry: carry[0], turn, start)[2]


_CODES_AT_ONCE = 2**24  # of the first states, drawn together


def first_words(
    rng_key: Array, call: ModelCall, num_states: int, probs: float | Float[Array, "H"] | None
) -> UInt32[Array, "N S W"]:
    """S distinct states of each of all N data, packed.

    Args:
        rng_key: Key of the draws.
        call: A call of the model, which knows N and the prior.
        num_states: S.
        probs: Probabilities of 1 of binary latents, one number or one per latent; else the
            probabilities of the codes in the prior.

    Raises:
        ValueError: If S exceeds the number of joint states, or if there are `probs` and a latent
            is not binary.
    """
    cardinalities, num_data = call.space.cardinalities, call.batch.num_data
    return _random_words(rng_key, num_states, num_data, cardinalities, _chances(call, probs))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _random_words(
    rng_key: Array,
    num_states: int,
    num_data: int,
    cardinalities: tuple[int, ...],
    chances: Float[Array, "H V"],
) -> UInt32[Array, "N S W"]:
    size = min(max(_CODES_AT_ONCE // (num_states * len(cardinalities)), 1), num_data)

    def draw(key: Array) -> Array:
        codes = random_states(key, num_states, size, cardinalities, chances)
        return pack(jnp.swapaxes(codes, 0, 1), cardinalities)

    words = jax.lax.map(draw, jax.random.split(rng_key, -(-num_data // size)))
    return words.reshape(-1, *words.shape[2:])[:num_data]


def _chances(call: ModelCall, probs: float | Float[Array, "H"] | None) -> Float[Array, "H V"]:
    """Of each latent's codes."""
    prior = prior_probs(call.batch.latents, call.space)
    if probs is None:
        return prior
    if set(call.space.cardinalities) != {2}:
        raise ValueError(
            "`probs` are those of binary latents; the model has latents of "
            f"{sorted(set(call.space.cardinalities))} codes. Leave it out: the first states "
            "are then drawn with the probabilities of the prior."
        )
    ones = jnp.broadcast_to(jnp.asarray(probs, prior.dtype), len(prior))
    return jnp.stack([1.0 - ones, ones], -1)
