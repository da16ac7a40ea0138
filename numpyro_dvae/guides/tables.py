"""What an automatic guide learns of a latent: logits of each place, given the latent's parents.

A latent without parents has logits ``(*batch, *cells, P)``. With parents it has ``(*batch, F, M)``,
M = cells times P logits for each of F features: a row for each joint state of the parents, if there
are few, or else a bias and a row for each value of each parent, which are summed.

A guide starts at the prior: of each row, at what the model says of the latent where its parents are
in that state, in the mean over all else that it depends on. Of the data it knows at the start what
they rule out, of the rows that the first call holds: see `ruling`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_dvae.guides.families import Latent, PriorProbs, prior_and_beyond, vectors
from numpyro_dvae.guides.joint_states import (
    LARGEST_TABLE,
    choose_states,
    num_states,
    row_of,
    value_of_state,
)
from numpyro_dvae.guides.ruling import possible_values
from numpyro_dvae.programs.handlers.rows import check_indices
from numpyro_dvae.programs.handlers.swapping import given_run

__all__ = [
    "check_known",
    "check_table",
    "given_parents",
    "num_features",
    "of_rows",
    "start_at_prior",
]

_NUM_RUNS = 64  # of the model, for the mean over what a prior depends on
_LEAST_PROB = 1e-6  # at which a value starts that the prior rules out here, but not everywhere
_NEVER = -1e4  # logit of a value that the data rule out: of probability 0, without a slope


def check_known(latents: Mapping[str, Latent], error: Exception | None = None) -> None:
    """Raise if a guide has not looked at its model, and why it could not, if it has tried."""
    if not latents:
        raise ValueError(
            "the guide has not run its model yet, and knows no latent. Call svi.init, or the "
            "guide, first."
        ) from error


def check_table(latent: Latent, param: str, table: Array) -> Array:
    """The parameters, which may be given: those of another model need not fit the latent's places.

    Raises:
        ValueError: If they have another shape.
    """
    of_place = (*latent.cells, latent.num_logits)
    if latent.parents:
        of_place = (latent.num_features, math.prod(of_place))
    shape = (*latent.batch_shape, *of_place)
    if jnp.shape(table) != shape:
        raise ValueError(
            f"parameter '{param}' has shape {jnp.shape(table)}, but the guide's logits of site "
            f"'{latent.name}' have {shape}. Give those that a run with this model and plates of "
            "these sizes has made, or leave it out, to start at the prior."
        )
    return table


def num_features(parents: Sequence[Latent]) -> tuple[int, bool]:
    """F, and whether each joint state of the parents has a row of its own."""
    states = math.prod(num_states(parent) for parent in parents)
    if states <= LARGEST_TABLE:
        return states, True
    return 1 + sum(math.prod(p.cells) * p.num_values for p in parents), False


def given_parents(
    latent: Latent,
    table: Array,
    latents: Mapping[str, Latent],
    values: Mapping[str, Array],
) -> Float[Array, "*batch_cells P"]:
    """Logits of a latent at these values of its parents."""
    if not latent.parents:
        return table
    parents = [(latents[name], values[name]) for name in latent.parents]
    rows = _features(latent, [_flat(parent, value) for parent, value in parents])
    logits = (rows.astype(table.dtype)[..., None] * table).sum(-2)
    return logits.reshape(*logits.shape[:-1], *latent.cells, latent.num_logits)


def _flat(parent: Latent, value: Array) -> Num[Array, "*batch cells V"]:
    hot = vectors(parent, value)
    batch = hot.shape[: hot.ndim - len(parent.cells) - 1]
    return hot.reshape(*batch, -1, parent.num_values)


def _features(latent: Latent, parents: Sequence[Array]) -> Num[Array, "*batch F"]:
    """The joint state of the parents as a one-hot vector, or a one and those of each parent."""
    if not latent.table:
        flat = [hot.reshape(*hot.shape[:-2], -1) for hot in parents]
        shape = jnp.broadcast_shapes(*(part.shape[:-1] for part in flat))
        flat = [jnp.ones((1,), flat[0].dtype), *flat]
        return jnp.concatenate([jnp.broadcast_to(p, (*shape, p.shape[-1])) for p in flat], -1)
    rows: Any = None
    for hot in parents:
        for cell in jnp.moveaxis(hot, -2, 0):
            both = cell if rows is None else rows[..., :, None] * cell[..., None, :]
            rows = both if rows is None else both.reshape(*both.shape[:-2], -1)
    return rows


def of_rows(latent: Latent, table: Array, rows: Mapping[str, Array]) -> Array:
    """The parameters of the rows of plates that a minibatch holds.

    Raises:
        ValueError: If a row is out of the range of its plate.
    """
    for plate in latent.plates:
        if plate.name in rows:
            check_indices(plate.name, rows[plate.name], plate.size)
            axis = _dim(latent, plate.dim)
            table = jnp.take(table, rows[plate.name], axis, mode="fill", fill_value=jnp.nan)
    return table


def _dim(latent: Latent, dim: int) -> int:
    """The place of a batch dim in the parameters."""
    return len(latent.batch_shape) + dim


# -------------------------------------------------------------------------------------- the start


def start_at_prior(
    rng_key: Array,
    model: Callable,
    args: tuple,
    kwargs: dict,
    latents: Mapping[str, Latent],
    *,
    depends: bool,
) -> dict[str, tuple[Array, PriorProbs]]:
    """Parameters that agree with the model's prior, and the prior's probabilities by latent.

    Args:
        rng_key: Key of the runs.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latents: The discrete latents, in the order of the model.
        depends: Whether the distribution of any depends on a draw.
    """
    states = choose_states([_parents(latent) for latent in latents.values()], latents)
    num_runs = max([len(column) for column in states.values()] + [_NUM_RUNS if depends else 1])
    chosen = {name: np.resize(column, num_runs) for name, column in states.items()}
    values = {
        name: jnp.stack([value_of_state(latents[name], int(state)) for state in column])
        for name, column in chosen.items()
    }

    minibatch = given_run(rng_key, model, args, kwargs, {}, {})[1]
    possible = possible_values(rng_key, model, args, kwargs, latents, minibatch)

    def run(key: Array, values: Mapping[str, Array]) -> dict[str, Array]:
        sites, _ = given_run(key, model, args, kwargs, values, minibatch)
        return {name: prior_and_beyond(latents[name], sites[name]) for name in latents}

    found = jax.jit(jax.vmap(run))(jax.random.split(rng_key, num_runs), values)
    tables = {}
    for name, latent in latents.items():
        each = [{n: int(column[r]) for n, column in chosen.items()} for r in range(num_runs)]
        rows_met = np.array([row_of(_parents(latent), latents, states) for states in each])
        tables[name] = _table(latent, found[name], rows_met, possible.get(name), minibatch)
    return tables


def _parents(latent: Latent) -> tuple[str, ...]:
    """The latents whose joint states have rows of their own."""
    return latent.parents if latent.table else ()


def _table(
    latent: Latent,
    found: Array,
    rows_met: np.ndarray,
    possible: Array | None,
    minibatch: Mapping[str, Array],
) -> tuple[Array, PriorProbs]:
    """Parameters from probabilities ``(runs, *batch, *cells, V + 1)``, and rows met by the runs."""
    means = [found[rows_met == row].mean(0) for row in np.unique(rows_met)]
    stacked = jnp.stack(means)  # (rows, *batch, *cells, V + 1)
    mean, beyond = stacked[..., :-1], stacked[..., -1]
    seen = PriorProbs(mean.min(0), beyond.max(0))
    probs = jnp.where(mean > 0, mean, _LEAST_PROB)
    table = _all_rows(latent, _parameters(latent, probs), minibatch)
    if possible is None:
        return table, seen
    ruled = _parameters(latent, jnp.where(possible, probs, 0.0))
    return jnp.where(
        _held(latent, table, minibatch), _all_rows(latent, ruled, minibatch), table
    ), seen


def _parameters(latent: Latent, probs: Array) -> Array:
    """Of probabilities; those of 0 stay so in each precision, and their logits are finite."""
    logits = jnp.log(probs / probs.sum(-1, keepdims=True)).clip(_NEVER)
    logits = logits[..., 1:] - logits[..., :1] if latent.num_logits < latent.num_values else logits
    if latent.parents:
        logits = jnp.moveaxis(logits, 0, len(latent.batch_shape))
        logits = logits.reshape(*logits.shape[: len(latent.batch_shape) + 1], -1)
        if not latent.table:
            more = [(0, 0)] * logits.ndim
            more[-2] = (0, latent.num_features - 1)
            logits = jnp.pad(logits, more)
    else:
        logits = logits[0]
    return logits


def _held(latent: Latent, table: Array, rows: Mapping[str, Array]) -> Array:
    """Which of all rows a minibatch holds."""
    held = jnp.ones((1,) * table.ndim, bool)
    for plate in latent.plates:
        if plate.name in rows:
            shape = [1] * table.ndim
            shape[_dim(latent, plate.dim)] = plate.size
            own = jnp.zeros(plate.size, bool).at[rows[plate.name]].set(True)
            held = held & own.reshape(shape)
    return held


def _all_rows(latent: Latent, table: Array, rows: Mapping[str, Array]) -> Array:
    """Parameters of all rows of the plates: those of a minibatch, again and again elsewhere."""
    for plate in latent.plates:
        dim = _dim(latent, plate.dim)
        held = table.shape[dim]
        if not held:
            raise ValueError(
                f"plate '{plate.name}' has no rows in the guide's first call, which makes its "
                "parameters. Let the first call have all rows."
            )
        index = jnp.arange(plate.size) % held
        if plate.name in rows:
            index = index.at[rows[plate.name]].set(jnp.arange(held))
        table = jnp.take(table, index, dim)
    return table
