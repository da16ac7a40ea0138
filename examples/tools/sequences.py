"""Sequences for the examples, as motion capture has them: windows of frames, standardised.

A .npz file with `x`, ``(N, T, C)``, and, if there is one, `x_test`; or a .npy file of such an
array. Sequences longer than a window are cut into windows that overlap by half.
"""

from pathlib import Path

import numpy as np
from data import Dataset
from untrusted import read_array, read_arrays

__all__ = ["load_sequences"]

_LEAST_VARIANCE = 1e-5  # of a channel; others do not change, and are left out
_SHOWN = 6.0  # standard deviations from black to white


def load_sequences(path: str | Path, frames: int, *, seed: int, gigabytes: float) -> Dataset:
    """Windows of `frames` frames, each channel with mean 0 and variance 1 over the training.

    Without `x_test`, a tenth of the sequences is for testing, none of whose windows is trained on.

    Raises:
        ValueError: If the file cannot be used; says why.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"data {str(path)!r}: sequences come from a .npz or .npy file of shape (N, T, C)"
        )
    if path.suffix == ".npy":
        found = {"x": read_array(path, gigabytes)}
    else:
        found = read_arrays(path, ("x", "x_test"), gigabytes)
    parts = {key: _checked(array, f"{path}: `{key}`", frames) for key, array in found.items()}
    train, test = parts["x"], parts.get("x_test")
    if test is None:
        if len(train) < 2:
            raise ValueError(
                f"{path}: `x` has one sequence; a part of them is for testing: give two or more, "
                "or `x_test`"
            )
        order = np.random.default_rng(seed).permutation(len(train))
        num_test = max(1, round(0.1 * len(train)))
        train, test = train[order[num_test:]], train[order[:num_test]]
    elif test.shape[2] != train.shape[2]:
        raise ValueError(
            f"{path}: `x` and `x_test` must have one number of channels, got {train.shape[2]} and "
            f"{test.shape[2]}"
        )
    return _standardized(path.stem, _windows(train, frames), _windows(test, frames))


def _checked(values: np.ndarray, name: str, frames: int) -> np.ndarray:
    """Check a user's sequences."""
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"{name} must have shape (N, T, C) and hold sequences, got {values.shape}")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold numbers, got {values.dtype}")
    if num_bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name} holds {num_bad} values that are NaN or infinite: remove them")
    if values.shape[1] < frames:
        raise ValueError(
            f"{name} has {values.shape[1]} frames, fewer than a window of {frames}: give a smaller "
            "--frames"
        )
    return values.astype(np.float32)


def _windows(values: np.ndarray, frames: int) -> np.ndarray:
    """Windows that begin at each half of a window, those of a sequence side by side."""
    starts = range(0, values.shape[1] - frames + 1, max(1, frames // 2))
    found = np.stack([values[:, start : start + frames] for start in starts], 1)
    return found.reshape(-1, frames, values.shape[2])


def _standardized(name: str, train: np.ndarray, test: np.ndarray) -> Dataset:
    mean, variance = train.mean((0, 1)), train.var((0, 1))
    kept = variance >= _LEAST_VARIANCE
    if not kept.any():
        raise ValueError(f"data {name}: no channel changes; there is nothing to learn")
    made = [((x - mean) / np.sqrt(variance + (~kept)))[..., kept] for x in (train, test)]
    return Dataset(name, *(x.astype(np.float32) for x in made), 0.5, 1 / _SHOWN)
