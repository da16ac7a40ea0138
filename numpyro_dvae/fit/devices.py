"""A training on several devices: each has some rows of every batch.

Rows are spread over a mesh of devices, all else is the same on each, and XLA makes of the one
program of a step one for each of them, with all that they have to tell each other. Random numbers
do not depend on how an array is spread, so the numbers of a run are those of one device, but for
the order in which sums are taken.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from numpyro_dvae.fit.data import Batch, num_rows

__all__ = ["Devices"]

_AXIS = "data"


class Devices:
    """The devices of a training; one alone is what JAX makes of it.

    Args:
        devices: Which ones; None is JAX's own choice, one.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, devices: Sequence[jax.Device] | None) -> None:
        if devices is not None and not len(devices):
            raise ValueError("`devices` is empty: pass some, as `jax.devices()`, or leave it out.")
        self.size = 1 if devices is None else len(devices)
        self._rows: NamedSharding | None = None
        self._whole: NamedSharding | None = None
        if devices is not None:
            mesh = Mesh(np.array(devices), (_AXIS,))
            self._rows = NamedSharding(mesh, PartitionSpec(_AXIS))
            self._whole = NamedSharding(mesh, PartitionSpec())

    def check(self, size: int) -> None:
        """Check that the devices divide the rows of a batch.

        Raises:
            ValueError: If not.
        """
        if size % self.size:
            divisible = size - size % self.size
            fix = f"`batch_size={divisible}`" if divisible else f"at most {size} devices"
            raise ValueError(
                f"`batch_size`: the {size} rows of a batch are to be shared by {self.size} "
                f"devices, which must divide them. Take {fix}; of an iterable that makes its own "
                "batches, drop the last one if it is smaller."
            )

    def on_all(self, tree: Any) -> Any:
        """Arrays that are the same on all devices."""
        return tree if self._whole is None else jax.device_put(tree, self._whole)

    def kept_on_all(self, tree: Any) -> Any:
        """The same within a compiled program."""
        return tree if self._whole is None else _constrained(tree, self._whole)

    def shared(self, batch: Batch) -> Batch:
        """A batch whose rows are spread over the devices, within a compiled program."""
        if self._rows is None:
            return batch
        self.check(num_rows((*batch.args, *batch.kwargs.values())))
        return _constrained(batch, self._rows)

    def shared_if_even(self, batch: Batch) -> Batch:
        """The same if the devices divide it; else each has all of it."""
        is_even = num_rows((*batch.args, *batch.kwargs.values())) % self.size == 0
        return self.shared(batch) if is_even else batch


def _constrained(tree: Any, sharding: NamedSharding) -> Any:
    def constrain(leaf: Any) -> Any:
        has_rows = isinstance(leaf, jax.Array) and leaf.ndim > 0
        is_whole = not any(sharding.spec)
        if isinstance(leaf, jax.Array) and (has_rows or is_whole):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        return leaf

    return jax.tree.map(constrain, tree)
