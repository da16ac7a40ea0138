"""Whether the data of a program are those of the rows that its plates draw.

A guide that keeps something of each datum keeps it by rows. A plate that draws rows of its own,
around data that are passed, says nothing of whose these are.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import block, substitute
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_dvae.programs.draw import Draw, run_program
from numpyro_dvae.programs.messages import Rows, is_subsample, rows_of_plates
from numpyro_dvae.programs.sites import Layout, Pair, Run, Site, sample_sites

__all__ = [
    "Subsampling",
    "check_guide",
    "check_indices",
    "check_rows",
    "check_whole_plates",
    "names_in",
]


class _Rows(Messenger):
    """Notes of plates that draw their rows how many these are, of how many."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, tuple[int, int]] = {}
        self._wanted: set[str] = set()

    def process_message(self, msg: Any) -> None:
        """Note that nothing has said the rows of a plate."""
        if is_subsample(msg) and msg["value"] is None:
            self._wanted.add(msg["name"])

    def postprocess_message(self, msg: Any) -> None:
        """Note the rows of a plate.

        Raises:
            LookupError: If a parameter has no start, as its value comes from outside alone.
        """
        if msg["type"] == "param" and msg["value"] is None:
            raise LookupError(f"param '{msg['name']}' has no start.")
        if is_subsample(msg) and msg["name"] in self._wanted:
            self.drawn[msg["name"]] = Rows.of(msg).sizes


def check_rows(
    rng_key: Array,
    model: Callable,
    args: tuple,
    kwargs: dict,
    plates: Collection[str],
    guide: str,
) -> None:
    """Check that what is observed under plates depends on the rows that these draw.

    A plate to which its rows are given says itself whose the data are, and one of all rows has no
    others. A model that must know its rows cannot be looked at.

    Args:
        rng_key: Key of the runs.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        plates: Under which the guide keeps something of each row.
        guide: What it is called.

    Raises:
        ValueError: If a plate draws rows, and nothing that is observed under it depends on them.
    """
    observed, drawn, led_to = _looked(rng_key, model, args, kwargs)
    for name in (name for name in plates if name in drawn):
        few, size = drawn[name]
        seen = [n for n, under in observed.items() if n in led_to and name in under]
        if seen and not any(name in names_in(led_to[site]) for site in seen):
            raise ValueError(_refusal(name, few, size, seen, guide))


def check_guide(rng_key: Array, pair: Pair, run: Run) -> None:
    """Check that data are those of the rows by which a guide keeps something, as `check_rows`.

    Args:
        rng_key: Key of the runs.
        pair: The programs.
        run: Of them.

    Raises:
        ValueError: If the guide's draws depend on rows that a plate draws, and data do not.
    """
    taken = rows_of_plates(run.guide_trace).values()
    if all(rows.are_all for rows in taken):
        return
    args = pair.args, pair.kwargs
    _, drawn, led_to = _looked(rng_key, pair.guide, *args)
    kept = drawn.keys() & frozenset[str]().union(*map(names_in, led_to.values()))
    if kept:
        check_rows(rng_key, pair.model, *args, kept, "the guide")


def _looked(
    rng_key: Array, program: Any, args: tuple, kwargs: dict
) -> tuple[dict[str, frozenset[str]], dict[str, tuple[int, int]], dict[str, Any]]:
    """The plates of observed sites, the rows that plates draw, and which of these lead to what.

    Nothing of a program that must know its rows, or whose parameters have no start.
    """

    def run(rows: dict[str, Array]) -> dict[str, Site]:
        with block(), found, Draw(rng_key, Layout()):  # parameters as they start: none is kept
            return sample_sites(run_program(rng_key, substitute(program, data=rows), args, kwargs))

    def looks(**rows: Array) -> dict[str, Any]:
        return {n: (s.value, s.term()) for n, s in run(rows).items() if not s.is_scanned}

    def notes() -> None:
        sites = run({}).items()
        observed.update({n: frozenset(s.plates) for n, s in sites if s.is_observed})

    found, observed = _Rows(), dict[str, frozenset[str]]()
    try:
        jax.eval_shape(notes)
        drawn = {name: sizes for name, sizes in found.drawn.items() if sizes[0] < sizes[1]}
        rows = {name: jnp.arange(few) for name, (few, _) in drawn.items()}
        led_to = eval_provenance(looks, **rows) if rows else {}
    except (jax.errors.JAXTypeError, LookupError):
        return {}, {}, {}
    return observed, drawn, led_to


