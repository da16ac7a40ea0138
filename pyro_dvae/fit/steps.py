"""What a step gets: the next batch, on the device of the parameters, transformed and checked."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuide,
    AutoNormal,
)
from torch import Tensor, nn

from pyro_dvae.fit.batches import Batches
from pyro_dvae.fit.data import Batch, is_finite, to_device
from pyro_dvae.fit.identity import described
from pyro_dvae.fit.svi import check_loss, device_of, parameters
from pyro_dvae.fit.transform import transformed
from pyro_dvae.guides import AutoDiscrete
from pyro_dvae.infer import TruncatedGuide
from pyro_dvae.programs.handlers.batches import (
    Keeper,
    check_parameters_of_batches,
    check_plates_of_batches,
    check_rows_of_pair,
)

__all__ = ["Steps"]

_KEEPERS = AutoContinuous, AutoDelta, AutoNormal, AutoDiscrete, AutoDiscreteParallel, TruncatedGuide
_PLATES = (
    "Pass the rows along with the data, and make the plate of them in the guide, too: "
    'AutoNormal(model, create_plates=lambda x, rows: pyro.plate("{1}", {0}, subsample=rows)).'
)
_ONE_BY_ONE = "It has a parameter of each place in a batch. Take AutoNormal. " + _PLATES


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
        batch = self._ready(self.batches.next(), self._transform)
        if self._transform is None and self.batches.checked:
            return batch, torch.tensor(True)
        return batch, is_finite(batch)

    def check_plates(self, model: Any, guide: Any) -> None:
        """Refuse programs that keep something by rows, where a batch does not say whose.

        Raises:
            ValueError: If there is such a part of the guide, or such a parameter.
        """
        few, size = self.batches.parted or (0, 0)
        if few >= size:
            return
        parts = guide.modules() if isinstance(guide, nn.Module) else ()
        for keeper in map(_keeper, (part for part in parts if isinstance(part, _KEEPERS))):
            check_plates_of_batches(keeper, self._some, few, size)
        if not isinstance(guide, AutoGuide | TruncatedGuide):
            if check_parameters_of_batches(guide, self._some, few, size, "guide"):
                check_rows_of_pair(model, guide, self._some, few, size)
        check_parameters_of_batches(model, self._some, few, size, "model")

    def _some(self, num_rows: int) -> Batch:
        """The first rows; no transform that counts its calls is to notice."""
        return self._ready(self.batches.first_rows(num_rows), copy.deepcopy(self._transform))

    def _ready(self, batch: Batch, transform: Callable[..., Any] | None) -> Batch:
        """A batch on the device, transformed."""
        batch = to_device(batch, self._device)
        if transform is None:
            return batch
        return to_device(transformed(transform, batch), self._device)


def _keeper(part: Any) -> Keeper:
    """A guide that makes its parameters of the latents that its model has."""
    advice, master = "", getattr(part, "master", None)
    if isinstance(part, AutoContinuous):
        advice = _ONE_BY_ONE
    elif not isinstance(part, AutoDiscrete | TruncatedGuide):
        advice = "" if (master() if master else part).create_plates else _PLATES
    is_discrete = isinstance(part, AutoDiscrete | AutoDiscreteParallel | TruncatedGuide)
    return Keeper(type(part).__name__, part.model, is_discrete, advice)
