"""K draws of the latents of each datum and what was read at them, filled block by block.

A block is some draws of some rows of the data: what goes through the programs at once. NumPy alone,
so but for the package's name this file is the same in both packages.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.cutting import RowsCut
from pyro_dvae.diagnostics.trees import arrays_in

__all__ = [
    "PRIOR_NAMES",
    "RECORD",
    "Chunk",
    "Draws",
    "count_numbers",
    "cut_draws",
]

PRIOR_NAMES = {"latent": "prior", "predictive": "prior_predictive"}  # of draws of the model alone
_DATA = (  # of draw and datum
    *("log_likelihood", "log_prior", "log_q", "log_draw"),
    *("silenced", "impossible", "counted_impossible", "unmasked", "matters", "auxiliary"),
)
_SHARED = ("shared_likelihood", "shared_prior", "shared_q", "shared_auxiliary")  # of each draw
RECORD = (
    *("log_likelihood", "log_prior", "log_q", "codes", *_SHARED, "scale", "given"),
    "counted_codes",  # as "codes", 0 where a mask silences them
    "points",  # numbers that move with the points of the guide, if they do
    *("weighed", "factors", "clamped"),  # whether sites are, by name
    "zeros",  # what probabilities of 0 take off log-densities that clamp them
    *("unmasked", "matters"),  # log p - log q of masked latents, and whether others follow them
    "num_states",  # log of how many guide and model have
    "auxiliary",  # log q of sites of the guide alone; and "shared_auxiliary"
)
_VALUES_AT_ONCE = 2**22  # of the data, times draws: what goes through the programs in one block
_NOTHING = -1e20  # nats, which stand for minus infinity, as a logit of -1e30 does
_UNDRAWN = ("observed", "subsample", "scale")  # readings without draws in front
_UNROWED = ("reordered",)  # readings of a program, whatever its rows


class Chunk(NamedTuple):
    """What is run at once, and where its results go."""

    draws: slice
    rows: slice | None  # None: all data


class Draws:
    """Arrays by reading and site: ``draws["latent"]["z"]`` has dims, and K draws in front.

    The reading "record" has the log-densities of each draw and datum, ``(K, *plates)``, in nats.

    Args:
        num_draws: K, of all blocks together; states that are listed count as draws.
        cut: How the data are cut into rows, if they are.
    """

    def __init__(self, num_draws: int, cut: RowsCut | None = None) -> None:
        self.num_draws = num_draws
        self._cut = cut or RowsCut(0, 0)
        self.plates: tuple[str, ...] = ()  # those that make a datum
        self.shared_sites: tuple[str, ...] = ()  # those that no datum owns
        self.summed_sites: tuple[str, ...] = ()  # those that the model sums out
        self.is_mixed = False  # whether draws of a cell lead to what is in others
        self.auxiliary: tuple[str, ...] = ()  # those of the guide alone, which no latent tells
        self.densities: Mapping[str, tuple[str, ...]] = {}  # of others, latents whose density it is
        self.free: tuple[str, ...] = ()  # of these, those that take all their values
        self._readings: dict[str, dict[str, NamedArray]] = {}
        self._points: dict[tuple[str, int], Any] = {}  # by site and first row: of the first draw
        self._moving: set[str] = set()
        self._noted: dict[str, dict[str, None]] = {"weighed": {}, "factors": {}, "clamped": {}}

    def __getitem__(self, reading: str) -> dict[str, NamedArray]:
        return self._readings.get(reading, {})

    def record(self, name: str) -> np.ndarray:
        """One of the log-densities, ``(K, *plates)``."""
        return self["record"][name].values

    @property
    def points(self) -> tuple[str, ...]:
        """Continuous latents of which the guide has one point, and no distribution."""
        return tuple(dict.fromkeys(n for n, _ in self._points if n not in self._moving))

    @property
    def notes(self) -> dict[str, Any]:
        """Sites that make ELBO and bounds those of something else than the evidence, by kind."""
        others = {kind: tuple(names) for kind, names in self._noted.items()}
        return {"points": self.points, "auxiliary": self.auxiliary, **others}

    @property
    def shape(self) -> tuple[int, ...]:
        """``(K, *plates)``."""
        return self.record("log_q").shape

    @property
    def log_joint(self) -> np.ndarray:
        """Log p of each draw and datum, ``(K, *plates)``, in double precision."""
        return self.record("log_likelihood").astype(np.float64) + self.record("log_prior")

    @property
    def log_weights(self) -> np.ndarray:
        """Log p - log q of each draw and datum, ``(K, *plates)``, in double precision."""
        return self.log_joint - self.record("log_q")

    @property
    def importance_weights(self) -> np.ndarray:
        """Log weights for the evidence, ``(K, *plates)``.

        Latents under a mask count as the model draws them, where what is seen depends on them: the
        loss, which lets them count as the guide draws them, is of other weights then. And as it
        counts log q of sites of the guide alone, which these weights leave out.
        """
        weights, record = self.log_weights, self["record"]
        if "matters" in record:
            weights = weights + np.where(self.matters, self.record("unmasked"), 0.0)
        return weights + self.record("auxiliary") if "auxiliary" in record else weights

    @property
    def matters(self) -> np.ndarray:
        """Of which data what counts depends on latents under a mask, ``(*plates)``."""
        if "matters" not in self["record"]:
            return np.zeros(self.shape[1:], bool)
        return np.asarray(self.record("matters").any(0))

    def of_latents(self, name: str) -> np.ndarray:
        """One of the record, without latents under a mask on which nothing depends."""
        found = self.record(name)
        if "counted_state" not in self["record"]:
            return found
        return np.where(self.matters, found, self.record(f"counted_{name}"))

    @property
    def scale(self) -> np.ndarray:
        """What a datum counts in the loss, ``(*plates)``."""
        return self["scale"]["scale"].values.astype(np.float64)

    def shared(self, name: str) -> np.ndarray:
        """One of the log-densities of what the data share, ``(K,)``, in nats.

        Raises:
            ValueError: If the rows of the data went through the programs in parts.
        """
        if not self.shared_sites:
            return np.zeros(self.num_draws)
        if self._cut.plate is not None:
            raise ValueError(
                f"`batch_size`: the data share the sites {list(self.shared_sites)}, whose draws "
                "must be the same for all rows. Leave `batch_size` out, to run all rows at once."
            )
        return self["shared"][name].values.astype(np.float64)

    @property
    def shared_weights(self) -> np.ndarray:
        """Log p - log q of what the data share, of each draw, ``(K,)``."""
        return self.shared_joint - self.shared("shared_q")

    @property
    def shared_joint(self) -> np.ndarray:
        """Log p of what the data share, of each draw, ``(K,)``."""
        return self.shared("shared_likelihood") + self.shared("shared_prior")

    @property
    def shared_importance_weights(self) -> np.ndarray:
        """As `importance_weights`, of what the data share, ``(K,)``."""
        if "shared_auxiliary" not in self["shared"]:
            return self.shared_weights
        return self.shared_weights + self.shared("shared_auxiliary")

    @property
    def whole_weights(self) -> np.ndarray:
        """Log p - log q of each draw of all together, as the loss sums it, ``(K,)``."""
        return self._sum_of(self.log_weights) + self.shared_weights

    @property
    def whole_importance_weights(self) -> np.ndarray:
        """Log weights of each draw of all together for the evidence, ``(K,)``."""
        return self._sum_of(self.importance_weights) + self.shared_importance_weights

    def _sum_of(self, log_weights: np.ndarray) -> np.ndarray:
        return (self.scale * log_weights).reshape(self.num_draws, -1).sum(1)

    def add_record(
        self,
        block: Chunk,
        plates: tuple[str, ...],
        record: Mapping[str, Any],
        shared: tuple[str, ...] = (),
        alone: Any = None,
    ) -> None:
        """Copy log-densities of each datum, and a number that tells its discrete states apart.

        Args:
            block: Where it goes.
            plates: Those that make a datum.
            record: Arrays by name, of `RECORD` and more.
            shared: Sites that no datum owns.
            alone: Sites that the guide alone has, see `auxiliary`.
        """
        record = _without_clamps(record)
        sizes = record["log_q"].shape[1:]
        if not self.plates:
            self.plates, self.shared_sites = plates, shared
            self.auxiliary, self.densities, self.free = alone or ((), {}, ())
        for name in _DATA:
            if record.get(name) is not None:
                self.add(block, "record", name, NamedArray(plates, record[name]))
        for name, values in (record.get("num_states") or {}).items():
            self.add(block, "record", name, NamedArray(plates, values))
        for name in ("", "counted_"):
            if (codes := record.get(f"{name}codes")) is not None:
                self.add(block, "record", f"{name}state", NamedArray(plates, _hash(codes)))
        self._note_points(block, record.get("points") or {})
        for kind, noted in self._noted.items():
            found = (record.get(kind) or {}).items()
            noted.update(dict.fromkeys(name for name, is_so in found if np.any(is_so)))
        scale = np.broadcast_to(record["scale"], sizes) * self._cut.share(block.rows)
        self.add(block, "scale", "scale", NamedArray(plates, scale))
        if shared and block.rows is None:
            for name in _SHARED:
                if record.get(name) is not None:
                    self.add(block, "shared", name, NamedArray((), record[name]))
            for name, values in record.get("given", {}).items():
                self.add(block, "given", name, NamedArray((), values))

    def _note_points(self, block: Chunk, points: Mapping[str, np.ndarray]) -> None:
        """See which points stand still; of one draw that is not known, unless nothing moves."""
        for name, values in points.items():
            place = name, 0 if block.rows is None else block.rows.start
            first = self._points.setdefault(place, values[0])
            if (values != first).any() or (self.num_draws == 1 and first != 0):
                self._moving.add(name)

    def add(self, block: Chunk, reading: str, name: str, array: NamedArray) -> None:
        """Copy a block of an array to its place."""
        values = _as_integers(array.values) if array.discrete else array.values
        is_drawn = reading not in _UNDRAWN
        where: list[slice] = [block.draws] if is_drawn else []
        shape = [self.num_draws, *values.shape[1:]] if is_drawn else list(values.shape)
        if block.rows is not None and reading not in _UNROWED:
            axis = len(where) + self._row_axis(name, array.dims)
            shape[axis] = self._cut.num_rows
            where += [slice(None)] * (axis - len(where)) + [block.rows]
        values = values[: block.draws.stop - block.draws.start] if is_drawn else values
        target = self._target(reading, name, replace(array, values=values), shape)
        target[tuple(where)] = values

    def _target(self, reading: str, name: str, array: NamedArray, shape: list[int]) -> np.ndarray:
        """The array to fill, made or widened so that it holds what comes."""
        sites, dtype = self._readings.setdefault(reading, {}), array.values.dtype
        if name not in sites:
            sites[name] = replace(array, values=np.empty(shape, dtype))
        target = sites[name].values
        if not np.can_cast(dtype, target.dtype, "same_kind"):  # data of a site that were whole
            target = target.astype(dtype)
            sites[name] = replace(sites[name], values=target)
        return target

    def _row_axis(self, name: str, dims: tuple[str, ...]) -> int:
        if self._cut.plate not in dims:
            raise ValueError(
                f"`batch_size`: site '{name}' is not under the plate "
                f"'{self._cut.plate}' of the data's rows, so its value is one for all of them. "
                "Leave `batch_size` out, to run all rows at once."
            )
        return dims.index(self._cut.plate)


def _without_clamps(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the logarithms of probabilities of 0 as they are."""
    found = dict(record)
    for name, zeros in record.get("zeros", {}).items():
        exact = found[name] + np.asarray(zeros)
        found[name] = np.where(exact <= _NOTHING, -np.inf, exact)
    return found


