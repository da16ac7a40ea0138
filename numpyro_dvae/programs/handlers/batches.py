"""Whether what programs keep by rows is kept by the rows of the data, whatever batch they are in.

A plate that has as many rows as a batch, and a parameter that has, take the data at a place of the
batch for one and the same. What is seen with two numbers of rows tells.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax
from jaxtyping import Array
from numpyro.handlers import block

from numpyro_dvae.programs.draw import Draw, run_program
from numpyro_dvae.programs.messages import param_values
from numpyro_dvae.programs.sites import Layout, Site, sample_sites

__all__ = [
    "Keeper",
    "check_parameters_of_batches",
    "check_plates_of_batches",
    "check_rows_of_pair",
]


class Keeper(NamedTuple):
    """A part of a guide that keeps parameters of each row."""

    name: str
    model: Callable  # with its latents alone
    is_discrete: bool | None  # whether these are the discrete ones; None is all
    advice: str = ""  # what to write where a plate takes some rows; "" if it knows whose they are


def check_plates_of_batches(
    rng_key: Array,
    keeper: Keeper,
    batches: Callable[[int], tuple[tuple, dict]],
    few: int,
    size: int,
) -> None:
    """Refuse latents of a guide by rows, where a batch does not say whose rows it has.

    Args:
        rng_key: Key of the runs.
        keeper: The guide.
        batches: Of a number of rows, what the model is called with.
        few: Rows of the batch.
        size: Rows of the data.

    Raises:
        ValueError: If a plate has as many rows as whatever batch, or takes some of its rows and
            the guide does not know which.
    """

    def frames(num_rows: int) -> dict[tuple[str, str], tuple[int, int]]:
        return _frames_of(rng_key, keeper, *batches(num_rows))

    grown, num_rows = _at_two_sizes(frames, few, size)
    for (site, name), (taken, full) in grown[0].items():
        other = grown[1].get((site, name), (taken, full))[1]
        plate = f"`batch_size`: plate '{name}' of site '{site}'"
        if taken < full and keeper.advice:
            raise ValueError(
                f"{plate} takes {taken} of {full} rows, but {keeper.name} does not know which "
                f"these are. {keeper.advice.format(full, name)}"
            )
        if full * num_rows == other * few and full != other:
            raise ValueError(
                f"{plate} has the {few} rows of a batch, whosever they are, but {keeper.name} has "
                f"parameters of each row, and would take them for others'. "
                f"{_whose(name, few, size)}"
            )
        if not num_rows and full == few:
            warnings.warn(f"{plate} {_perhaps(keeper)} {_whose(name, few, size)}", stacklevel=2)


def _frames_of(
    rng_key: Array, keeper: Keeper, args: tuple, kwargs: dict
) -> dict[tuple[str, str], tuple[int, int]]:
    """Of each plate of the latents, how many rows it takes, of how many."""
    sites, found = dict[str, Site](), {}

    def look() -> list[Array]:
        sites.update(sample_sites(run_program(rng_key, keeper.model, args, kwargs)))
        return [site.log_prob() for site in sites.values() if site.is_observed]

    with block(), Draw(rng_key, Layout()):
        jax.eval_shape(look)  # fails if the data are not those of the plate
    for site in sites.values():
        if not site.is_observed and keeper.is_discrete in (None, site.needs_credit):
            for frame in site.plates.values():
                found[site.name, frame.name] = frame.size, frame.full_size
    return found


def _perhaps(keeper: Keeper) -> str:
    return (
        "has as many rows as the batch, and the model fails with another number of rows, so that "
        f"these may be the data, of which {keeper.name} has parameters of each."
    )


def check_parameters_of_batches(
    rng_key: Array,
    program: Callable,
    batches: Callable[[int], tuple[tuple, dict]],
    few: int,
    size: int,
    kind: str,
) -> None:
    """Refuse parameters that have as many rows as whatever batch.

    Args:
        rng_key: Key of the runs.
        program: A model or guide.
        batches: Of a number of rows, what it is called with.
        few: Rows of the batch.
        size: Rows of the data.
        kind: "model" or "guide".

    Raises:
        ValueError: If there is such a parameter.
    """

    def shapes(num_rows: int) -> dict[str, tuple[int, ...]]:
        args, kwargs = batches(num_rows)

        def params() -> dict[str, Any]:
            return param_values(run_program(rng_key, program, args, kwargs))

        with block():
            found = jax.tree_util.tree_leaves_with_path(jax.eval_shape(params))
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in found}

    grown, num_rows = _at_two_sizes(shapes, few, size, needed=lambda shape: few in shape)
    odd = [name for name, shape in grown[0].items() if few in shape][:5]
    if odd and not num_rows:
        warnings.warn(
            f"`batch_size`: the {kind} fails with another number of rows than a batch has, {few}, "
            f"and has parameters of so many entries, {', '.join(odd)}: they may be of rows, "
            f"whosever they are. {_of_all(few, size)}",
            stacklevel=2,
        )
    for name, shape in grown[0].items():
        other = grown[1].get(name, shape)
        grows = (
            one * num_rows == two * few and one != two
            for one, two in zip(shape, other, strict=False)
        )
        if len(shape) == len(other) and any(grows):
            raise ValueError(
                f"`batch_size`: parameter {name} of the {kind} has the shape {tuple(shape)} with "
                f"the {few} rows of a batch, and {tuple(other)} with others: it is of rows, "
                f"whosever they are, and would take them for others'. {_of_all(few, size)}"
            )


def check_rows_of_pair(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    batches: Callable[[int], tuple[tuple, dict]],
    few: int,
    size: int,
) -> None:
    """Refuse a guide whose plates have the rows of its first batch, whatever a batch has.

    Args:
        rng_key: Key of the runs.
        model: The model.
        guide: The guide.
        batches: Of a number of rows, what they are called with.
        few: Rows of the batch.
        size: Rows of the data.

    Raises:
        ValueError: If there is such a plate.
    """

    def frames(num_rows: int) -> dict[tuple[str, ...], int]:
        found = dict[tuple[str, ...], int]()
        for kind, program in (("guide", guide), ("model", model)):
            frames = _frames_of(rng_key, Keeper(kind, program, None), *batches(num_rows))
            found |= {(kind, *place): full for place, (_, full) in frames.items()}
        return found

    grown, num_rows = _at_two_sizes(frames, few, size)
    for kind, site, name in grown[0]:
        ends = [grown[1].get((each, site, name)) for each in ("model", "guide")]
        if (kind, grown[0][kind, site, name], *ends) == ("guide", few, num_rows, few):
            raise ValueError(
                f"`batch_size`: plate '{name}' of site '{site}' has the rows of a batch in the "
                f"model, but in the guide {few} whatever a batch has, as its parameters are of "
                f"places in the first one. {_whose(name, few, size)}"
            )


def _of_all(few: int, size: int) -> str:
    return (
        "Make such a parameter one of all data, pass the rows along, as in "
        f"fit(rng_key, svi, x, jnp.arange({size}), batch_size={few}), "
        "and take those of the rows, parameter[rows]; or leave `batch_size` out, or compute what "
        "is of a row from its data."
    )


def _at_two_sizes(
    look: Callable[[int], dict[Any, Any]],
    few: int,
    size: int,
    needed: Callable[[Any], bool] = lambda _: True,
) -> tuple[list[dict[Any, Any]], int]:
    """What is seen with the rows of a batch, and with the first other number of rows that runs.

    And this number; 0 if none does, or if nothing of what is seen needs to be compared.
    """

    def tried(num_rows: int) -> dict[Any, Any] | None:
        with suppress(Exception):
            return look(num_rows)
        return None

    found = tried(few) or {}
    others = [few + 1, few - 1, 2 * few, size] if any(map(needed, found.values())) else []
    for num_rows in (n for n in others if 1 < n <= size and n != few):  # one row would broadcast
        if (other := tried(num_rows)) is not None:
            return [found, other], num_rows
    return [found, {}], 0


def _whose(name: str, few: int, size: int) -> str:
    return (
        f"Pass the rows along with the data, as in fit(rng_key, svi, x, jnp.arange({size}), "
        f"batch_size={few}), and make the plate of them, `with numpyro.handlers.substitute("
        f'data={{"{name}": rows}}): plate = numpyro.plate("{name}", {size}, subsample_size={few})`;'
        " or leave `batch_size` out, or take a guide with an encoder."
    )
