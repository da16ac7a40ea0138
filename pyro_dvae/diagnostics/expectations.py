"""Posterior means of functions of the latents, by weighted draws.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

__all__ = ["WeightedDraws"]


class _ByName(dict):
    """Values by site, which say what there is where another one is asked for."""

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"`fn` asks for '{name}'; the latents are {sorted(self)}.")


class WeightedDraws(NamedTuple):
    """Draws of all latents with their weights."""

    values: Mapping[str, np.ndarray]  # of each site, K draws in front
    log_weights: np.ndarray  # (K, *plates): of each datum; (K,): of all latents together
    axes: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # of these plates, by site
    summed: Mapping[str, np.ndarray] = MappingProxyType({})  # of sites that are summed out, the
    # probabilities of their values given each draw

    def expectation(self, fn: Callable[[Mapping[str, np.ndarray]], Any]) -> np.ndarray:
        """As `ImportanceDiagnostics.expectation`."""
        if not callable(fn):
            raise ValueError(f"`fn` must be a function of the latents; got {fn!r}.")
        found, plates = np.asarray(fn(_ByName(self.values))), self.log_weights.shape
        if found.shape[: len(plates)] != plates:
            raise ValueError(
                f"`fn` must return an array of shape {plates} and more: draws, then data, which "
                f"have weights of their own; got {found.shape}. Reduce over later axes alone."
            )
        for name, first, values in self._exchanged():
            if not _agree(fn, self.values, values, found, first):
                raise ValueError(
                    f"`fn` must return numbers of each {name} by itself; what it returns for the "
                    f"first changes with the others, though its shape {found.shape} is that of "
                    "draws, then data. Reduce over later axes alone."
                )
        with np.errstate(invalid="ignore"):  # of a datum of which no draw is possible
            weights = np.exp(self.log_weights - self.log_weights.max(0))
        weights = (weights / weights.sum(0)).reshape(*plates, *[1] * (found.ndim - len(plates)))
        return np.asarray((weights * found).sum(0))

    def _exchanged(self) -> Iterator[tuple[str, tuple, Mapping[str, np.ndarray]]]:
        """Values of which the first draw, or datum, is as it was: its name, place, and values."""
        alike = {n: np.repeat(value[:1], len(value), 0) for n, value in self.values.items()}
        yield "draw", (0,), alike
        if self.log_weights[0].size < 2:
            return
        moved = {}
        for name, axes in self.axes.items():
            first = tuple(0 if i in axes else slice(None) for i in range(self.values[name].ndim))
            moved[name] = np.roll(self.values[name], 1, 0)
            moved[name][first] = self.values[name][first]
        place = (slice(None), *[0] * (self.log_weights.ndim - 1))
        yield "datum", place, {**self.values, **moved}


def _agree(fn: Callable, values: Any, other: Any, found: np.ndarray, place: tuple) -> bool:
    """Whether a function is the same at a place of other values, or is noisy by itself."""
    again = np.asarray(fn(other))
    same = again.shape == found.shape and np.allclose(
        again[place], found[place], rtol=1e-5, atol=1e-8, equal_nan=True
    )
    return same or not np.array_equal(np.asarray(fn(values)), found, equal_nan=True)
