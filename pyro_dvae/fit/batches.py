"""Where the minibatches come from: arrays cut at random, or the user's own iterable.

Both kinds know their position, so that a resumed run sees the data in the same order.
A batch is a pair of positional and keyword arguments for the model and guide.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_dvae.fit import rng as _rng

Batch = tuple[tuple[Any, ...], dict[str, Any]]


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored."""

    checked: bool  # whether all values are known to be finite

    def next(self) -> Batch:
        """Return the next batch."""

    def state(self) -> dict[str, Any]:
        """Return the position, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""


def make_batches(
    data: tuple[Any, ...], batch_size: int | None, device: torch.device | None
) -> Batches:
    """Choose the kind of stream that `data` asks for; check the data and `batch_size`."""
    if not data:
        raise ValueError("`data` is empty: pass the arguments of the model after `svi`.")
    if len(data) == 1 and is_iterable_of_batches(data[0]):
        if batch_size is not None:
            raise ValueError(
                f"`batch_size` is {batch_size}, but `data` is an iterable, which makes its own "
                "batches: leave `batch_size` out, or pass arrays."
            )
        return IterableBatches(data[0], device)
    arrays = as_arrays(data, "data")
    return ArrayBatches(arrays, check_batch_size(arrays, batch_size), device)


def as_arrays(data: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Turn NumPy arrays into tensors; check that they are not empty, agree, and are finite."""
    arrays = tuple(_as_tensor(value) for value in data)
    sizes = {i: len(value) for i, value in enumerate(arrays) if _is_sliced(value)}
    if not sizes or min(sizes.values()) == 0:
        raise ValueError(
            f"`{name}` is empty: it needs an array with at least one row; got "
            f"{[tuple(v.shape) if isinstance(v, Tensor) else v for v in arrays]}."
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`{name}` needs one common leading axis (the data); got sizes "
            f"{', '.join(f'{size} (argument {i})' for i, size in sizes.items())}. Bind what is "
            "not data to the model and guide, for example by `functools.partial`."
        )
    for i, value in enumerate(arrays):
        if isinstance(value, Tensor) and value.is_floating_point():
            _check_finite(value, f"`{name}`: argument {i}")
    return arrays


def _check_finite(values: Tensor, name: str) -> None:
    bad = values.isfinite().logical_not()
    if bad.any():
        rows = int(bad.reshape(len(values), -1).any(1).sum()) if values.dim() else 1
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, in {rows} rows. Drop "
            "these rows, or fill them and mask the site (`poutine.mask`, `.mask(...)`)."
        )


def check_batch_size(arrays: tuple[Any, ...], batch_size: int | None) -> int | None:
    """Return `batch_size` if it lies in [1, N]."""
    size = num_rows(arrays)
    if batch_size is not None and not 1 <= batch_size <= size:
        raise ValueError(
            f"`batch_size` must lie between 1 and the number of data, {size}; got {batch_size}. "
            "None passes all data at every step."
        )
    return batch_size


def num_rows(values: Any) -> int:
    """Size of the leading axis of the first array."""
    return next((len(value) for value in values if _is_sliced(value)), 1)


