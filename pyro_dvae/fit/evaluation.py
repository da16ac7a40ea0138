"""Loss on held-out data, which leaves no trace in the training."""

from collections.abc import Iterator
from typing import Any

from pyro.infer import SVI

from pyro_dvae.fit.data import (
    Batch,
    as_arrays,
    as_batch,
    is_iterable_of_batches,
    num_rows,
    take_rows,
    to_device,
)
from pyro_dvae.fit.devices import Devices
from pyro_dvae.fit.svi import device_of, parameters, unchanged
from pyro_dvae.programs.handlers.rows import Subsampling

__all__ = ["HeldOut"]


class HeldOut:
    """Mean loss per datum over held-out data, in batches of the training's size.

    Data are taken as they are: the `transform` of a training does not touch them.
    """

    def __init__(self, svi: SVI, data: Any, batch_size: int | None, devices: Devices) -> None:
        self._svi, self._device = svi, device_of(svi, parameters(svi).values())
        self._devices = devices
        self._arrays: tuple[Any, ...] | None = None
        if isinstance(data, tuple) or not is_iterable_of_batches(data):
            self._arrays = as_arrays(data if isinstance(data, tuple) else (data,), "eval_data")
        elif iter(data) is data:
            raise ValueError(
                "`eval_data` is an iterator, which can be used only once: pass arrays, a list "
                "of batches or a `DataLoader`."
            )
        self._data, self._batch_size = data, batch_size

    def loss(self) -> float:
        """Return the mean of `svi.evaluate_loss` per datum, weighted by the rows of each batch."""
        total, rows = 0.0, 0
        with unchanged(self._svi):
            for batch in self._batches():
                batch = to_device(batch, self._device)
                few = num_rows((*batch.args, *batch.kwargs.values()))
                with Subsampling() as plates:
                    loss = self._devices.evaluate(batch)
                total += loss * few / plates.stand_for(few, self._devices.size)
                rows += few
        if rows == 0:
            raise ValueError("`eval_data` gave no batch: it must hold at least one.")
        return total / rows

    def _batches(self) -> Iterator[Batch]:
        if self._arrays is None:
            yield from map(as_batch, self._data)
            return
        size = num_rows(self._arrays)
        for start in range(0, size, self._batch_size or size):
            rows = slice(start, start + (self._batch_size or size))
            yield Batch(take_rows(self._arrays, rows), {})
