"""What a step gets: the next batch, on the device of the parameters, transformed and checked."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_dvae.fit.batches import Batches
from pyro_dvae.fit.data import Batch, is_finite, to_device
from pyro_dvae.fit.identity import described
from pyro_dvae.fit.svi import check_loss, device_of, parameters
from pyro_dvae.fit.transform import transformed
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import TruncatedGuide
from pyro_dvae.programs.handlers.rows import check_plates_of_batches

__all__ = ["Steps"]


class Steps:
    """Batches of a stream, made ready for the steps of an `SVI`."""

    def __init__(self, svi: SVI, batches: Batches, transform: Callable[..., Any] | None) -> None:
        check_loss(svi)
        self.batches = batches
        self._transform = transform
        self._device = device_of(svi, parameters(svi).values())

    def described(self) -> dict[str, Any]:
        """Describe the data and what is done to them."""
        return {**self.batches.described(), "transform": described(self._transform)}

    def next(self) -> tuple[Batch, Tensor]:
        """Return the next batch as the model gets it, and whether all its values are finite."""
        batch = self._ready(self.batches.next())
        if self._transform is None and self.batches.checked:
            return batch, torch.tensor(True)
        return batch, is_finite(batch)

    def check_plates(self, guide: Any) -> None:
        """Refuse parts of a guide that keep something by rows, where a batch does not say whose.

        Raises:
            ValueError: If there is such a part.
        """
        few, size = self.batches.parted or (0, 0)
        for part in guide.modules() if few < size and isinstance(guide, nn.Module) else ():
            if isinstance(part, AutoDiscrete | TruncatedGuide):
                name = type(part).__name__
                check_plates_of_batches(part.model, self._some, few, size, name)

    def _some(self, num_rows: int) -> Batch:
        return self._ready(self.batches.first_rows(num_rows))

    def _ready(self, batch: Batch) -> Batch:
        """A batch on the device, transformed."""
        batch = to_device(batch, self._device)
        if self._transform is None:
            return batch
        return to_device(transformed(self._transform, batch), self._device)
