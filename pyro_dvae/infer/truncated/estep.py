"""E-steps of truncated posteriors: score states under a model, propose children, keep the best.

At fixed parameters the bound of a datum is the logsumexp of its members' scores; a set only ever
swaps a member for a state that scores higher, so the bound never falls.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64, Integer
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer.truncated.scoring import Call, Scorer
from pyro_dvae.ops.sets.evolution import Operator, Population, chain, flip, propose, select
from pyro_dvae.ops.sets.hashing import are_hashes, first_occurrences, hash_words, newcomers
from pyro_dvae.ops.sets.packing import keep_latents, unpack
from pyro_dvae.ops.sets.ranking import merge_best, take_states
from pyro_dvae.programs.codes import encode
from pyro_dvae.programs.draw import Draw, run_program

_PARENTS, _CHILDREN = 10, 9  # of the published E-step for image patches


class Evolved(NamedTuple):
    """Sets after an E-step."""

    words: Int32[Tensor, "S B W"]
    replaced: Float[Tensor, ""]  # fraction of the members that are new


class Setting(NamedTuple):
    """What operators may know of the E-step that they propose in, beside the population."""

    call: Call
    score: Callable[[Tensor], Tensor]  # from codes (C, B, H), real ones too, to scores (C, B)


_current: ContextVar[Setting | None] = ContextVar("the E-step that is under way", default=None)


def current_setting(name: str) -> Setting:
    """That of the E-step that calls operator `name`."""
    setting = _current.get()
    if setting is None:
        raise ValueError(f"{name}(...) proposes inside of an E-step, where there are data.")
    return setting


def codes_of(call: Call, words: Int32[Tensor, "S B W"]) -> Integer[Tensor, "S B H"]:
    """Packed states, unpacked."""
    return unpack(words, call.space.cardinalities)


def distinct(call: Call, words: Int32[Tensor, "S B W"]) -> Bool[Tensor, "S B"]:
    """The first of equal states; duplicates must not count twice."""
    return first_occurrences(hash_words(words, call.space.cardinalities))


def evolve_sets(
    scorer: Scorer,
    words: Int32[Tensor, "S B W"],
    evolve: Operator | None,
    generations: int = 1,
    sweeps: int = 1,
) -> Evolved:
    """Propose children of the sets' states, and keep the S best distinct ones.

    Args:
        scorer: Scores the states of a call.
        words: The sets.
        evolve: From a population to children's codes.
        generations: Rounds of children in a sweep, each from those of the one before.
        sweeps: How often to start from the sets.
    """
    operator, call = evolve or default_evolve(len(words)), scorer.call
    hashes = hash_words(words, call.space.cardinalities)
    scores = torch.where(first_occurrences(hashes), scorer.of_words(words), -math.inf)
    is_old = torch.ones_like(scores, dtype=torch.bool)
    members = _Members(words, scores, _carried(call, hashes), is_old)
    token = _current.set(Setting(call, scorer.of_codes))
    try:
        for _ in range(sweeps):
            parents = members
            for _ in range(generations):
                words, hashes = _propose(call, operator, parents)
                first = newcomers(_hashes(call, members), hashes)
                scores = torch.where(first, scorer.of_words(words), -math.inf)
                is_old = torch.zeros_like(first)
                parents = _Members(words, scores, _carried(call, hashes), is_old)
                members = _merged(members, parents)
    finally:
        _current.reset(token)
    return Evolved(members.words, 1.0 - members.is_old.to(scores.dtype).mean())


class _Members(NamedTuple):
    """The sets in the course of an E-step, or the children of a generation."""

    words: Int32[Tensor, "S B W"]
    scores: Float[Tensor, "S B"]
    hashes: Int64[Tensor, "S B"] | None  # if they are more than the words
    is_old: Bool[Tensor, "S B"]


def _carried(call: Call, hashes: Int64[Tensor, "S B"]) -> Int64[Tensor, "S B"] | None:
    """None if the words themselves are the hashes, so that they need no moving of their own."""
    return None if are_hashes(call.space.cardinalities) else hashes


def _hashes(call: Call, members: _Members) -> Int64[Tensor, "S B"]:
    if members.hashes is None:
        return hash_words(members.words, call.space.cardinalities)
    return members.hashes


def _propose(call: Call, operator: Operator, parents: _Members) -> tuple[Tensor, Tensor]:
    """Children and their hashes."""
    cardinalities = call.space.cardinalities
    population = Population.packed(parents.words, parents.scores, cardinalities, parents.hashes)
    children = propose(operator, population)
    if call.batch.unmasked is None and children.hashes is not None:
        return children.words, children.hashes
    words = unmasked(call, children.words)
    return words, hash_words(words, cardinalities)


def _merged(members: _Members, children: _Members) -> _Members:
    best = merge_best(members.words, members.scores, children.words, children.scores)
    is_old = take_states(torch.cat([members.is_old, children.is_old]), best.origins)
    hashes = None
    if members.hashes is not None and children.hashes is not None:
        hashes = take_states(torch.cat([members.hashes, children.hashes]), best.origins)
    return _Members(best.states, best.scores, hashes, is_old)


def default_evolve(num_states: int) -> Operator:
    """The published proposal: parents by their weights, children that differ in one latent."""
    return chain(select(min(_PARENTS, num_states)), flip(_CHILDREN))


def unmasked(call: Call, words: Int32[Tensor, "S B W"]) -> Int32[Tensor, "S B W"]:
    """Code 0 for latents that a mask takes out: states that differ in these alone are one."""
    kept = call.batch.unmasked
    return words if kept is None else keep_latents(words, kept, call.space.cardinalities)


def draws_of(guide: Callable, num_draws: int) -> Operator:
    """An operator for `evolve`: children are `num_draws` draws from an amortised guide.

    The guide is called with the model's arguments, without gradient; it must sample all discrete
    sites of a datum. Combine it with others by `ops.evolution.union`.

    Raises:
        ValueError: If `num_draws` is not positive, or if the guide lacks a discrete site.
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws` must be 1 or more; got {num_draws}.")

    def operator(population: Population) -> Tensor:
        call = current_setting("draws_of").call
        space, batch = call.space, call.batch
        with torch.no_grad(), poutine.block(), poutine.replay(trace=batch.subsamples):
            with Draw(space.layout, num_draws):
                trace = run_program(guide, call.args, call.kwargs)
        names = [site.name for site in space.sites]
        if missing := [name for name in names if name not in trace.nodes]:
            raise ValueError(
                f"draws_of(guide) needs a guide with the model's discrete sites {names}; it has "
                f"no {missing}."
            )
        values: dict[str, Any] = {name: trace.nodes[name]["value"] for name in names}
        return encode(space, values, batch.sizes)

    return operator
