"""Which arrays among the arguments of a program have a row for each datum, and are cut by rows.

As many rows as data say nothing: a table of weights may have them by chance. Trials tell. Arrays
are cut if each datum then has, in batches of two sizes, the log-densities that are its own,
whichever rows are beside it; what has no row for each datum, as such a table, is left whole. NumPy
alone, so but for the package's name this file is the same in both packages.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np

from pyro_dvae.diagnostics.arguments import named_leaves
from pyro_dvae.diagnostics.trees import TreePath, arrays_in, with_rows

__all__ = ["Looks", "RowsCut", "Seen", "find_rows"]

_MOST_TRIALS = 32  # of arrays of one size, of which some are left whole
_DRAWS = 3  # at which a datum is compared
_SAME = 1e-3  # of log-densities, absolute and relative: batches of other sizes round otherwise


class RowsCut(NamedTuple):
    """How arguments are cut."""

    num_rows: int
    batch_size: int
    paths: tuple[TreePath, ...] = ()  # to arrays with a row for each datum; none if all are whole
    plate: str | None = None  # of the rows
    weighs: bool = False  # whether this plate takes them for a part of more

    @property
    def parts(self) -> list[slice | None]:
        """Batches of rows; [None] is all of them, uncut."""
        if not self.paths:
            return [None]
        starts = range(0, self.num_rows, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.num_rows)) for start in starts]

    def share(self, rows: slice | None) -> float:
        """What a datum of these rows counts as one of all rows, where it counts 1 as of these."""
        return 1.0 if rows is None or not self.weighs else (rows.stop - rows.start) / self.num_rows

    def of(self, args: tuple, rows: slice | None) -> tuple:
        """Arguments with these rows alone."""
        return args if rows is None else with_rows(args, rows, self.paths)


class Seen(NamedTuple):
    """What one draw of some rows has shown."""

    plates: tuple[str, ...]  # that make a datum
    densities: Mapping[str, np.ndarray]  # log-densities and scale, (*plates)
    values: Mapping[str, np.ndarray]  # of the guide's latents
    axes: Mapping[str, Mapping[str, int]]  # of these, by plate
    subsampled: Collection[str]  # plates that have more rows than they take


class Looks(NamedTuple):
    """How programs are looked at."""

    model: Callable
    prepare: Callable[[tuple], Any]  # reads the structure of a call with these arguments
    run: Callable[[Any, tuple, int, Mapping[str, np.ndarray]], Seen]  # what is prepared for as
    # many rows, with arguments, the number of a draw, and values of latents


class _RefusedError(Exception):
    """What is wrong with a choice of arrays, beside errors of the programs."""


def find_rows(looks: Looks, args: tuple, batch_size: int | None) -> RowsCut:
    """Find which arrays are to be cut, if any.

    Args:
        looks: At the programs.
        args: What they are called with.
        batch_size: Rows of a batch; None to cut nothing.

    Raises:
        ValueError: If `batch_size` is not positive, or there is no array that can be cut.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    sizes = {path: array.shape[0] for path, array in arrays_in(args) if len(array.shape)}
    if batch_size is not None and not sizes:
        raise ValueError(
            "`batch_size` cuts the rows of arrays among the arguments, of which there are none. "
            "Leave it out, or pass the data as arguments."
        )
    failure = None
    for cut in _candidates(sizes, batch_size):
        try:
            return _tried(looks, args, cut)
        except Exception as error:
            failure = failure or (cut, error)
    if failure is not None:
        raise ValueError(_refusal(looks.model, args, *failure)) from failure[1]
    num_rows = next(iter(sizes.values()), 1)
    return RowsCut(num_rows, num_rows)


def _candidates(sizes: Mapping[TreePath, int], batch_size: int | None) -> Iterator[RowsCut]:
    """What may be the arrays of rows: as many as can be, and those of the first size first."""
    if batch_size is None:
        return
    for num_rows in dict.fromkeys(size for size in sizes.values() if size > batch_size):
        paths = [path for path, size in sizes.items() if size == num_rows]
        subsets = (some for few in range(len(paths), 0, -1) for some in combinations(paths, few))
        yield from (RowsCut(num_rows, batch_size, some) for some in islice(subsets, _MOST_TRIALS))


