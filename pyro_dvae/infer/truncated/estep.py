"""E-steps of truncated posteriors: score states under a model, propose children, keep the best.

At fixed parameters the bound of a datum is the logsumexp of its members' scores; a set only ever
swaps a member for a state that scores higher, so the bound never falls. `first_words` makes the
sets that training starts from: distinct states of every datum, drawn at random.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from pyro_dvae.infer.truncated.minibatch import prior_probs
from pyro_dvae.infer.truncated.scoring import ModelCall, Scorer
from pyro_dvae.ops.sets.evolution import Operator, Population, chain, flip, propose, select
from pyro_dvae.ops.sets.hashing import are_hashes, first_occurrences, hash_words, newcomers
from pyro_dvae.ops.sets.packing import keep_latents, num_words, pack
from pyro_dvae.ops.sets.ranking import merge_best, take_states
from pyro_dvae.ops.sets.states import random_states

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

    states: Int32[Tensor, "S B W"]
    replaced: Float[Tensor, ""]  # fraction of the members that are new


def evolve_sets(
    scorer: Scorer,
    states: Int32[Tensor, "S B W"],
    evolve: Operator | None,
    generations: int = 1,
    sweeps: int = 1,
) -> Evolved:
    """Propose children of the sets' states, and keep the S best distinct ones.

    Args:
        scorer: Scores the states of a call; operators find it as their population's `context`.
        states: The sets, packed.
        evolve: From a population to children's codes.
        generations: Rounds of children in a sweep, each from those of the one before.
        sweeps: How often to start from the sets.
    """
    operator, hashes = evolve or default_evolve(len(states)), hashes_of(scorer.call, states)
    scores = torch.where(first_occurrences(hashes), scorer.of_words(states), -math.inf)
    is_old = torch.ones_like(scores, dtype=torch.bool)
    members = _Members(states, scores, _carried(scorer.call, hashes), is_old)
    for _ in range(sweeps):
        members = _sweep(scorer, operator, members, generations)
    return Evolved(members.words, share_replaced(members.is_old, scores.dtype))


def share_replaced(is_old: Bool[Tensor, "S B"], dtype: Any) -> Float[Tensor, ""]:
    """Which fraction of the members is new; 1 less a mean of ones may be below 0."""
    return (~is_old).to(dtype).mean()


def default_evolve(num_states: int) -> Operator:
    """The published proposal: parents by their weights, children that differ in one latent."""
    return chain(select(min(_PARENTS, num_states)), flip(_CHILDREN))


def hashes_of(call: ModelCall, states: Int32[Tensor, "S B W"]) -> Int64[Tensor, "S B"]:
    """Keys of packed states: equal ones share one."""
    return hash_words(states, call.space.cardinalities)


def distinct(call: ModelCall, states: Int32[Tensor, "S B W"]) -> Bool[Tensor, "S B"]:
    """The first of equal states; duplicates must not count twice."""
    return first_occurrences(hashes_of(call, states))


def unmasked(call: ModelCall, states: Int32[Tensor, "S B W"]) -> Int32[Tensor, "S B W"]:
    """Code 0 for latents that a mask takes out: states that differ in these alone are one."""
    kept = call.batch.unmasked
    return states if kept is None else keep_latents(states, kept, call.space.cardinalities)


class _Members(NamedTuple):
    """The sets in the course of an E-step, or the children of a generation."""

    words: Int32[Tensor, "S B W"]
    scores: Float[Tensor, "S B"]
    hashes: Int64[Tensor, "S B"] | None  # if they are more than the words
    is_old: Bool[Tensor, "S B"]


def _carried(call: ModelCall, hashes: Int64[Tensor, "S B"]) -> Int64[Tensor, "S B"] | None:
    """None if the words themselves are the hashes, so that they need no moving of their own."""
    return None if are_hashes(call.space.cardinalities) else hashes


def _sweep(scorer: Scorer, operator: Operator, members: _Members, generations: int) -> _Members:
    parents = members
    for _ in range(generations):
        parents = _children(scorer, operator, parents, members)
        members = _merged(members, parents)
    return members


def _children(scorer: Scorer, operator: Operator, parents: _Members, members: _Members) -> _Members:
    """Children of the parents, scored; -inf where a state is a member already, or there twice."""
    words, hashes = _propose(scorer, operator, parents)
    known = hashes_of(scorer.call, members.words) if members.hashes is None else members.hashes
    first = newcomers(known, hashes)
    scores = torch.where(first, scorer.of_words(words), -math.inf)
    return _Members(words, scores, _carried(scorer.call, hashes), torch.zeros_like(first))


def _propose(
    scorer: Scorer, operator: Operator, parents: _Members
) -> tuple[Int32[Tensor, "C B W"], Int64[Tensor, "C B"]]:
    """Children and their hashes."""
    call, (words, scores, hashes, _) = scorer.call, parents
    population = Population.packed(words, scores, call.space.cardinalities, hashes, scorer)
    children = propose(operator, population)
    if call.batch.unmasked is None and children.hashes is not None:
        return children.words, children.hashes
    words = unmasked(call, children.words)
    return words, hashes_of(call, words)


def _merged(members: _Members, children: _Members) -> _Members:
    """The best of both."""
    best = merge_best(members.words, members.scores, children.words, children.scores)
    is_old = take_states(torch.cat([members.is_old, children.is_old]), best.origins)
    hashes = None
    if members.hashes is not None and children.hashes is not None:
        hashes = take_states(torch.cat([members.hashes, children.hashes]), best.origins)
    return _Members(best.states, best.scores, hashes, is_old)


_CODES_AT_ONCE = 2**22  # of the first states that are drawn together: 16 MB of random numbers


def first_words(
    call: ModelCall, num_states: int, probs: float | Float[Tensor, "H"] | None
) -> Int32[Tensor, "N S W"]:
    """S distinct states of each of all N data, packed.

    Args:
        call: A call of the model, which knows N and the prior.
        num_states: S.
        probs: Probabilities of 1 of binary latents, one number or one per latent; else the
            probabilities of the codes in the prior.

    Raises:
        ValueError: If S exceeds the number of joint states, or if there are `probs` and a latent
            is not binary.
    """
    cardinalities, num_data = call.space.cardinalities, call.batch.num_data
    chances = _chances(call, probs)
    words = torch.empty(
        (num_data, num_states, num_words(cardinalities)),
        dtype=torch.int32,
        device=chances.device,
    )
    for part in words.split(max(1, _CODES_AT_ONCE // (num_states * len(cardinalities)))):
        codes = random_states(num_states, len(part), cardinalities, chances)
        part.copy_(pack(codes.transpose(0, 1), cardinalities))
    return words


def _chances(call: ModelCall, probs: float | Float[Tensor, "H"] | None) -> Float[Tensor, "H V"]:
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
    ones = torch.as_tensor(probs, dtype=prior.dtype, device=prior.device).expand(len(prior))
    return torch.stack([1.0 - ones, ones], -1)
