"""Loss on held-out data, which leaves no trace in the training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer import SVI

from pyro_dvae.fit import batches as _batches
from pyro_dvae.fit import rng as _rng
from pyro_dvae.fit.checkpoints import loss_of, modules_of


class Evaluation:
    """Mean loss per datum over held-out data, in batches of the training's size."""

    def __init__(
        self,
        svi: SVI,
        data: Any,
        batch_size: int | None,
        device: torch.device | None,
    ) -> None:
        self._svi, self._device, self._arrays = svi, device, None
        arrays = data if isinstance(data, tuple) else (data,)
        if isinstance(data, tuple) or not _batches.is_iterable_of_batches(data):
            self._arrays = _batches.as_arrays(arrays, "eval_data")
        elif iter(data) is data:
            raise ValueError(
                "`eval_data` is an iterator, which can be used only once: pass arrays, a list "
                "of batches or a `DataLoader`."
            )
        self._data, self._batch_size = data, batch_size

    def loss(self) -> float:
        """Return the sum of `svi.evaluate_loss` over the batches by the number of rows."""
        total, rows = 0.0, 0
        with unchanged(self._svi):
            for args, kwargs in self._cut():
                loss = self._svi.evaluate_loss(*args, **kwargs)
                total += float(loss[0] if isinstance(loss, tuple) else loss)
                rows += _batches.num_rows((*args, *kwargs.values()))
        if rows == 0:
            raise ValueError("`eval_data` gave no batch: it must hold at least one.")
        return total / rows

    def _cut(self) -> Iterator[_batches.Batch]:
        if self._arrays is None:
            yield from (_batches.as_batch(item, self._device) for item in self._data)
            return
        size = _batches.num_rows(self._arrays)
        for start in range(0, size, self._batch_size or size):
            rows = slice(start, start + (self._batch_size or size))
            yield _batches.slice_rows(self._arrays, rows, self._device), {}


@contextmanager
def unchanged(svi: SVI) -> Iterator[None]:
    """Run a block in evaluation mode that leaves generators, loss and modules as they were."""
    loss = loss_of(svi)
    kept = {name: getattr(loss, name) for name in ("state", "info") if hasattr(loss, name)}
    with ExitStack() as stack:
        stack.enter_context(_rng.preserved())
        for root in modules_of(svi).values():
            for module in root.modules():
                stack.callback(setattr, module, "training", module.training)
        for root in modules_of(svi).values():
            root.eval()
        for name, value in kept.items():
            stack.callback(setattr, loss, name, value)
        yield