def cut_draws(num_draws: int, num_values: int) -> Iterator[tuple[slice, int]]:
    """Cut draws into blocks of one size, for data of so many values.

    Yields:
        Which draws are wanted, and how many to make, in the last block as in all others.
    """
    at_once = max(1, min(num_draws, _VALUES_AT_ONCE // max(num_values, 1)))
    count = math.ceil(num_draws / at_once)
    size = math.ceil(num_draws / count)
    for start in range(0, num_draws, size):
        yield slice(start, min(start + size, num_draws)), size


def count_numbers(data: Any) -> int:
    """Numbers in the arrays of a tree of tuples, lists and dicts."""
    return sum(math.prod(array.shape) for _, array in arrays_in(data))


def _as_integers(values: np.ndarray) -> np.ndarray:
    """Discrete values, which some distributions give as floats, as integers if they are whole."""
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        return values
    fits = not values.size or np.nanmax(np.abs(values)) <= np.iinfo(np.int32).max
    return values.astype(np.int32 if fits else np.int64)


def _hash(codes: np.ndarray) -> np.ndarray:
    """One number for each vector of codes on the last axis; equal for equal ones alone."""
    factors = np.random.default_rng(0).integers(2**63, size=codes.shape[-1], dtype=np.uint64)
    return (codes.astype(np.uint64) * (2 * factors + 1)).sum(-1, dtype=np.uint64)
