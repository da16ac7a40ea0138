"""Arrays of a run, filled piece by piece: some draws of some rows of the data at a time.

NumPy alone, so this file is the same in both packages.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_VALUES_AT_ONCE = 2**22  # of the data, times draws: what goes through the programs in one piece
PRIOR_NAMES = {"latent": "prior", "predictive": "prior_predictive"}  # of draws of the model alone
RECORD = ("log_likelihood", "log_prior", "log_q", "codes")  # kept of each draw and datum
_UNDRAWN = ("observed", "subsample")  # readings without draws in front


class Variable(NamedTuple):
    """An array whose dims have names, but for the draws in front of it."""

    dims: tuple[str, ...]
    values: np.ndarray
    discrete: bool = False
    num_codes: int = 0  # values 0, 1, ... of a discrete site that has finitely many


class Piece(NamedTuple):
    """What is run at once, and where its results go."""

    draws: slice
    rows: slice | None  # None: all data


class Store:
    """Variables by reading and site.

    Args:
        num_draws: K, of all pieces together.
        num_rows: Rows of the data, of all pieces together.
    """

    def __init__(self, num_draws: int, num_rows: int) -> None:
        self.num_draws, self.num_rows = num_draws, num_rows
        self.readings: dict[str, dict[str, Variable]] = {}
        self.plates: tuple[str, ...] = ()
        self._row_plate: str | None = None

    def __getitem__(self, reading: str) -> dict[str, Variable]:
        return self.readings.get(reading, {})

    @property
    def log_weights(self) -> np.ndarray:
        """Log p - log q of each draw and datum, ``(K, *plates)``, in double precision."""
        parts = [self["record"][name].values for name in ("log_likelihood", "log_prior", "log_q")]
        return parts[0].astype(np.float64) + parts[1] - parts[2]

    def put_record(
        self, piece: Piece, plates: tuple[str, ...], record: Mapping[str, np.ndarray | None]
    ) -> None:
        """Keep log-densities of each datum, and a number that tells its discrete states apart."""
        log_q = record["log_q"]
        assert log_q is not None
        if not self.plates:
            self.plates = plates
            self._row_plate = _row_plate(piece, plates, log_q.shape[1:])
        for name, values in record.items():
            if name == "codes":
                name, values = "state", None if values is None else _hash(values)
            if values is not None:
                self.put(piece, "record", name, Variable(plates, values))

    def put(self, piece: Piece, reading: str, name: str, variable: Variable) -> None:
        """Copy a piece of a variable to its place."""
        dims, values, discrete, _ = variable
        if discrete and values.dtype.kind == "f" and np.array_equal(values, np.floor(values)):
            values = values.astype(np.int32)
        elif discrete and values.dtype.kind != "f":
            values = values.astype(np.int32)
        leading = () if reading in _UNDRAWN else (self.num_draws,)
        where: list[slice] = [piece.draws] if leading else []
        shape = list(values.shape[len(leading) :])
        if piece.rows is not None:
            axis = self._row_axis(reading, name, dims)
            shape[axis] = self.num_rows
            where += [slice(None)] * axis + [piece.rows]
        sites = self.readings.setdefault(reading, {})
        if name not in sites:
            sites[name] = variable._replace(values=np.empty((*leading, *shape), values.dtype))
        kept = values[: piece.draws.stop - piece.draws.start] if leading else values
        target = sites[name].values
        if not np.can_cast(kept.dtype, target.dtype, "same_kind"):  # data of a site that were whole
            target = target.astype(kept.dtype)
            sites[name] = sites[name]._replace(values=target)
        target[tuple(where)] = kept

    def _row_axis(self, reading: str, name: str, dims: tuple[str, ...]) -> int:
        if self._row_plate not in dims:
            raise ValueError(
                f"`batch_size`: site '{name}' ({reading}) is not under the plate "
                f"'{self._row_plate}' of the data's rows, so its value is one for all of them. "
                "Leave `batch_size` out, to run all rows at once."
            )
        return dims.index(self._row_plate)


def pieces(num_draws: int, values: int) -> Iterator[tuple[slice, int]]:
    """Cut draws into pieces of one size: which are kept, and how many to make."""
    at_once = max(1, min(num_draws, _VALUES_AT_ONCE // max(values, 1)))
    count = math.ceil(num_draws / at_once)
    size = math.ceil(num_draws / count)
    for start in range(0, num_draws, size):
        yield slice(start, min(start + size, num_draws)), size


def batches(num_rows: int, batch_size: int | None) -> list[slice | None]:
    """Cut the rows of the data; [None] is all of them, uncut."""
    if batch_size is None or batch_size >= num_rows:
        return [None]
    starts = range(0, num_rows, batch_size)
    return [slice(start, min(start + batch_size, num_rows)) for start in starts]


def check_data(args: tuple, batch_size: int | None) -> int:
    """Rows of the data: the leading axis, which all arrays share if they are to be cut."""
    sizes = [len(value) for value in args if getattr(value, "ndim", 0) > 0]
    if batch_size is None:
        return sizes[0] if sizes else 1
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    if len(set(sizes)) != 1:
        raise ValueError(
            f"`batch_size` cuts the leading axis that all arrays share; got sizes {sizes}. Leave "
            "it out, to run all data at once."
        )
    return sizes[0]


def count_values(data: Any) -> int:
    """Numbers in the arrays of a tree of tuples, lists and dicts."""
    if isinstance(data, Mapping):
        return sum(count_values(value) for value in data.values())
    if isinstance(data, tuple | list):
        return sum(count_values(value) for value in data)
    return math.prod(getattr(data, "shape", ()))


def count_states(store: Store) -> np.ndarray:
    """Distinct states of each datum's discrete latents; K where continuous ones never repeat."""
    record = store["record"]
    if "state" not in record:
        return np.full(record["log_q"].values.shape[1:], store.num_draws)
    states = np.sort(record["state"].values, axis=0)
    return 1 + (states[1:] != states[:-1]).sum(0)


