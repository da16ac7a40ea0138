"""Runs that only look: without gradient, and with the generators as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyro
import torch

__all__ = ["only_looking", "without_gradient"]

T = TypeVar("T")


def without_gradient(run: Callable[[], T]) -> T:
    """Run without gradient; with it, where a program differentiates inside of itself."""
    try:
        with torch.no_grad():
            return run()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return run()


def only_looking(run: Callable[[], T]) -> T:
    """As `without_gradient`, and what is drawn on the way is drawn again by whoever comes next."""
    with _generators_kept():
        return without_gradient(run)


@contextmanager
def _generators_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    state = pyro.util.get_rng_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)
