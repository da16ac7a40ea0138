"""Means and medians over draws, the standard errors of means, and whether weights settle them.

NumPy alone, so this file is the same in both packages.
"""

import numpy as np

__all__ = [
    "are_few",
    "bound_error",
    "error_of_means",
    "is_bound_of",
    "is_unsettled",
    "mean_and_error",
    "median_of",
]

_DOMINATES = 0.2  # share of all weight that one draw may have
_ROUNDING = 1e-4  # nats, of sums in single precision
_FEW = 5  # distinct states; of fewer, those that were not drawn may matter more than these show
_EVEN = 0.9  # of the draws: worth so many, they settle the bound, whatever their tail's shape


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the draws, the first axis, and its standard error; NaN of one draw alone."""
    count = len(values)
    with np.errstate(invalid="ignore"):  # an impossible draw has -inf
        spread = values.std(0, ddof=1) if count > 1 else np.full(values.shape[1:], np.nan)
        return np.asarray(values.mean(0)), np.asarray(spread / np.sqrt(count))


def are_few(num_states: np.ndarray, num_possible: np.ndarray | float) -> np.ndarray:
    """Whether few states were drawn of each datum, of more that the guide can draw.

    Standard errors of means over these draws are at least what they show.
    """
    few = (num_states < _FEW) & (num_states < np.asarray(num_possible))
    return np.asarray(few)


def bound_error(ess: np.ndarray, num_draws: int, is_one: np.ndarray) -> np.ndarray:
    """Standard error of the log of a mean of weights, of their effective sample size.

    Draws that are all one state leave others of about 1 / K in all unseen.
    """
    least = np.where(is_one, 1 / num_draws**2, 0.0)
    return np.asarray(np.sqrt(np.maximum(1 / ess - 1 / num_draws, least)))


def is_bound_of(weights: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Whether weights for the evidence are those of the loss, in all draws of a datum."""
    with np.errstate(invalid="ignore"):  # an impossible draw is one in both
        return np.asarray(~(np.abs(weights - log_weights) > _ROUNDING).any(0))


def is_unsettled(
    khat: np.ndarray | float,
    threshold: float,
    largest_weight: np.ndarray | float,
    share: np.ndarray | float,
) -> np.ndarray:
    """Whether a few draws carry the weight; k̂ tells the shape of a tail, not its weight.

    Args:
        khat: k̂ of the weights, NaN where it does not apply.
        threshold: Above which it is too large.
        largest_weight: Share of the weight that one draw has.
        share: Effective sample size, in that of as many exact draws.
    """
    matters = np.less(share, _EVEN)
    return np.asarray((khat > threshold) & matters | np.greater(largest_weight, _DOMINATES))


def error_of_means(values: np.ndarray) -> float:
    """Standard error over the draws of the mean over the data, ``(K, *plates)``.

    Data that share a latent vary together, so that errors of each do not tell it.
    """
    return float(mean_and_error(values.reshape(len(values), -1).mean(1))[1])


def median_of(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of the numbers that there are; NaN where there is none."""
    known = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    count = (~np.isnan(values)).sum(0)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    ends = [
        np.take_along_axis(known, place[None], 0)[0]
        for place in (low, np.minimum(high, len(values) - 1))
    ]
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (ends[0] + ends[1]) / 2, np.nan)
