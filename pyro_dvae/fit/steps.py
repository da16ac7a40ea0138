"""What a step gets: the next batch, on the device of the parameters, transformed and checked."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_dvae.fit.batches import Batches
from pyro_dvae.fit.data import Batch, is_finite, to_device
from pyro_dvae.fit.identity import described
from pyro_dvae.fit.svi import check_loss, device_of, parameters
from pyro_dvae.fit.transform import transformed

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
        batch = to_device(self.batches.next(), self._device)
        if self._transform is not None:
            batch = to_device(transformed(self._transform, batch), self._device)
        elif self.batches.checked:
            return batch, torch.tensor(True)
        return batch, is_finite(batch)
