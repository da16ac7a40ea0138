"""E-steps of truncated posteriors: score states under a model, propose children, keep the best.

At fixed parameters the bound of a datum is the logsumexp of its members' scores; a set only ever
swaps a member for a state that scores higher, so the bound never falls.
"""

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num, UInt32
from numpyro.handlers import block, substitute

from numpyro_dvae.infer.truncated.minibatch import Minibatch
from numpyro_dvae.ops.sets.evolution import Operator, Population, chain, flip, propose, select
from numpyro_dvae.ops.sets.hashing import (
    first_occurrences,
    hash_states,
    newcomers,
    zobrist_table,
)
from numpyro_dvae.ops.sets.packing import code_dtype
from numpyro_dvae.ops.sets.ranking import merge_best
from numpyro_dvae.programs.codes import Space, decode, encode
from numpyro_dvae.programs.draw import Draw, run_program
from numpyro_dvae.programs.pair import Pair
from numpyro_dvae.programs.record import Particles, Reader
from numpyro_dvae.programs.run import run_particles

_PARENTS, _CHILDREN = 10, 9  # of the published E-step for image patches
_CACHE_BYTES, _DEVICE_BYTES = 2**21, 2**30  # of the largest temporary that scoring makes at once


class Call(NamedTuple):
    """One call of a model, and what is known of it."""

    rng_key: Array
    params: dict[str, Any]
    model: Callable  # with parameters and rows of plates
    rest: Callable  # the same
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool
    state_bytes: int = 1  # of the largest temporary that one state makes


class Evolved(NamedTuple):
    """Sets after an E-step."""

    codes: Integer[Array, "S B H"]
    is_first: Bool[Array, "S B"]  # False where a state is there already
    replaced: Float[Array, ""]  # fraction of the members that are new


class Setting(NamedTuple):
    """What operators may know of the E-step that they propose in, beside the population."""

    call: Call
    score: Callable[[Array], Float[Array, "C B"]]  # of codes (C, B, H), real ones too


_current: ContextVar[Setting | None] = ContextVar("the E-step that is under way", default=None)


def current_setting(name: str) -> Setting:
    """That of the E-step that calls operator `name`."""
    setting = _current.get()
    if setting is None:
        raise ValueError(f"{name}(...) proposes inside of an E-step, where there are data.")
    return setting


