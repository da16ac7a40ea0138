"""Draw states, and random changes of them.

Codes are drawn for each latent h from 0 to ``cardinalities[h] - 1``. Sets start from
`random_states`; `other_codes`, `distinct_latents` and `perturb` are the draws that the operators
of `ops.sets.evolution` are made of.

Shapes: S states (or C children, P parents) lead, B data follow, as in ``(S, B, H)``; scores are
log joints in nats.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.noise import drawn_for_rows
from pyro_dvae.ops.sets.hashing import change_hash, first_occurrences, hash_states, zobrist_table
from pyro_dvae.ops.sets.packing import as_numbers, code_dtype, places_of
from pyro_dvae.ops.sets.ranking import without_nan

__all__ = ["change_latents", "distinct_latents", "other_codes", "perturb", "random_states"]


@checked
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
    return _walk_apart(codes, cardinalities)


def other_codes(
    codes: Integer[Tensor, "*batch"],
    latents: Int64[Tensor, "*batch"],
    cardinalities: tuple[int, ...],
) -> Integer[Tensor, "*batch"]:
    """One of the other codes of each latent, all equally probable; the same if there is none.

    Args:
        codes: What the latents hold.
        latents: Which latent each is, from 0 to H - 1.
        cardinalities: Codes of each latent.
    """
    if set(cardinalities) == {2}:
        return 1 - codes
    sizes = _constant(cardinalities, codes.device)[latents]
    uniforms = drawn_for_rows(lambda s: torch.rand(s, device=codes.device), codes.shape, -1)
    steps = 1 + (uniforms * (sizes - 1)).long()
    return ((codes + steps) % sizes).to(codes.dtype)


def change_latents(
    words: Int32[Tensor, "n W"],
    hashes: Int64[Tensor, " n"] | None,
    latents: Int64[Tensor, " n"],
    cardinalities: tuple[int, ...],
) -> Int64[Tensor, " n"] | None:
    """Give one latent of each packed state another of its codes, in place, without unpacking.

    Args:
        words: The states, which are changed.
        hashes: Those before, if they are wanted.
        latents: Which latent of each state moves, from 0 to H - 1.
        cardinalities: Codes of each latent.

    Returns:
        The hashes afterwards, or None if there were none before.
    """
    if set(cardinalities) == {2} and (numbers := as_numbers(words)) is not None:
        numbers.bitwise_xor_(torch.ones_like(latents).bitwise_left_shift_(latents))
        return None if hashes is None else numbers.clone()  # such a number is the hash, too
    places = places_of(cardinalities, words.device)
    shifts = places.shifts.index_select(0, latents)
    cells = places.columns.index_select(0, latents)
    cells = cells.add_(torch.arange(0, words.numel(), words.shape[-1], device=words.device))
    before = words.view(-1).index_select(0, cells)
    masks = 1 if set(cardinalities) == {2} else places.masks.index_select(0, latents)
    old = (before >> shifts) & masks
    new = other_codes(old, latents, cardinalities)
    words.view(-1).scatter_(0, cells, before + ((new - old) << shifts))
    if hashes is None:
        return None
    return change_hash(hashes, zobrist_table(cardinalities, words.device), latents, old, new)


def distinct_latents(
    num_children: int, free: list[int], shape: tuple[int, ...], device: torch.device
) -> Int64[Tensor, "C P B"]:
    """Draws without replacement, over again after each full round (Floyd's algorithm).

    Args:
        num_children: C, how many to draw for each parent.
        free: The latents to draw from, in order.
        shape: (P, B).
        device: Where the draws are made.
    """
    rounds, rest = divmod(num_children, len(free))
    sizes = torch.arange(len(free) - rest + 1, len(free) + 1, device=device)[:, None, None]
    chosen = _uniforms((rest, *shape), device).mul_(sizes).to(_index_dtype(len(free)))
    _replace_repeats(chosen, len(free) - rest)
    full = torch.arange(len(free), device=device).repeat(rounds)[:, None, None]
    chosen = torch.cat([full.expand(-1, *shape), chosen.long()])
    return chosen if free == list(range(len(free))) else torch.tensor(free, device=device)[chosen]


def perturb(scores: Float[Tensor, "S B"], temperature: float) -> Float[Tensor, "S B"]:
    """Scores whose top P are a draw without replacement (Gumbel top-k).

    Args:
        scores: Log joints; a NaN counts as -inf.
        temperature: Chances are ``∝ exp(scores / temperature)``; inf makes all alike, 0 gives the
            scores as they are.
    """
    if math.isinf(temperature):
        return _uniforms(scores.shape, scores.device)
    scores = without_nan(scores)
    if temperature == 0.0:
        return scores
    return scores / temperature - _uniforms(scores.shape, scores.device).log_().neg_().log_()


def _random_subsets(
    num_states: int, num_data: int, cardinalities: tuple[int, ...], probs: Tensor | None
) -> Integer[Tensor, "S B H"]:
    """Draws without replacement from the whole, small space: the top of perturbed logs."""
    device = None if probs is None else probs.device
    strides = np.cumprod([1, *cardinalities[:-1]])
    states = np.arange(math.prod(cardinalities))[:, None] // strides % np.array(cardinalities)
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


def _walk_apart(
    codes: Integer[Tensor, "S B H"], cardinalities: tuple[int, ...]
) -> Integer[Tensor, "S B H"]:
    """Change one code of every state that is there already, until all are distinct."""
    table = zobrist_table(cardinalities, codes.device)
    free = _constant(tuple(h for h, v in enumerate(cardinalities) if v > 1), codes.device)
    while not (first := first_occurrences(hash_states(codes, table))).all():
        latents = free[torch.randint(len(free), codes.shape[:2], device=codes.device)]
        old = codes.gather(-1, latents[..., None])
        new = other_codes(old, latents[..., None], cardinalities)
        moved = codes.scatter(-1, latents[..., None], new)
        codes = torch.where(first[..., None], codes, moved)
    return codes


def _uniforms(shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
    """Draws from [0, 1), multiples of 2**-24 as those of `torch.rand`, two of them at a time."""
    return drawn_for_rows(lambda shape: _draw_uniforms(shape, device), shape, -1)


def _draw_uniforms(shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "*shape"]:
    if device.type != "cpu":
        return torch.rand(shape, device=device)
    count = math.prod(shape)
    pairs = torch.empty(-(-count // 2), dtype=torch.int64, device=device).random_()
    bits = pairs.view(torch.int32)[:count]
    return (bits & 0xFFFFFF).float().mul_(2.0**-24).view(shape)


def _replace_repeats(draws: Integer[Tensor, "C *batch"], last: int) -> None:
    """Floyd's algorithm, in place: a draw that is there already becomes the last of its range.

    Draw n is from 0 to ``last + n``.
    """
    for n in range(1, len(draws)):
        if draws.device.type == "cpu":
            before, draw = draws[:n].numpy(), draws[n].numpy()
            np.putmask(draw, np.logical_or.reduce(before == draw, axis=0), last + n)
        else:
            draws[n].masked_fill_((draws[:n] == draws[n]).any(0), last + n)


def _index_dtype(count: int) -> torch.dtype:
    """The narrowest for indices below `count`."""
    return torch.uint8 if count <= 256 else torch.int32


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Integers that a device is sent once, not at every step."""
    return torch.tensor(values, device=device, dtype=torch.int64)
