"""How good the gradients of losses are: their noise, and whether they agree.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["GradientQuality", "gradient_quality"]


class GradientQuality(NamedTuple):
    """The gradients of losses at the same parameters: means, noise, and whether they agree."""

    losses: tuple[str, ...]
    signal: np.ndarray  # length of the mean gradient, of each loss
    noise: np.ndarray  # square root of the trace of its covariance
    cosine: np.ndarray  # between the mean gradients of each two losses
    variance: dict[str, np.ndarray]  # parameter -> its share of the trace, of each loss
    num_repeats: int

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio of one gradient of each loss; infinite for an exact one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.signal / self.noise

    def __repr__(self) -> str:
        """A table with a line for each loss."""
        width = max(12, *(len(name) + 2 for name in self.losses))
        columns = ("signal", "noise", "snr", *(f"cos {name}" for name in self.losses))
        lines = [" " * width + "".join(f"{column:>{width + 4}}" for column in columns)]
        for i, name in enumerate(self.losses):
            cells = (self.signal[i], self.noise[i], self.snr[i], *self.cosine[i])
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>{width + 4}.4g}" for cell in cells))
        return "\n".join(lines)


def gradient_quality(
    moments: Mapping[str, Mapping[str, tuple[np.ndarray, float]]], num_repeats: int
) -> GradientQuality:
    """Sum up gradients: loss -> parameter -> (mean gradient, trace of its covariance)."""
    names = sorted({name for each in moments.values() for name in each})
    if not names:
        raise ValueError("`select` leaves no parameter: check the names it is asked for.")
    means = [
        np.concatenate([np.ravel(each[name][0]) for name in names]) for each in moments.values()
    ]
    variance = {name: np.array([each[name][1] for each in moments.values()]) for name in names}
    trace = np.sum(list(variance.values()), axis=0)
    products = np.array([[first @ second for second in means] for first in means])
    signal = np.sqrt(np.maximum(np.diag(products) - trace / num_repeats, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):  # no signal, no direction
        cosine = products / np.outer(signal, signal)
    np.fill_diagonal(cosine, np.where(signal > 0, 1.0, np.nan))
    cosine = np.clip(cosine, -1.0, 1.0)
    return GradientQuality(tuple(moments), signal, np.sqrt(trace), cosine, variance, num_repeats)
