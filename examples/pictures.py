"""Pictures of a training run: reconstructions, samples, curves. Drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt

__all__ = ["save_comparison", "save_curves", "save_reconstructions", "save_samples"]

_GAP = 1  # pixels between two images of a grid


def grid(images: np.ndarray, num_columns: int) -> np.ndarray:
    """Lay images (N, H, W[, C]) out in rows, white between them."""
    num_rows = -(-len(images) // num_columns)
    height, width = images.shape[1:3]
    step = (height + _GAP, width + _GAP)
    sheet = np.ones((num_rows * step[0] - _GAP, num_columns * step[1] - _GAP, *images.shape[3:]))
    for i, image in enumerate(images):
        row, column = step[0] * (i // num_columns), step[1] * (i % num_columns)
        sheet[row : row + height, column : column + width] = np.clip(image, 0, 1)
    return sheet


def save_reconstructions(path: Path, originals: np.ndarray, found: np.ndarray) -> None:
    """Pairs of rows: originals above, reconstructions below."""
    num_columns = min(16, len(originals))
    rows = [
        part
        for start in range(0, len(originals) - num_columns + 1, num_columns)
        for part in (originals[start : start + num_columns], found[start : start + num_columns])
    ]
    _save_sheet(
        path, grid(np.concatenate(rows), num_columns), "originals above, reconstructions below"
    )


def save_samples(path: Path, images: np.ndarray) -> None:
    """Samples from the prior."""
    _save_sheet(path, grid(images, 8), "samples from the prior")


def save_curves(path: Path, history: Sequence[dict[str, Any]], scale: float) -> None:
    """Minus the loss per image over the steps, and whatever else the method logs.

    Args:
        path: Where to.
        history: Rows of the log.
        scale: Images per training loss.
    """
    names = [n for n in ("ess", "temperature", "beta", "rate") if n in history[-1]]
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(4 + 3 * len(names), 3), squeeze=False)
    steps = [row["step"] for row in history]
    axes[0, 0].plot(steps, [-row["mean_loss"] / scale for row in history], label="training")
    held_out = [(row["step"], -row["eval_loss"]) for row in history if "eval_loss" in row]
    if held_out:
        axes[0, 0].plot(*zip(*held_out, strict=True), ".-", label="held out")
        axes[0, 0].legend(frameon=False)
    axes[0, 0].set_ylabel("ELBO per image, nats")
    for axis, name in zip(axes[0, 1:], names, strict=True):
        axis.plot(steps, [row[name] for row in history], color="C2")
        axis.set_ylabel(_LABELS.get(name, name))
        if name in ("temperature", "beta"):
            axis.set_yscale("log")
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


_LABELS = {"ess": "effective sample size / K", "rate": "rate, bits per image"}


def save_comparison(
    path: Path, originals: np.ndarray, methods: dict[str, tuple[str, np.ndarray, np.ndarray, list]]
) -> None:
    """One line per method: its caption, reconstructions, samples and curve.

    Args:
        path: Where to.
        originals: Images that every method reconstructs.
        methods: Name -> caption, reconstructions, samples, (step, ELBO) pairs.
    """
    num_columns = len(originals)
    figure, axes = plt.subplots(
        len(methods) + 1,
        3,
        figsize=(13, 1.6 * (len(methods) + 1) + 0.4),
        width_ratios=[num_columns, num_columns, 5],
        squeeze=False,
    )
    _show(axes[0, 0], grid(originals, num_columns), "test images")
    axes[0, 1].axis("off")
    axes[0, 2].axis("off")
    curves = figure.add_subplot(axes[0, 2].get_gridspec()[:, 2])
    for i, (name, (caption, found, samples, curve)) in enumerate(methods.items(), 1):
        _show(axes[i, 0], grid(found, num_columns), f"{name}: {caption}")
        _show(axes[i, 1], grid(samples, num_columns), f"{name}: samples from the prior")
        axes[i, 2].axis("off")
        curves.plot(*zip(*curve, strict=True), label=name, color=f"C{i - 1}")
    curves.set(xlabel="step", ylabel="test ELBO, nats per image")
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)
    _save(figure, path)


def _show(axis: Any, sheet: np.ndarray, title: str) -> None:  # noqa: ANN401  (a matplotlib axis)
    axis.imshow(sheet if sheet.ndim == 2 or sheet.shape[-1] == 3 else sheet[..., 0], cmap="gray_r")
    axis.set_title(title, fontsize=9, loc="left")
    axis.axis("off")


def _save_sheet(path: Path, sheet: np.ndarray, title: str) -> None:
    height, width = sheet.shape[:2]
    figure, axis = plt.subplots(figsize=(8, 8 * height / width + 0.4))
    _show(axis, sheet, title)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401  (a matplotlib figure)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