def _tried(looks: Looks, args: tuple, cut: RowsCut) -> RowsCut:
    """Find the plate of the rows; raise unless data are the same in all batches that are tried."""

    def some(rows: np.ndarray) -> tuple:
        return with_rows(args, rows.copy(), cut.paths)

    one, others = _batches(cut)
    known = {len(one): looks.prepare(some(one))}
    with suppress(Exception):  # of a program that takes batches of one size
        known[len(others[0])] = looks.prepare(some(others[0]))
    fitting: list[str] | None = None
    for i in range(_DRAWS):
        seen = looks.run(known[len(one)], some(one), i, {})
        sizes = dict(zip(seen.plates, _shape(seen), strict=True))
        fitting = [p for p in fitting or sizes if sizes[p] == len(one)]
        if not fitting:
            among = f"a datum has plates of sizes {sizes}" if sizes else "all data are one datum"
            raise _RefusedError(f"{among}, so that {len(one)} rows are no plate")
        for rows in (rows for rows in others if len(rows) in known):
            run = partial(looks.run, known[len(rows)], some(rows), i)
            slips = {plate: _slip(seen, run, one, rows, plate) for plate in fitting}
            fitting = [plate for plate, slip in slips.items() if slip is None]
            if not fitting:
                raise next(slip for slip in slips.values() if slip is not None)
    assert fitting
    return cut._replace(plate=fitting[0], weighs=fitting[0] in seen.subsampled)


def _batches(cut: RowsCut) -> tuple[np.ndarray, list[np.ndarray]]:
    """A batch, and others of another size and of the same, which have rows of it elsewhere."""
    one = _spread(cut.batch_size, cut.num_rows)
    more = one[1:] if len(one) > 2 else _spread(min(3, cut.num_rows), cut.num_rows)
    return one, [more[::-1], np.roll(more, 1), one[::-1], (one + 1) % cut.num_rows]


def _spread(count: int, num_rows: int) -> np.ndarray:
    """So many rows, the first and the last among them."""
    return np.arange(count) * (num_rows - 1) // max(count - 1, 1)


def _places(one: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where in a batch the rows of another are; of others, the first."""
    found = np.minimum(np.searchsorted(one, rows), len(one) - 1)
    return np.where(one[found] == rows, found, 0)


def _shape(seen: Seen) -> tuple[int, ...]:
    return np.broadcast_shapes(*(values.shape for values in seen.densities.values()))


def _taken(seen: Seen, plate: str, places: np.ndarray) -> dict[str, np.ndarray]:
    """The values of latents, those of some places on the plate of the rows alone."""
    found = dict(seen.values)
    for name, axes in seen.axes.items():
        if plate in axes and found[name].shape[axes[plate]] > 1:
            found[name] = found[name].take(places, axes[plate])
    return found


def _slip(
    seen: Seen, run: Callable[[Any], Seen], one: np.ndarray, rows: np.ndarray, plate: str
) -> Exception | None:
    """What is otherwise in another batch, if this is the plate of the rows; None if nothing."""
    shape, axis, places = _shape(seen), seen.plates.index(plate), _places(one, rows)
    try:
        again = run(_taken(seen, plate, places))
    except Exception as error:
        return error
    if _shape(again) != (*shape[:axis], len(rows), *shape[axis + 1 :]):
        return ValueError(f"plates have the sizes {shape} and {_shape(again)}")
    (both,) = np.nonzero(np.isin(rows, one))
    for kind, values in seen.densities.items():
        wanted = np.broadcast_to(values, shape).take(places[both], axis)
        found = np.broadcast_to(again.densities[kind], _shape(again)).take(both, axis)
        if kind == "scale":  # that of a plate is its size over the rows that it takes
            each = found * (len(rows) / len(one))
            found = np.where(np.isclose(wanted, each), wanted, found)
        same = np.isclose(wanted, found, _SAME, _SAME, equal_nan=True)
        if not same.all():
            place = np.argmin(same)
            apart = f"{kind} {wanted.flat[place]:.5g} or {found.flat[place]:.5g}"
            return _RefusedError(f"beside other rows a datum is otherwise ({apart})")
    return None


def _refusal(model: Callable, args: tuple, cut: RowsCut, error: Exception) -> str:
    names = {path: name for name, (path, _) in named_leaves(model, args).items()}
    arrays = ", ".join(names[path] for path in cut.paths)
    said = str(error).partition("\n")[0]
    found = f"with {cut.batch_size} of these rows the programs fail ({said})"
    if isinstance(error, _RefusedError):
        found = said
    return (
        f"`batch_size` cuts arrays with a row for each datum: {arrays}, of {cut.num_rows} rows, "
        f"but {found}, and no other choice of arrays is right. Let what a program computes of a "
        "datum depend on its own row alone, and not on its place in a batch; bind what is not of "
        "the rows to model and guide, as by `functools.partial`; or leave `batch_size` out, to "
        "run all data at once."
    )
