"""Rank the states of a set by their scores, and keep the S best.

A truncated posterior [1] gives each datum a set of S distinct states; its bound rises whenever a
state of a higher score replaces a member.

Shapes: S members (or C children, P parents) lead, B data follow, as in ``(S, B)``; a state is what
has more axes, ``(S, B, H)`` codes or ``(S, B, W)`` words. Scores are log joints in nats.

References:
    [1] Drefs, Guiraud & Lücke. Evolutionary variational optimization of generative models.
        JMLR, 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from numpyro_dvae.ops.arguments import checked

__all__ = [
    "Survivors",
    "keep_best",
    "merge_best",
    "take_states",
    "top_indices",
    "without_nan",
]


class Survivors(NamedTuple):
    """What `keep_best` keeps, the best first."""

    states: Integer[Array, "S B H"]
    """Codes or words, as the candidates were given."""
    scores: Float[Array, "S B"]
    origins: Int[Array, "S B"]
    """Where they stood among the candidates."""


@checked
def keep_best(
    states: Integer[Array, "C B H"], scores: Float[Array, "C B"], num_states: int
) -> Survivors:
    """The states of the highest scores, best first; of equal scores, those that come first.

    Args:
        states: The candidates, as codes or words.
        scores: Their log joints; NaN ranks with -inf, but is kept as it is.
        num_states: How many to keep.

    Raises:
        ValueError: If there are fewer candidates than `num_states`.
    """
    if not 1 <= num_states <= len(states):
        raise ValueError(
            f"`num_states` must be from 1 to the number of candidates, {len(states)}; got "
            f"{num_states}."
        )
    index = top_indices(scores, num_states)
    return Survivors(take_states(states, index), jnp.take_along_axis(scores, index, axis=0), index)


def merge_best(
    members: Integer[Array, "S B H"],
    member_scores: Float[Array, "S B"],
    children: Integer[Array, "C B H"],
    child_scores: Float[Array, "C B"],
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
    scores = jnp.concatenate([member_scores, child_scores])
    return keep_best(jnp.concatenate([members, children]), scores, len(members))


def take_states(
    states: Integer[Array, "S B H"], index: Int[Array, "P B"]
) -> Integer[Array, "P B H"]:
    """What stands at `index` in the set of each datum."""
    data, num_latents = jnp.arange(states.shape[1]), states.shape[2]
    if states.dtype != jnp.uint8:
        return states[index, data]
    # On a CPU, XLA moves one element at a time: let it be four codes.
    filled = jnp.pad(states, ((0, 0), (0, 0), (0, -num_latents % 4)))
    fours = jax.lax.bitcast_convert_type(filled.reshape(*states.shape[:2], -1, 4), jnp.uint32)
    taken = jax.lax.bitcast_convert_type(fours[index, data], jnp.uint8)
    return taken.reshape(*index.shape, -1)[..., :num_latents]


def top_indices(scores: Float[Array, "C B"], count: int) -> Int[Array, "S B"]:
    """Indices of the largest, in order; the first of equal ones."""
    ranks = without_nan(scores)
    ranks = jnp.where(ranks == 0.0, 0.0, ranks)  # `top_k` tells zeros of both signs apart
    return jax.lax.top_k(ranks.T, count)[1].T


def without_nan(scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The scores, with -inf for NaN: what they rank by."""
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)