def log_weights(particles: Particles, beta: float | Array = 1.0) -> Float[Array, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    if isinstance(beta, jax.Array):
        beta = beta.astype(particles.log_likelihood.dtype)
    return particles.log_likelihood / beta + particles.log_prior - particles.log_q_pathwise


def run_states(
    call: Call,
    codes: Num[Array, "S B H"],
    reads: Mapping[str, Reader] = MappingProxyType({}),
    vectorize: bool | Callable | None = None,
) -> tuple[Particles, dict[str, Any]]:
    """The record of given states, all with the same draws of the other latents."""
    vectorize = call.vectorize if vectorize is None else vectorize
    pair = Pair(call.model, call.rest, call.args, call.kwargs, call.space.layout, vectorize)
    values = decode(call.space, codes, call.batch.sizes)
    with block():
        return run_particles(call.rng_key, pair, len(codes), reads=reads, values=values)


def score_states(
    call: Call, codes: Num[Array, "S B H"], beta: float | Array = 1.0
) -> Float[Array, "S B"]:
    """Log joints of states, in pieces that a cache holds."""

    def score(codes: Array) -> Array:
        return log_weights(run_states(call, codes)[0], beta).reshape(len(codes), -1)

    count, size = len(codes), piece_of(call, len(codes))
    if size == count:
        return score(codes)
    pieces = jnp.concatenate([codes, codes[: -count % size]]).reshape(-1, size, *codes.shape[1:])
    return jax.lax.map(score, pieces).reshape(-1, codes.shape[1])[:count]


def in_pieces(run: Callable, particles: Any, *, size: int) -> Any:
    """Run particles some at a time, and again for the gradient, in place of keeping all.

    Half the time of `jax.vmap`, where a cache does not hold what it keeps for the gradient.
    """
    return jax.lax.map(jax.checkpoint(run), particles, batch_size=size)


def piece_of(call: Call, count: int) -> int:
    """How many of so many states to run at once: few temporaries at a time, few states twice."""
    limit = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    most = min(max(limit // call.state_bytes, 1), count)
    return min(range(most, most // 2, -1), key=lambda size: -count % size)


def measured(call: Call) -> Call:
    """The call, knowing the bytes of the largest temporary that one state makes."""
    shape = 1, len(call.batch.rows), len(call.space.cardinalities)
    one = jax.ShapeDtypeStruct(shape, code_dtype(call.space.cardinalities))
    program = jax.make_jaxpr(lambda codes: log_weights(run_states(call, codes)[0]))(one)
    return call._replace(state_bytes=_largest_bytes(program.jaxpr))


def _largest_bytes(jaxpr: Any) -> int:
    """Of all arrays that a program makes on its way."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [_bytes(variable.aval) for variable in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                sizes.append(_largest_bytes(getattr(inner, "jaxpr", inner)))
    return max(sizes)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)


def hashes_of(call: Call, codes: Integer[Array, "S B H"]) -> UInt32[Array, "S B"]:
    """Keys of states: equal ones share one."""
    return hash_states(codes, zobrist_table(call.space.cardinalities))


def evolve_sets(
    rng_key: Array,
    call: Call,
    codes: Integer[Array, "S B H"],
    evolve: Operator | None,
    *,
    beta: float | Array = 1.0,
    generations: int = 1,
    sweeps: int | Array = 1,
) -> Evolved:
    """Propose children of the sets' states, and keep the S best distinct ones.

    Args:
        rng_key: Key of the proposals.
        call: What the states are of; no gradient may flow into its parameters.
        codes: The sets.
        evolve: From a population to children's codes.
        beta: Weight of the rate in the scores.
        generations: Rounds of children in a sweep, each from those of the one before.
        sweeps: How often to start from the sets; traced, if a schedule says so.
    """
    operator, cardinalities = evolve or default_evolve(len(codes)), call.space.cardinalities
    score = partial(score_states, call, beta=beta)
    hashes = hashes_of(call, codes)
    is_first = first_occurrences(hashes)

    def generation(carry: _Generation, key: Array) -> tuple[_Generation, None]:
        codes, hashes = _propose(key, call, operator, carry.parents(cardinalities))
        found, members = score(codes), carry.members
        first = newcomers(members.hashes, hashes)
        found, none = jnp.where(first, found, -jnp.inf), jnp.zeros(found.shape, bool)
        children = _Members(codes, found, hashes, first, none)
        return _Generation(_merged(members, children), children), None

    def sweep(rng_key: Array, members: _Members) -> _Members:
        keys = jax.random.split(rng_key, generations)
        carry, _ = generation(_Generation(members, members), keys[0])
        if generations > 1:
            carry = _repeated(generation, carry, keys[1:])
        return carry.members

    def run(rng_key: Array, members: _Members) -> _Members:
        scores = score(members.codes)
        members = members._replace(scores=jnp.where(members.is_first, scores, -jnp.inf))
        if isinstance(sweeps, int) and sweeps == 1:
            return sweep(rng_key, members)
        keys = partial(jax.random.fold_in, rng_key)
        return jax.lax.fori_loop(0, sweeps, lambda i, old: sweep(keys(i), old), members)

    scores = jax.eval_shape(score, codes)
    unknown, old = jnp.full(scores.shape, -jnp.inf, scores.dtype), jnp.ones(scores.shape, bool)
    members = _Members(codes, unknown, hashes, is_first, old)
    token = _current.set(Setting(call, score))
    try:
        if isinstance(sweeps, int):
            members = run(rng_key, members)
        else:
            members = _if(sweeps > 0, run, rng_key, members)
    finally:
        _current.reset(token)
    replaced = 1.0 - members.is_old.astype(scores.dtype).mean()
    return Evolved(members.codes, members.is_first, replaced)


def _if(condition: Array, step: Callable[[Array, Any], Any], rng_key: Array, state: Any) -> Any:
    """As `jax.lax.cond`, which under `jax.vmap` would take the step in any case.

    State and key change, as XLA would move what is the same in each turn out of the loop.
    """

    def turn(carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
        _, rng_key, state = carry
        return jnp.zeros((), bool), jax.random.fold_in(rng_key, 0), step(rng_key, state)

    start = jnp.asarray(condition, bool), rng_key, state
    return jax.lax.while_loop(lambda carry: carry[0], turn, start)[2]


class _Members(NamedTuple):
    """The sets in the course of an E-step, or the children of a generation."""

    codes: Integer[Array, "S B H"]
    scores: Float[Array, "S B"]
    hashes: UInt32[Array, "S B"]
    is_first: Bool[Array, "S B"]
    is_old: Bool[Array, "S B"]


def _propose(
    rng_key: Array, call: Call, operator: Operator, parents: Population
) -> tuple[Integer[Array, "C B H"], UInt32[Array, "C B"]]:
    """Codes of children, and their hashes."""
    children = propose(rng_key, operator, parents)
    codes, hashes = unmasked(call.batch, children.codes), children.hashes
    if hashes is None or call.batch.unmasked is not None:
        hashes = hashes_of(call, codes)
    return codes, hashes


def _merged(members: _Members, children: _Members) -> _Members:
    best = merge_best(members.codes, members.scores, children.codes, children.scores)
    hashes, is_first, is_old = (
        jnp.take_along_axis(jnp.concatenate(pair), best.origins, axis=0)
        for pair in zip(members[2:], children[2:], strict=True)
    )
    return _Members(best.states, best.scores, hashes, is_first, is_old)


class _Generation(NamedTuple):
    """The sets, and the children that are parents next."""

    members: _Members
    children: _Members

    def parents(self, cardinalities: tuple[int, ...]) -> Population:
        """What an operator sees."""
        codes, scores, hashes, *_ = self.children
        return Population(codes, scores, cardinalities, hashes)


def _repeated(step: Callable, carry: _Generation, keys: Array) -> _Generation:
    """As a loop that is compiled once, if each generation has the size of the one before."""
    after = jax.eval_shape(step, carry, keys[0])[0]
    if jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry):
        return jax.lax.scan(step, carry, keys)[0]
    for key in keys:
        carry, _ = step(carry, key)
    return carry


def default_evolve(num_states: int) -> Operator:
    """The published proposal: parents by their weights, children that differ in one latent."""
    return chain(select(min(_PARENTS, num_states)), flip(_CHILDREN))


def distinct(call: Call, codes: Integer[Array, "S B H"]) -> Bool[Array, "S B"]:
    """The first of equal states; duplicates must not count twice."""
    return first_occurrences(hashes_of(call, codes))


def unmasked(batch: Minibatch, codes: Integer[Array, "S B H"]) -> Integer[Array, "S B H"]:
    """Code 0 for latents that a mask takes out: states that differ in these alone are one."""
    return codes if batch.unmasked is None else jnp.where(batch.unmasked, codes, 0)


def draws_of(guide: Callable, num_draws: int) -> Operator:
    """An operator for `evolve`: children are `num_draws` draws from an amortised guide.

    The guide is called with the model's arguments, without gradient; it must sample all discrete
    sites of a datum. Its parameters are those of the `SVI`, or substituted before. Combine it with
    others by `ops.evolution.union`.

    Raises:
        ValueError: If `num_draws` is not positive, or if the guide lacks a discrete site.
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be 1 or more; got {num_draws}.")

    def operator(rng_key: Array, population: Population) -> Array:
        call = current_setting("draws_of").call
        names = [site.name for site in call.space.sites]
        program = substitute(guide, data=call.params | call.batch.subsamples)

        def draw(key: Array) -> dict[str, Array]:
            with block(), Draw(key, call.space.layout):
                found = run_program(key, program, call.args, call.kwargs)
            if missing := [name for name in names if name not in found]:
                raise ValueError(
                    "draws_of(guide) needs a guide with the model's discrete sites "
                    f"{names}; it has no {missing}."
                )
            return {name: found[name]["value"] for name in names}

        values = jax.vmap(draw)(jax.random.split(rng_key, num_draws))
        return encode(call.space, values, call.batch.sizes)

    return operator
