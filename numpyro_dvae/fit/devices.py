"""A training on several devices: each has some rows of every batch.

Rows are spread over a mesh of devices, all else is the same on each, and XLA makes of the one
program of a step one for each of them, with all that they have to tell each other. Random numbers
do not depend on how an array is spread, so the numbers of a run are those of one device, but for
the order in which sums are taken.

Devices may be those of several processes, of one or several hosts, which have met by
`jax.distributed.initialize`: each runs the same program, with all data, and the first one writes.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from numpyro_dvae.fit.data import Batch, num_rows
from numpyro_dvae.fit.files import folder_of_run

__all__ = ["Devices"]

_AXIS = "data"
_LOST = re.compile("gloo|nccl|coordination|heartbeat|connection|unavailable|deadline", re.I)


class Devices:
    """The devices of a training; one alone is what JAX makes of it.

    Args:
        devices: Which ones; None is JAX's own choice, one.

    Raises:
        ValueError: If there is none, or some of several processes have none among them.
    """

    def __init__(self, devices: Sequence[jax.Device] | None) -> None:
        self.size = 1 if devices is None else len(devices)
        self.is_first, self._is_one_process = True, True
        self._rows: NamedSharding | None = None
        self._whole: NamedSharding | None = None
        if devices is not None:
            self._spread(devices)

    def _spread(self, devices: Sequence[jax.Device]) -> None:
        if not len(devices):
            raise ValueError("`devices` is empty: pass some, as `jax.devices()`, or leave it out.")
        processes = {device.process_index for device in devices}
        self._is_one_process = processes == {jax.process_index()}
        if not self._is_one_process and len(processes) < jax.process_count():
            raise ValueError(
                f"`devices` are of the processes {sorted(processes)} of {jax.process_count()}: "
                "pass those of all, `jax.devices()`, or those of one, `jax.local_devices()`."
            )
        self.is_first = self._is_one_process or jax.process_index() == 0
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

    # ---------------------------------------------------------------------------- where arrays are

    def on_all(self, tree: Any) -> Any:
        """Arrays that are the same on all devices."""
        if self._whole is None:
            return tree
        if self._is_one_process:
            return jax.device_put(tree, self._whole)
        return jax.tree.map(self._on_all_hosts, tree)

    def _on_all_hosts(self, leaf: Any) -> Any:
        """An array that each process has."""
        if not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = self._on_all_hosts(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(self._whole, np.asarray(leaf), leaf.shape)

    def local(self, tree: Any) -> Any:
        """Arrays that are the same on all devices, as this process alone may use them."""
        return tree if self._is_one_process else jax.tree.map(_local, tree)

    def kept_on_all(self, tree: Any) -> Any:
        """As `on_all`, within a compiled program."""
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

    # ---------------------------------------------------------------------- what processes agree on

    def agree(self, identity: dict[str, Any]) -> None:
        """Check that all processes train the same.

        Raises:
            ValueError: If one has other data or settings.
        """
        if self._is_one_process:
            return
        sums = [hashlib.sha256(json.dumps(v, sort_keys=True).encode()) for v in identity.values()]
        numbers = np.array([int.from_bytes(s.digest()[:4], "big") for s in sums], np.uint32)
        everyone = np.asarray(multihost_utils.process_allgather(numbers))
        for name, found in zip(identity, everyone.T, strict=True):
            if (found != found[0]).any():
                rank = int(np.argmax(found != found[0]))
                raise ValueError(
                    f"process {rank} trains with another {name!r} than process 0. Start all of "
                    "them with the same program, data and seeds: `fit` gives each device its rows."
                )

    def settled(self, tree: Any) -> Any:
        """The same; waited for where processes must not start what comes next in another order."""
        return tree if self._is_one_process else jax.block_until_ready(tree)

    def first_number(self, number: int) -> int:
        """That of the first process."""
        if self._is_one_process:
            return number
        return int(multihost_utils.broadcast_one_to_all(np.int32(number)))

    def agreed_signal(self, received: int) -> int:
        """The signal that any process has received, 0 if none has."""
        if self._is_one_process:
            return received
        return int(np.max(multihost_utils.process_allgather(np.int32(received))))

    def first_does(self, do: Callable[[], Any]) -> None:
        """Let the first process do something, and the others wait for it.

        Raises:
            ValueError: In the others, if it fails.
        """
        error: Exception | None = None
        if self.is_first:
            try:
                do()
            except Exception as found:
                error = found
        if self.first_number(error is not None) and error is None:
            raise ValueError("the first process of this run has failed; its own message says why.")
        if error is not None:
            raise error

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Run a block that says in one line that another process is gone, if it is."""
        try:
            yield
        except (RuntimeError, ValueError) as error:  # whichever call of XLA's notices it
            if self._is_one_process or not _LOST.search(str(error)):
                raise
            raise ConnectionError(
                "another process of this run has ended, or cannot be reached: what it has written "
                "says why. Start all of them again; a run with a `folder` goes on from its last "
                "checkpoint with `resume=True`."
            ) from error

    @contextmanager
    def folder_of_run(self, folder: str | os.PathLike[str] | None) -> Iterator[Path | None]:
        """As `files.folder_of_run`, which the first process does for all."""
        held = folder_of_run(folder)
        if self._is_one_process:
            with held as place:
                yield place
            return
        self.first_does(held.__enter__)
        try:
            yield None if folder is None else Path(folder)
        finally:
            if self.is_first:
                held.__exit__(None, None, None)


def _local(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(leaf).addressable_data(0)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0)


def _constrained(tree: Any, sharding: NamedSharding) -> Any:
    def constrain(leaf: Any) -> Any:
        has_rows = isinstance(leaf, jax.Array) and leaf.ndim > 0
        is_whole = not any(sharding.spec)
        if isinstance(leaf, jax.Array) and (has_rows or is_whole):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        return leaf

    return jax.tree.map(constrain, tree)