def names_in(parts: Any) -> frozenset[str]:
    """The names in a tree of sets, as `eval_provenance` has one for each array."""
    leaves = jax.tree.leaves(parts, is_leaf=lambda part: isinstance(part, frozenset))
    return frozenset[str]().union(*leaves)


def _refusal(name: str, few: int, size: int, seen: list[str], guide: str) -> str:
    listed = ", ".join(f"'{site}'" for site in seen)
    return (
        f"plate '{name}' draws {few} of {size} rows by itself, but {listed} under it does not "
        f"depend on which: {guide} would take these data for others, whose rows they are not. Pass "
        f"the rows along with the data, as in fit(rng_key, svi, x, jnp.arange({size}), "
        f"batch_size={few}), and make the plate of them, `with numpyro.handlers.substitute("
        f'data={{"{name}": rows}}): plate = numpyro.plate("{name}", {size}, subsample_size={few})`;'
        " or pass all data, and let the model take those of the rows, `with numpyro.plate("
        f'"{name}", {size}, subsample_size={few}) as rows`, obs=x[rows].'
    )


class Subsampling(Messenger):
    """Notes how many rows the plates of programs take, of how many."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, tuple[int, int]] = {}

    def postprocess_message(self, msg: Any) -> None:
        """Note a plate."""
        if is_subsample(msg):
            self.taken.setdefault(msg["name"], Rows.of(msg).sizes)

    def stand_for(self, num_rows: int, num_parts: int = 1) -> int:
        """Count the data that some rows stand for: all that a plate takes these of.

        Args:
            num_rows: Rows.
            num_parts: Processes that have one part each of these.
        """
        lengths = (num_rows, num_rows // num_parts)
        sizes = (size for few, size in self.taken.values() if few in lengths and few != size)
        return next(sizes, num_rows)


def check_whole_plates(
    rng_key: Array, model: Callable, args: tuple, kwargs: dict, few: int, size: int
) -> None:
    """Refuse a plate of all rows around a batch of few; for a model that fails with the batch.

    Args:
        rng_key: Key of a run.
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        few: Rows of the batch.
        size: Rows of the data.

    Raises:
        ValueError: If there is such a plate.
    """
    plates = Subsampling()
    with suppress(Exception), block(), plates:
        jax.eval_shape(lambda: run_program(rng_key, model, args, kwargs) and None)
    whole = [name for name, taken in plates.taken.items() if taken == (size, size)]
    if whole and few < size:
        name = whole[0]
        raise ValueError(
            f"`batch_size`: a batch has {few} of the {size} rows of the data, but plate '{name}' "
            f'takes all {size}. If these are the data, write numpyro.plate("{name}", {size}, '
            f"subsample_size=len(x)), with x the batch; for a guide with parameters of each row "
            f"pass the rows along, fit(rng_key, svi, x, jnp.arange({size}), batch_size={few}), and "
            f'make that plate in numpyro.handlers.substitute(data={{"{name}": rows}}). Or leave '
            "`batch_size` out."
        )


def check_indices(name: str, indices: Array, size: int) -> None:
    """Check that the rows which a plate takes are its own, where they are known.

    Under jit they are not: those out of range turn the loss into NaN.

    Raises:
        ValueError: If one is out of range.
    """
    if not isinstance(indices, jax.core.Tracer) and len(indices):
        low, high = np.asarray(indices).min(), np.asarray(indices).max()
        if low < 0 or high >= size:
            raise ValueError(
                f"plate '{name}' has size {size}, so its rows are from 0 to {size - 1}; got rows "
                f"from {low} to {high}. Check `subsample`, the rows of this minibatch."
            )
