"""How good the gradients of losses are: their noise, and whether they agree.

NumPy alone, so this file is the same in both packages.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["GradientQuality", "check_losses", "gradient_quality"]


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


def check_losses(losses: Any, num_repeats: int, method: str) -> None:
    """Raise unless losses have names, and the method by which they are evaluated, often enough."""
    if not isinstance(losses, Mapping) or not losses or num_repeats < 2:
        names = list(losses) if isinstance(losses, Mapping) else losses
        raise ValueError(
            '`losses` must name at least one loss, as in `{"reinforce": Reinforce_ELBO()}`, and '
            f"`num_repeats` be at least 2; got {names} and {num_repeats}."
        )
    for name, loss in losses.items():
        if not isinstance(name, str) or isinstance(loss, type) or not hasattr(loss, method):
            raise ValueError(
                f"`losses` must have losses, as `Reinforce_ELBO()`, by names; got {loss!r} as "
                f"{name!r}."
            )


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
