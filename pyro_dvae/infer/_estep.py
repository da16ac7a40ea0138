"""E-steps of truncated posteriors: score states under a model, propose children, keep the best.

At fixed parameters the bound of a datum is the logsumexp of its members' scores; a set only ever
swaps a member for a state that scores higher, so the bound never falls.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int64, Integer, Num
from pyro import poutine
from torch import Tensor

from pyro_dvae.infer._minibatch import Minibatch, given
from pyro_dvae.infer.layout import DrawTogether
from pyro_dvae.infer.particles import Particles, run_particles
from pyro_dvae.infer.space import Space, decode, encode
from pyro_dvae.ops.evolution import Operator, Population, chain, flip, propose, select
from pyro_dvae.ops.states import (
    first_occurrences,
    hash_states,
    merge_best,
    newcomers,
    zobrist_table,
)

_CODES_AT_ONCE = 2**21  # that are scored together: 8 MB as floats, which a cache holds
_PARENTS, _CHILDREN = 10, 9  # of the published E-step for image patches


class Call(NamedTuple):
    """One call of a model, and what is known of it."""

    model: Callable
    args: tuple
    kwargs: dict
    space: Space
    batch: Minibatch
    vectorize: bool


class Evolved(NamedTuple):
    """Sets after an E-step."""

    codes: Integer[Tensor, "S B H"]
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


def log_weights(particles: Particles, beta: float | Tensor = 1.0) -> Float[Tensor, "S *plates"]:
    """Unnormalised ``log q``: the beta-ELBO's best weights of given states."""
    return particles.log_likelihood / beta + particles.log_prior - particles.log_q_rest


def score_states(
    call: Call, codes: Num[Tensor, "S B H"], own: poutine.Trace, beta: float | Tensor = 1.0
) -> Float[Tensor, "S B"]:
    """Log joints of states, given the draws of the other latents in `own`.

    No gradient, but for codes that ask for it.
    """
    layout, sizes = call.space.layout, call.batch.sizes
    rest, parts = given(own, layout.nesting), []
    rest = {name: value for name, value in rest.items() if name in call.batch.latents}
    with (
        torch.set_grad_enabled(codes.requires_grad),
        poutine.block(),
        poutine.replay(trace=call.batch.subsamples),
        pyro.validation_enabled(False),  # the pass that makes the bound validates once
    ):
        for part in codes.chunk(math.ceil(codes.numel() / _CODES_AT_ONCE)):
            particles = run_particles(
                call.model,
                None,
                call.args,
                call.kwargs,
                layout,
                len(part),
                vectorize=call.vectorize,
                values=decode(call.space, part, sizes) | rest,
            )
            parts.append(log_weights(particles, beta).flatten(1))
    return torch.cat(parts)


def hashes_of(call: Call, codes: Integer[Tensor, "S B H"]) -> Int64[Tensor, "S B"]:
    """Hashes of states; `first_occurrences` of them are the distinct states."""
    return hash_states(codes, zobrist_table(call.space.cardinalities, codes.device))


def evolve_sets(
    call: Call,
    codes: Integer[Tensor, "S B H"],
    score: Callable[[Tensor], Tensor],
    evolve: Operator | None,
    generations: int = 1,
    sweeps: int = 1,
) -> Evolved:
    """Propose children of the sets' states, and keep the S best distinct ones.

    Args:
        call: What the states are of.
        codes: The sets.
        score: From codes ``(C, B, H)`` to scores ``(C, B)``.
        evolve: From a population to children's codes.
        generations: Rounds of children in a sweep, each from those of the one before.
        sweeps: How often to start from the sets.
    """
    operator, cardinalities = evolve or default_evolve(len(codes)), call.space.cardinalities
    hashes = hashes_of(call, codes)
    scores = torch.where(first_occurrences(hashes), score(codes), -math.inf)
    members = _Members(codes, scores, hashes, torch.ones_like(hashes, dtype=torch.bool))
    token = _current.set(Setting(call, score))
    try:
        for _ in range(sweeps):
            parents = members
            for _ in range(generations):
                population = Population(*parents[:2], cardinalities, parents.hashes)
                children, hashes = _propose(call, operator, population)
                first = newcomers(members.hashes, hashes)
                scores = torch.where(first, score(children), -math.inf)
                parents = _Members(children, scores, hashes, torch.zeros_like(first))
                members = _merged(members, parents)
    finally:
        _current.reset(token)
    return Evolved(members.codes, 1.0 - members.is_old.to(scores.dtype).mean())


class _Members(NamedTuple):
    """The sets in the course of an E-step, or the children of a generation."""

    codes: Integer[Tensor, "S B H"]
    scores: Float[Tensor, "S B"]
    hashes: Int64[Tensor, "S B"]
    is_old: Bool[Tensor, "S B"]


def _propose(call: Call, operator: Operator, parents: Population) -> tuple[Tensor, Tensor]:
    """Codes and hashes of children."""
    children = propose(operator, parents)
    if call.batch.unmasked is None and children.hashes is not None:
        return children.codes, children.hashes
    codes = unmasked(call, children.codes)
    return codes, hashes_of(call, codes)


def _merged(members: _Members, children: _Members) -> _Members:
    best = merge_best(members.codes, members.scores, children.codes, children.scores)
    hashes, is_old = (
        torch.cat(pair).gather(0, best.origins)
        for pair in ((members.hashes, children.hashes), (members.is_old, children.is_old))
    )
    return _Members(best.codes, best.scores, hashes, is_old)


def default_evolve(num_states: int) -> Operator:
    """The published proposal: parents by their weights, children that differ in one latent."""
    return chain(select(min(_PARENTS, num_states)), flip(_CHILDREN))


def unmasked(call: Call, codes: Integer[Tensor, "S B H"]) -> Integer[Tensor, "S B H"]:
    """Code 0 for latents that a mask takes out: states that differ in these alone are one."""
    kept = call.batch.unmasked
    return codes if kept is None else torch.where(kept, codes, torch.zeros_like(codes))


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
            with DrawTogether(num_draws, space.layout, {}):
                trace = poutine.trace(guide).get_trace(*call.args, **call.kwargs)
        names = [site.name for site in space.sites]
        if missing := [name for name in names if name not in trace.nodes]:
            raise ValueError(
                f"draws_of(guide) needs a guide with the model's discrete sites {names}; it has "
                f"no {missing}."
            )
        values: dict[str, Any] = {name: trace.nodes[name]["value"] for name in names}
        return encode(space, values, batch.sizes)

    return operator
