"""Arrays whose dims have names, and what one counts and averages over their data.

NumPy alone, so this file is the same in both packages.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "NamedArray",
    "check_entries",
    "codes_that_occur",
    "count_codes",
    "log_sum",
    "shares_of",
    "split_data",
    "variance_of_mean",
]


@dataclass(frozen=True)
class NamedArray:
    """An array whose dims have names, but for the draws in front of it."""

    dims: tuple[str, ...]
    values: Any  # an array of the backend where it is read, of NumPy where it is kept
    discrete: bool = False
    num_codes: int = 0  # values 0, 1, ... of a discrete site that has finitely many


def check_entries(sites: Mapping[str, NamedArray]) -> None:
    """Refuse sites without a value, of which there is no mean.

    Raises:
        ValueError: Which names the site.
    """
    for name, site in sites.items():
        shape = site.values.shape[1:]
        if 0 in shape:
            raise ValueError(
                f"site '{name}' has no values, of which to count or average: its shape is {shape}. "
                "Pass data that give it some, or leave the site out of model and guide for these."
            )


def split_data(array: NamedArray, plates: tuple[str, ...]) -> np.ndarray:
    """View ``(K, N, *within)``: draws, data, and what a datum has of the array."""
    axes = [1 + array.dims.index(plate) for plate in plates]
    values = np.moveaxis(array.values, axes, range(1, 1 + len(axes)))
    within = values.shape[1 + len(axes) :]
    return values.reshape(len(values), math.prod(values.shape[1 : 1 + len(axes)]), *within)


def codes_that_occur(array: NamedArray) -> np.ndarray:
    """The codes of all latents, in order; a site that is not there in a draw is NaN."""
    return np.unique(array.values[~np.isnan(array.values)]).astype(int)


def count_codes(array: NamedArray, plates: tuple[str, ...], codes: np.ndarray) -> np.ndarray:
    """How often each of the codes, in order, occurs over draws and data: ``(*within, codes)``."""
    values = split_data(array, plates)
    columns = values.reshape(values.shape[0] * values.shape[1], -1).T
    counts = [
        np.bincount(np.searchsorted(codes, column[~np.isnan(column)]), minlength=len(codes))
        for column in columns
    ]
    return np.stack(counts).reshape(*values.shape[2:], len(codes))


def shares_of(values: np.ndarray, num_values: int, weights: np.ndarray | None) -> np.ndarray:
    """The share of each of the values 0, 1, ... among draws ``(K, *dims)``: ``(*dims, V)``.

    Of draws in which a site is not there, whose values are NaN, there is no share.

    Args:
        values: Of the draws.
        num_values: V.
        weights: Of the draws, of sum 1, ``(K, ...)`` that broadcasts; all alike if None.
    """
    num_draws, dims = len(values), values.shape[1:]
    there = ~np.isnan(values)
    index = np.where(there, values, 0).astype(int).reshape(num_draws, -1)
    num_places = index.shape[1]
    index = index + num_values * np.arange(num_places)
    alike = np.where(there, 1 / num_draws if weights is None else weights, 0.0)
    counts = np.bincount(index.ravel(), alike.ravel(), num_places * num_values)
    shares = counts.reshape(*dims, num_values)
    return shares if there.all() else shares / np.maximum(shares.sum(-1, keepdims=True), 1e-300)


def variance_of_mean(
    array: NamedArray, plates: tuple[str, ...], num_codes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Variance over the data of the mean over draws, which two halves of these estimate.

    Of codes, half the sum of that of their indicators; data whose values are NaN do not count. And
    its standard error, as far as the draws make it.
    """
    values = split_data(array, plates)
    if not num_codes:
        return _covariance([values])
    missing, codes = np.isnan(values), codes_that_occur(array)
    total, error = _covariance(np.where(missing, np.nan, values == code) for code in codes)
    return np.asarray(total / 2), np.asarray(error / 2)


def _covariance(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Over the data, between the means of two halves of the draws: (K, N, *within) to (*within).

    Of all parts together, with the error: given one half, it is a mean over the other's draws.
    """
    total, along, scale = 0.0, [0.0, 0.0], 1
    for values in parts:
        half = len(values) // 2
        halves = [part.mean(0, dtype=np.float64) for part in (values[:half], values[half:])]
        there = ~np.isnan(halves[0] + halves[1])
        scale = np.maximum(there.sum(0) - 1, 1)
        first, second = (np.where(there, each, 0.0) for each in halves)
        apart = [each - each.sum(0) / np.maximum(there.sum(0), 1) for each in (first, second)]
        apart = [np.where(there, each, 0.0) for each in apart]
        total = total + (apart[0] * second).sum(0)
        drawn = np.where(there, values, 0.0)
        along = [sum_of + each * drawn for sum_of, each in zip(along, apart, strict=True)]
    noise = sum(_noise_of_mean(np.asarray(each)) for each in along)
    return np.asarray(total / scale), np.asarray(np.sqrt(noise) / scale)


def _noise_of_mean(values: np.ndarray) -> np.ndarray:
    """Variance of a mean over half the draws of the sum over the data, which may share draws."""
    count, half = len(values), len(values) // 2
    apart = values.var(0, ddof=1).sum(0)
    whole = [each - each.mean(0) for each in (values[:half].sum(1), values[half:].sum(1))]
    together = (np.concatenate(whole) ** 2).sum(0) / max(count - 2, 1)
    return np.asarray(np.maximum(apart, together) / half)


def log_sum(values: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials over the first axis; -inf where all are."""
    top = values.max(0)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - top).sum(0)) + top)
