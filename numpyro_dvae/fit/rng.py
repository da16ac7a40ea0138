"""The global generators of NumPy, Python and Torch, as plain values.

JAX has none, and a run takes its numbers from `rng_key`. But a user's iterable of batches may
shuffle by one of these; a `DataLoader` does by Torch's. Torch is not imported here: if nobody
else has, nobody draws from it.
"""

import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["get_state", "preserved", "set_state"]


def get_state() -> dict[str, Any]:
    """Return the state of every global generator that an iterable may draw from."""
    numpy: Any = np.random.get_state()  # noqa: NPY002  (iterables may use the global one)
    kind, words, *position = numpy
    version, internal, gauss = random.getstate()
    state = {
        "numpy": [kind, words.tolist(), *position],
        "python": [version, list(internal), gauss],
    }
    if (torch := _torch()) is not None:
        state["torch"] = torch.get_rng_state().tolist()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Set every global generator; Torch's, too, if a loader of the saved run has drawn from it."""
    kind, words, *position = state["numpy"]
    np.random.set_state((kind, np.array(words, np.uint32), *position))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "torch" in state:
        torch = _torch() or importlib.import_module("torch")  # a new process has not met it yet
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))


@contextmanager
def preserved() -> Iterator[None]:
    """Run a block that leaves every global generator as it found it."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)


def _torch() -> Any:
    module = sys.modules.get("torch")
    return module if hasattr(module, "get_rng_state") else None