class ArrayBatches:
    """Batches of `batch_size` rows without replacement; the remainder of an epoch is dropped.

    Every epoch draws a new permutation from Torch's global generator. All batches are of one
    size; other rows are left out in every epoch. Without `batch_size`, all data at every step.
    """

    checked = True

    def __init__(
        self, arrays: tuple[Any, ...], batch_size: int | None, device: torch.device | None
    ) -> None:
        self._arrays, self._batch_size, self._device = arrays, batch_size, device
        self._size = num_rows(arrays)
        self._order, self._cursor = torch.empty(0, dtype=torch.long), 0

    def next(self) -> Batch:
        """Return the next batch, drawing a new order if too few rows are left."""
        if self._batch_size is None:
            return to_device(self._arrays, self._device), {}
        if self._cursor + self._batch_size > len(self._order):
            self._order, self._cursor = torch.randperm(self._size), 0
        rows = self._order[self._cursor : self._cursor + self._batch_size]
        self._cursor += self._batch_size
        return slice_rows(self._arrays, rows, self._device), {}

    def state(self) -> dict[str, Any]:
        """Return the order of this epoch and how far it is used."""
        return {"size": self._size, "order": self._order, "cursor": self._cursor}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a saved position in data of the same size."""
        if state.get("size") != self._size:
            raise ValueError(
                f"`data` has {self._size} rows, but the checkpoint was written with "
                f"{state.get('size', 'an iterable of batches')}: resume on the same data."
            )
        self._order, self._cursor = state["order"], state["cursor"]


class IterableBatches:
    """A user's batches, iterated again when they end; tuples are unpacked, dicts are keywords.

    The generators as they stood at the start of the epoch are kept: a `DataLoader` draws its
    order from them, so that a resumed run replays the epoch up to its position.
    """

    checked = False

    def __init__(self, iterable: Any, device: torch.device | None) -> None:
        self._iterable, self._device = iterable, device
        self._iterator: Iterator[Any] | None = None
        self._cursor, self._epoch_rng = 0, _rng.get_state()

    def next(self) -> Batch:
        """Return the next batch, starting the iterable again where it has ended."""
        for _ in range(2):
            if self._iterator is None:
                self._cursor, self._epoch_rng = 0, _rng.get_state()
                self._iterator = iter(self._iterable)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                continue
            self._cursor += 1
            return as_batch(batch, self._device)
        raise ValueError(
            "`data` gave no batch: it is empty, or an iterator that can be used only once. Pass "
            "something that can be iterated again (a list, a `DataLoader`)."
        )

    def state(self) -> dict[str, Any]:
        """Return the batches used in this epoch and the generators at its start."""
        return {"cursor": self._cursor, "epoch_rng": self._epoch_rng}

    def restore(self, state: dict[str, Any]) -> None:
        """Replay the epoch up to the saved position."""
        if "epoch_rng" not in state:
            raise ValueError(
                "`data` is an iterable of batches, but the checkpoint was written with "
                f"arrays of {state['size']} rows: resume on the same data."
            )
        self._epoch_rng = state["epoch_rng"]
        _rng.set_state(self._epoch_rng)
        self._iterator, self._cursor = iter(self._iterable), state["cursor"]
        for _ in range(self._cursor):
            if next(self._iterator, None) is None:
                raise ValueError("`data` ends before the checkpoint's position: not the same data.")


def as_batch(value: Any, device: torch.device | None) -> Batch:
    """Read one item of a user's iterable as arguments of the model."""
    if isinstance(value, Mapping):
        values = to_device(tuple(_as_tensor(v) for v in value.values()), device)
        return (), dict(zip(value, values, strict=True))
    items = value if isinstance(value, tuple | list) else (value,)
    return to_device(tuple(_as_tensor(item) for item in items), device), {}


def slice_rows(
    arrays: tuple[Any, ...], rows: Tensor | slice, device: torch.device | None
) -> tuple[Any, ...]:
    """Take rows of every array, on the device of the parameters."""

    def take(value: Tensor) -> Tensor:
        return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]

    return to_device(tuple(take(v) if _is_sliced(v) else v for v in arrays), device)


def to_device(values: tuple[Any, ...], device: torch.device | None) -> tuple[Any, ...]:
    """Move tensors to the device of the parameters, without waiting for it."""
    if device is None:
        return values
    return tuple(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in values)


def is_finite(batch: Batch) -> Tensor:
    """Return whether all floating values of a batch are finite, on the batch's device."""
    values = [v for v in (*batch[0], *batch[1].values()) if isinstance(v, Tensor)]
    if not values:
        return torch.tensor(True)
    return torch.stack([v.isfinite().all() for v in values]).all()


def _as_tensor(value: Any) -> Any:
    """Tensors stay; NumPy floats get Torch's default dtype, as a model's parameters have."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biufc":
        raise ValueError(f"`data` must be numeric; got an array of dtype {value.dtype}.")
    tensor = torch.as_tensor(value)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _is_sliced(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def is_iterable_of_batches(value: Any) -> bool:
    if isinstance(value, tuple):
        raise ValueError(
            "`data` is a tuple: pass its arrays one by one, fit(svi, *data, ...), or a list of "
            "batches."
        )
    return hasattr(value, "__iter__") and not isinstance(value, Tensor | np.ndarray | str | bytes)