def is_restricted(store: Store) -> np.ndarray:
    """Whether the guide leaves out states of a datum that the model has."""
    found = np.zeros(store["record"]["log_q"].values.shape[1:], bool)
    for variable in store["outside"].values():
        axes = [i for i, dim in enumerate(variable.dims, 1) if dim not in store.plates]
        found |= variable.values.any((0, *axes))
    return found


def split_data(variable: Variable, plates: tuple[str, ...]) -> np.ndarray:
    """View ``(K, N, *within)``: draws, data, and what a datum has of the variable."""
    axes = [1 + variable.dims.index(plate) for plate in plates]
    values = np.moveaxis(variable.values, axes, range(1, 1 + len(axes)))
    within = values.shape[1 + len(axes) :]
    return values.reshape(len(values), -1, *within)


def count_codes(variable: Variable, plates: tuple[str, ...]) -> np.ndarray:
    """How often each code occurs, over draws and data: ``(*within, num_codes)``."""
    codes = split_data(variable, plates)
    within, num_codes = codes.shape[2:], variable.num_codes
    columns = codes.reshape(codes.shape[0] * codes.shape[1], -1)
    counts = [np.bincount(column, minlength=num_codes) for column in columns.T]
    return np.stack(counts).reshape(*within, num_codes)


def _row_plate(piece: Piece, plates: tuple[str, ...], shape: tuple[int, ...]) -> str | None:
    if piece.rows is None:
        return None
    num_rows = piece.rows.stop - piece.rows.start
    found = [plate for plate, size in zip(plates, shape, strict=True) if size == num_rows]
    if not found:
        sizes = dict(zip(plates, shape, strict=True))
        raise ValueError(
            f"`batch_size`: {num_rows} rows of the data make plates of sizes {sizes}, none of "
            "which is that of the rows. Leave `batch_size` out, to run all rows at once."
        )
    return found[0]


def _hash(codes: np.ndarray) -> np.ndarray:
    """One number for each vector of codes on the last axis; equal for equal ones alone."""
    factors = np.random.default_rng(0).integers(2**63, size=codes.shape[-1], dtype=np.uint64)
    return (codes.astype(np.uint64) * (2 * factors + 1)).sum(-1, dtype=np.uint64)
