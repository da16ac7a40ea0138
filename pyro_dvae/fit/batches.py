"""Where the minibatches come from: arrays cut at random, or the user's own iterable.

Both kinds know their position, so that a resumed run sees the data in the same order.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from pyro_dvae.fit import rng
from pyro_dvae.fit.data import (
    Batch,
    as_arrays,
    as_batch,
    check_batch_size,
    is_iterable_of_batches,
    num_rows,
    take_rows,
    whole,
)
from pyro_dvae.fit.identity import described_batch, described_data

__all__ = ["ArrayBatches", "Batches", "IterableBatches", "make_batches"]


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored."""

    checked: bool  # whether all values are known to be finite
    parted: tuple[int, int] | None  # rows of a batch, of how many: None if that is not known

    def next(self) -> Batch:
        """Return the next batch."""

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """Yield all data once, each batch with the row of its first datum, if rows are known."""

    def first_rows(self, num_rows: int) -> Batch:
        """Return the first rows of the data; if rows are known."""

    def state(self) -> dict[str, Any]:
        """Return the position, as plain values."""

    def check(self, state: dict[str, Any]) -> None:
        """Check that a saved position is one in these data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""

    def described(self) -> dict[str, Any]:
        """Describe the data and the size of a batch."""


def make_batches(data: tuple[Any, ...], batch_size: int | None) -> Batches:
    """Choose the kind of stream that `data` asks for; check the data and `batch_size`."""
    if not data:
        raise ValueError("`data` is empty: pass the arguments of the model after `svi`.")
    if len(data) == 1 and is_iterable_of_batches(data[0]):
        if batch_size is not None:
            raise ValueError(
                f"`batch_size` is {batch_size}, but `data` is an iterable, which makes its own "
                "batches: leave `batch_size` out, or pass arrays."
            )
        return IterableBatches(data[0])
    arrays = as_arrays(data, "data")
    return ArrayBatches(arrays, check_batch_size(arrays, batch_size))


class ArrayBatches:
    """Batches of `batch_size` rows without replacement; the remainder of an epoch is dropped.

    Every epoch draws a new permutation from Torch's global generator. All batches are of one
    size; other rows are left out in every epoch. Without `batch_size`, all data at every step.
    """

    checked = True

    def __init__(self, arrays: tuple[Any, ...], batch_size: int | None) -> None:
        self._arrays, self._batch_size = arrays, batch_size
        self._size = num_rows(arrays)
        self.parted = None if batch_size is None else (batch_size, self._size)
        self._whole = whole(arrays) if batch_size is None else ()
        self._order, self._cursor = torch.empty(0, dtype=torch.long), 0

    def next(self) -> Batch:
        """Return the next batch, drawing a new order if too few rows are left."""
        if self._batch_size is None:
            return Batch(self._whole, {})
        if self._cursor + self._batch_size > len(self._order):
            self._order, self._cursor = torch.randperm(self._size), 0
        rows = self._order[self._cursor : self._cursor + self._batch_size]
        self._cursor += self._batch_size
        return Batch(take_rows(self._arrays, rows), {})

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """Yield all data once, each batch with the row of its first datum."""
        size = self._batch_size or self._size
        for start in range(0, self._size, size):
            yield start, Batch(take_rows(self._arrays, slice(start, start + size)), {})

    def first_rows(self, num_rows: int) -> Batch:
        """Return the first rows of the data."""
        return Batch(take_rows(self._arrays, slice(0, num_rows)), {})

    def state(self) -> dict[str, Any]:
        """Return the order of this epoch and how far it is used."""
        return {"size": self._size, "order": self._order, "cursor": self._cursor}

    def described(self) -> dict[str, Any]:
        """Describe the arrays by shape, type and sum; the size of a batch."""
        return {"batch_size": self._batch_size, "data": described_data(self._arrays)}

    def check(self, state: dict[str, Any]) -> None:
        """Check that a saved position is one in data of the same size."""
        if state.get("size") != self._size:
            raise ValueError(
                f"`data` has {self._size} rows, but the checkpoint was written with "
                f"{state.get('size', 'an iterable of batches')}: resume on the same data."
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        self._order, self._cursor = state["order"], state["cursor"]


class IterableBatches:
    """A user's batches, iterated again when they end; tuples are unpacked, dicts are keywords.

    The generators as they stood at the start of the epoch are kept: a `DataLoader` draws its
    order from them, so that a resumed run replays the epoch up to its position.
    """

    checked = False
    parted: tuple[int, int] | None = None

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None
        self._cursor, self._epoch_rng = 0, rng.get_state()
        self._last: Any = None  # the latest batch, described

    def next(self) -> Batch:
        """Return the next batch, starting the iterable again where it has ended."""
        for _ in range(2):
            if self._iterator is None:
                self._cursor, self._epoch_rng = 0, rng.get_state()
                self._iterator = iter(self._iterable)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                continue
            return self._noted(as_batch(batch))
        raise ValueError(
            "`data` gave no batch: it is empty, or an iterator that can be used only once. Pass "
            "something that can be iterated again (a list, a `DataLoader`)."
        )

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """Yield nothing: the rows of an iterable are not known."""
        yield from ()

    def first_rows(self, num_rows: int) -> Batch:
        """Raise, as the rows of an iterable are not known."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the batches used in this epoch and the generators at its start."""
        return {"cursor": self._cursor, "epoch_rng": self._epoch_rng, "last": self._last}

    def described(self) -> dict[str, Any]:
        """Describe the iterable by its kind."""
        return {"batch_size": None, "data": {"kind": type(self._iterable).__qualname__}}

    def check(self, state: dict[str, Any]) -> None:
        """Check that a saved position is one in an iterable."""
        if "epoch_rng" not in state:
            raise ValueError(
                "`data` is an iterable of batches, but the checkpoint was written with "
                f"arrays of {state.get('size')} rows: resume on the same data."
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Replay the epoch up to the saved position."""
        self._epoch_rng = state["epoch_rng"]
        rng.set_state(self._epoch_rng)
        self._iterator, self._cursor = iter(self._iterable), state["cursor"]
        batch = None
        for _ in range(self._cursor):
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError("`data` ends before the checkpoint's position: not the same data.")
        self._check_last(batch, state.get("last"))

    def _noted(self, batch: Batch) -> Batch:
        """Count a batch, and remember what it was before anyone could change it."""
        self._cursor += 1
        self._last = described_batch((*batch.args, *batch.kwargs.values()))
        return batch

    def _check_last(self, batch: Any, saved: Any) -> None:
        """Check that the replayed epoch is the one that the run saw."""
        if saved is None or batch is None:
            return
        args, kwargs = as_batch(batch)
        self._last = described_batch((*args, *kwargs.values()))
        if self._last != saved:
            raise ValueError(
                "`data` gives other batches than the run in `folder` had: they are other data, or "
                "in an order that `fit` cannot restore. Shuffle by the global generator of Torch, "
                "NumPy or Python, not by one of its own, and let no workers persist "
                "(`persistent_workers=False`); or pass arrays with `batch_size`."
            )
