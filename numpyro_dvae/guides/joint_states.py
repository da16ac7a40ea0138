"""Joint states of some latents as numbers: the rows of a table, the first latent leading."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.guides.families import Latent, value_of

__all__ = [
    "LARGEST_TABLE",
    "choose_states",
    "codes_of_states",
    "num_states",
    "row_of",
    "value_of_state",
]

LARGEST_TABLE = 64  # joint states that have a row each


def num_states(latent: Latent) -> int:
    """Joint states of the cells of one place; those of very many cells are not counted."""
    return latent.num_values ** min(math.prod(latent.cells), 64)


def row_of(scope: Sequence[str], latents: Mapping[str, Latent], chosen: Mapping[str, int]) -> int:
    """The row of a table of these latents in which they are in the chosen states."""
    row = 0
    for name in scope:
        row = row * num_states(latents[name]) + chosen[name]
    return row


def choose_states(
    scopes: Sequence[Sequence[str]], latents: Mapping[str, Latent]
) -> dict[str, np.ndarray]:
    """States of latents for some runs of a model, in which each row of each table is met.

    Args:
        scopes: The latents of each table.
        latents: All latents, by name.

    Returns:
        By latent the state in each run.
    """
    sizes = {name: num_states(latents[name]) for scope in scopes for name in scope}
    rng, runs = np.random.default_rng(0), list[dict[str, int]]()
    missing = {
        tuple(scope): set(range(math.prod(sizes[name] for name in scope))) for scope in scopes
    }
    while any(missing.values()):
        chosen: dict[str, int] = {}
        for scope, rows in missing.items():
            chosen |= _one_of(rows, scope, sizes, chosen)
        runs.append(
            {name: chosen.get(name, int(rng.integers(size))) for name, size in sizes.items()}
        )
        for scope, rows in missing.items():
            rows.discard(row_of(scope, latents, runs[-1]))
    return {name: np.array([run[name] for run in runs]) for name in sizes}


def _one_of(
    rows: set[int], scope: Sequence[str], sizes: Mapping[str, int], chosen: Mapping[str, int]
) -> dict[str, int]:
    """States of a row that is missing, if one agrees with those that are chosen."""
    for row in sorted(rows):
        states = np.unravel_index(row, [sizes[name] for name in scope])
        found = {name: int(state) for name, state in zip(scope, states, strict=True)}
        if all(chosen.get(name, state) == state for name, state in found.items()):
            return found
    return {}


def codes_of_states(latent: Latent) -> np.ndarray:
    """The code of each cell in each joint state, ``(states, *cells)``."""
    each = np.unravel_index(
        np.arange(num_states(latent)), (latent.num_values,) * math.prod(latent.cells)
    )
    return np.stack(each, -1).reshape(-1, *latent.cells)


def value_of_state(latent: Latent, state: int) -> Array:
    """A joint state of the cells as their values, the same at each place."""
    codes = np.unravel_index(state, (latent.num_values,) * math.prod(latent.cells))
    return value_of(latent, jnp.array(codes, int).reshape(latent.cells))
