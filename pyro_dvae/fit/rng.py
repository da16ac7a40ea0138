"""The global generators of Torch (CPU and CUDA), NumPy and Python, as plain values."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_state", "preserved", "set_state"]


def get_state() -> dict[str, Any]:
    """Return the state of every global generator that a model may draw from."""
    numpy: Any = np.random.get_state()  # noqa: NPY002  (Pyro models use the global one)
    kind, words, *position = numpy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(words.astype(np.int64)), *position],
        "python": random.getstate(),
    }


def set_state(state: dict[str, Any]) -> None:
    """Set every global generator; CUDA devices that this machine lacks are left out."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, value in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(value, device)
    kind, words, *position = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *position))  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def preserved() -> Iterator[None]:
    """Run a block that leaves every global generator as it found it."""
    state = get_state()
    try:
        yield
    finally:
        set_state(state)
