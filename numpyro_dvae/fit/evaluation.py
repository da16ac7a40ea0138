"""Loss on held-out data, which leaves no trace in the training."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit import rng
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.data import Batch, as_arrays, as_batch, is_iterable_of_batches, num_rows
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.nets.evaluating import Evaluating
from numpyro_dvae.programs.handlers.rows import Subsampling

__all__ = ["HeldOut"]


class HeldOut:
    """Mean loss per datum over held-out data, in batches of the training's size.

    Every evaluation uses the same random numbers, those of `rng_key`. Data are taken as they are:
    the `transform` of a training does not touch them.
    """

    def __init__(
        self, rng_key: Array, svi: SVI, data: Any, batch_size: int | None, devices: Devices
    ) -> None:
        self._rng_key, self._devices = devices.on_all(rng_key), devices
        self._arrays: tuple[Any, ...] | None = None
        if isinstance(data, tuple) or not is_iterable_of_batches(data):
            self._arrays = as_arrays(data if isinstance(data, tuple) else (data,), "eval_data")
        elif iter(data) is data:
            raise ValueError(
                "`eval_data` is an iterator, which can be used only once: pass arrays, a list "
                "of batches or a `DataLoader`."
            )
        self._data, self._batch_size = data, batch_size
        self._evaluate = Compiled(partial(_evaluate, svi, devices), static=(3,))

    def loss(self, svi_state: SVIState) -> float:
        """Return the mean loss per datum, weighted by the rows of each batch."""
        losses, rows = [], 0
        with rng.preserved():
            for i, batch in enumerate(self._batches()):
                key = jax.random.fold_in(self._rng_key, i)
                arrays, template = split(batch)
                arrays = self._devices.on_all(arrays)
                loss = self._evaluate(svi_state, key, arrays, template)
                losses.append(self._devices.settled(loss))
                rows += num_rows((*batch[0], *batch[1].values()))
        if rows == 0:
            raise ValueError("`eval_data` gave no batch: it must hold at least one.")
        return float(np.sum(jax.device_get(losses), dtype=np.float64)) / rows

    def _batches(self) -> Iterator[Batch]:
        if self._arrays is None:
            yield from map(as_batch, self._data)
            return
        arrays, template = split(Batch(self._arrays, {}))
        size = num_rows(self._arrays)
        step = min(self._batch_size or size, size)
        for start in range(0, size, step):
            yield template.join(_slice_rows(arrays, start, min(step, size - start)))


def _evaluate(
    svi: SVI,
    devices: Devices,
    svi_state: SVIState,
    rng_key: Array,
    arrays: tuple[Array, ...],
    template: Template,
) -> Array:
    """As `SVI.evaluate`, which leaves the mutable state out; of the rows alone."""
    args, kwargs = devices.shared_if_even(template.join(arrays))
    params = {**svi.get_params(svi_state), **(svi_state.mutable_state or {})}
    kwargs = {**kwargs, **svi.static_kwargs}
    few, plates = num_rows((*args, *kwargs.values())), Subsampling()
    with plates, Evaluating():
        loss = svi.loss.loss(rng_key, params, svi.model, svi.guide, *args, **kwargs)
    return devices.kept_on_all(loss * few / plates.stand_for(few))


@partial(jax.jit, static_argnums=2)
def _slice_rows(arrays: tuple[Array, ...], start: Any, size: int) -> list[Array]:
    return [
        jax.lax.dynamic_slice_in_dim(value, start, size) if value.ndim else value
        for value in arrays
    ]
