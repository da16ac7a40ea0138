"""Loss on held-out data, which leaves no trace in the training."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit import batches as _batches
from numpyro_dvae.fit import rng as _rng


class Evaluation:
    """Mean loss per datum over held-out data, in batches of the training's size.

    Every evaluation uses the same random numbers, those of `rng_key`.
    """

    def __init__(self, rng_key: Array, svi: SVI, data: Any, batch_size: int | None) -> None:
        self._rng_key, self._arrays = rng_key, None
        arrays = data if isinstance(data, tuple) else (data,)
        if isinstance(data, tuple) or not _batches.is_iterable_of_batches(data):
            self._arrays = _batches.as_arrays(arrays, "eval_data")
        elif iter(data) is data:
            raise ValueError(
                "`eval_data` is an iterator, which can be used only once: pass arrays, a list "
                "of batches or a `DataLoader`."
            )
        self._data, self._batch_size = data, batch_size
        self._evaluate = partial(jax.jit, static_argnums=3)(partial(_evaluate, svi))

    def loss(self, svi_state: SVIState) -> float:
        """Return the sum of the loss over the batches by the number of rows."""
        losses, rows = [], 0
        with _rng.preserved():
            for i, batch in enumerate(self._cut()):
                key = jax.random.fold_in(self._rng_key, i)
                losses.append(self._evaluate(svi_state, key, *_batches.split(batch)))
                rows += _batches.num_rows((*batch[0], *batch[1].values()))
        if rows == 0:
            raise ValueError("`eval_data` gave no batch: it must hold at least one.")
        return float(np.sum(jax.device_get(losses), dtype=np.float64)) / rows

    def _cut(self) -> Iterator[_batches.Batch]:
        if self._arrays is None:
            yield from map(_batches.as_batch, self._data)
            return
        arrays, layout = _batches.split((self._arrays, {}))
        size = _batches.num_rows(self._arrays)
        step = min(self._batch_size or size, size)
        for start in range(0, size, step):
            yield layout.join(_slice_rows(arrays, start, min(step, size - start)))


def _evaluate(
    svi: SVI, svi_state: SVIState, rng_key: Array, arrays: list[Array], layout: Any
) -> Array:
    """As `SVI.evaluate`, which leaves the mutable state out."""
    args, kwargs = layout.join(arrays)
    params = {**svi.get_params(svi_state), **(svi_state.mutable_state or {})}
    kwargs = {**kwargs, **svi.static_kwargs}
    return svi.loss.loss(rng_key, params, svi.model, svi.guide, *args, **kwargs)


@partial(jax.jit, static_argnums=2)
def _slice_rows(arrays: list[Array], start: Any, size: int) -> list[Array]:
    return [
        jax.lax.dynamic_slice_in_dim(value, start, size) if value.ndim else value
        for value in arrays
    ]
