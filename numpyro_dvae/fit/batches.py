"""Where the minibatches come from: arrays cut at random, or the user's own iterable.

Both kinds know their position, so that a resumed run sees the data in the same order. The batches
of arrays are rows, which the compiled steps take from arrays that stay on the device.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.fit import rng
from numpyro_dvae.fit.data import (
    Batch,
    as_arrays,
    as_batch,
    check_batch_size,
    is_iterable_of_batches,
    num_rows,
    take_rows,
)
from numpyro_dvae.fit.identity import described_batch, described_data
from numpyro_dvae.fit.templates import split

__all__ = ["ArrayBatches", "Batches", "IterableBatches", "make_batches"]


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored."""

    parted: tuple[int, int] | None  # rows of a batch, of how many: None if that is not known

    def first(self) -> Batch:
        """Return the next batch without using it up."""

    def state(self) -> dict[str, Any]:
        """Return the position, as plain values."""

    def check(self, state: dict[str, Any]) -> None:
        """Check that a saved position is one in these data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""

    def described(self) -> dict[str, Any]:
        """Describe the data and the size of a batch."""


def make_batches(
    rng_key: Array, data: tuple[Any, ...], batch_size: int | None
) -> "ArrayBatches | IterableBatches":
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
    return ArrayBatches(rng_key, arrays, check_batch_size(arrays, batch_size))


class ArrayBatches:
    """Batches of `batch_size` rows without replacement; the remainder of an epoch is dropped.

    Epoch e takes the rows in the order ``permutation(fold_in(rng_key, e), N)``, so that the step
    alone says which rows are due. All batches are of one size; other rows are left out in every
    epoch. Without `batch_size`, all data at every step.
    """

    def __init__(self, rng_key: Array, arrays: tuple[Any, ...], batch_size: int | None) -> None:
        self.arrays, self.template = split(Batch(arrays, {}))
        self._rng_key, self._batch_size, self._size = rng_key, batch_size, num_rows(arrays)
        self.parted = None if batch_size is None else (batch_size, self._size)
        self._epoch, self._order = -1, np.zeros(0, int)

    def first(self) -> Batch:
        """Return the first batch of all."""
        rows = self.rows(0, 1, 1)
        if rows is None:
            return self.template.join(self.arrays)
        return self.template.join(take_rows(self.arrays, jnp.asarray(rows[0])))

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """Yield all data once, each batch with the row of its first datum."""
        size = self._batch_size or self._size
        for start in range(0, self._size, size):
            rows = jnp.arange(start, min(start + size, self._size))
            yield start, self.template.join(take_rows(self.arrays, rows))

    def rows(self, step: int, count: int, most: int) -> np.ndarray | None:
        """Return the rows of `count` steps after `step`, padded to `most`; None for all data."""
        if self._batch_size is None:
            return None
        rows = np.zeros((most, self._batch_size), np.int32)
        for i in range(count):
            epoch, place = divmod(step + i, self._size // self._batch_size)
            if epoch != self._epoch:
                key = jax.random.fold_in(self._rng_key, epoch)
                self._order = np.asarray(jax.random.permutation(key, self._size))
                self._epoch = epoch
            rows[i] = self._order[place * self._batch_size :][: self._batch_size]
        return rows

    def first_rows(self, num_rows: int) -> Batch:
        """Return the first rows of the data."""
        return self.template.join(take_rows(self.arrays, jnp.arange(num_rows)))

    def state(self) -> dict[str, Any]:
        """Return the number of rows: the step and the key give the rest."""
        return {"size": self._size}

    def described(self) -> dict[str, Any]:
        """Describe the arrays by shape, type and sum; the size of a batch."""
        arrays = self.template.join(self.arrays).args
        return {"batch_size": self._batch_size, "data": described_data(arrays)}

    def check(self, state: dict[str, Any]) -> None:
        """Check that the data are of the same size."""
        if state.get("size") != self._size:
            raise ValueError(
                f"`data` has {self._size} rows, but the checkpoint was written with "
                f"{state.get('size', 'an iterable of batches')}: resume on the same data."
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing: the step says which rows are due."""


class IterableBatches:
    """A user's batches, iterated again when they end; tuples are unpacked, dicts are keywords.

    Global generators as they stood at the start of the epoch are kept: what shuffles by them
    replays the epoch up to its position in a resumed run.
    """

    parted: tuple[int, int] | None = None

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None
        self._held: Batch | None = None
        self._cursor, self._epoch_rng = 0, rng.get_state()
        self._last: Any = None  # the latest batch, described

    def first(self) -> Batch:
        """Return the next batch and hold it back for the next step."""
        self._held = self._draw()
        return self._held

    def next(self) -> Batch:
        """Return the next batch, starting the iterable again where it has ended."""
        batch, self._held = self._held or self._draw(), None
        return batch

    def _draw(self) -> Batch:
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
        """Return the batches used in this epoch, and the generators at its start and now."""
        position = {"cursor": self._cursor, "last": self._last}
        return {**position, "epoch_rng": self._epoch_rng, "rng": rng.get_state()}

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
        self._epoch_rng, self._held = state["epoch_rng"], None
        rng.set_state(self._epoch_rng)
        self._iterator, self._cursor = iter(self._iterable), state["cursor"]
        batch = None
        for _ in range(self._cursor):
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError("`data` ends before the checkpoint's position: not the same data.")
        self._check_last(batch, state.get("last"))
        rng.set_state(state["rng"])

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
