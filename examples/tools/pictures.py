"""Pictures of a training run: reconstructions, samples, curves. Drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt

__all__ = [
    "save_bars",
    "save_comparison",
    "save_curves",
    "save_reconstructions",
    "save_restored",
    "save_samples",
    "save_weights",
]

_GAP = 1  # pixels between two images of a grid


def grid(images: np.ndarray, num_columns: int) -> np.ndarray:
    """Lay images (N, H, W[, C]) of values in [0, 1] out in rows, nothing between them."""
    return grid_unclipped(np.clip(images, 0, 1), num_columns)


def grid_unclipped(images: np.ndarray, num_columns: int) -> np.ndarray:
    """As `grid`, for any values."""
    num_rows = -(-len(images) // num_columns)
    height, width = images.shape[1:3]
    step = (height + _GAP, width + _GAP)
    sheet = np.full(
        (num_rows * step[0] - _GAP, num_columns * step[1] - _GAP, *images.shape[3:]), np.nan
    )
    for i, image in enumerate(images):
        row, column = step[0] * (i // num_columns), step[1] * (i % num_columns)
        sheet[row : row + height, column : column + width] = image
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
    num_columns = len(originals) // 2
    figure, axes = plt.subplots(
        len(methods) + 1,
        3,
        figsize=(13, 1.25 * (len(methods) + 1) + 0.2),
        width_ratios=[10, 10, 9],
        squeeze=False,
    )
    _show(axes[0, 0], grid(originals, num_columns), "test images")
    for axis in (axes[0, 1], *axes[:, 2]):
        axis.axis("off")
    for i, (name, (caption, found, samples, _)) in enumerate(methods.items(), 1):
        _show(axes[i, 0], grid(found, num_columns), f"{name}: {caption}")
        _show(axes[i, 1], grid(samples, num_columns), f"{name}: samples from the prior")
    _draw_curves(
        figure.add_subplot(axes[0, 2].get_gridspec()[:, 2]),
        {name: curve for name, (*_, curve) in methods.items()},
    )
    _save(figure, path)


def save_bars(path: Path, images: np.ndarray, bars: np.ndarray, found: np.ndarray) -> None:
    """Some of the data, the bars that made them, and what each latent adds to an image.

    A latent may have come to mean the absence of a bar.
    """
    rows = {"data": images[: 2 * len(bars)], "bars": bars, "one latent on": found}
    figure, axes = plt.subplots(len(rows), figsize=(1.0 * len(bars), 1.5 * len(rows)))
    for axis, (title, row) in zip(axes, rows.items(), strict=True):
        sheet = grid_unclipped(row, len(bars))
        axis.imshow(sheet, cmap="RdBu_r", vmin=-1.5, vmax=1.5)
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    _save(figure, path)


def save_weights(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Matrices of probabilities, one below the other: a row for each cause."""
    figure, axes = plt.subplots(len(weights), figsize=(8, 3 * len(weights)), squeeze=False)
    for axis, (title, matrix) in zip(axes[:, 0], weights.items(), strict=True):
        shown = axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_title(title, fontsize=9, loc="left")
        axis.set(ylabel="cause", xlabel="symptom")
        figure.colorbar(shown, ax=axis)
    _save(figure, path)


def save_restored(
    path: Path, clean: np.ndarray | None, given: np.ndarray, restored: np.ndarray
) -> None:
    """The clean image, if known, what was given (missing pixels are NaN), what was made of it."""
    images = {"clean": clean, "given": given, "restored": restored}
    images = {name: image for name, image in images.items() if image is not None}
    size = 5 * len(images), 5 * given.shape[0] / given.shape[1] + 0.4
    figure, axes = plt.subplots(1, len(images), figsize=size, squeeze=False)
    for axis, (name, image) in zip(axes[0], images.items(), strict=True):
        _show(axis, np.clip(image / 255, 0, 1), name)
    _save(figure, path)


# Okabe and Ito's colours, which all eyes tell apart; the marks differ too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
_MARKS = "osD^vP*X<>ph"


def _draw_curves(axis: Any, curves: dict[str, list]) -> None:
    for i, (name, curve) in enumerate(curves.items()):
        look = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKS[i % len(_MARKS)]}
        axis.plot(*zip(*curve, strict=True), ms=4, lw=1.2, label=name, **look)
    late = [value for curve in curves.values() for _, value in curve[len(curve) // 4 :]]
    margin = 0.05 * (max(late) - min(late)) + 1e-3
    axis.set_ylim(min(late) - margin, max(late) + margin)  # the first rise would hide the rest
    axis.set(xlabel="step", ylabel="test ELBO, nats per image")
    axis.spines[["top", "right"]].set_visible(False)
    _name_ends(axis)


def _name_ends(axis: Any) -> None:
    """Write each line's name beside its end, names apart from each other."""
    low, high = axis.get_ylim()
    room, places = 0.016 * (high - low), []
    for line in sorted(axis.lines, key=lambda line: line.get_ydata()[-1]):
        end = line.get_ydata()[-1]
        places.append(max(end, places[-1] + room) if places else end)
        axis.annotate(
            line.get_label(),
            (line.get_xdata()[-1], end),
            (1.04, places[-1]),
            textcoords=axis.get_yaxis_transform(),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.5},
            annotation_clip=False,
        )


def _show(axis: Any, sheet: np.ndarray, title: str) -> None:
    colour = sheet.ndim == 3 and sheet.shape[-1] == 3
    if colour:
        sheet = np.nan_to_num(sheet, nan=1.0)  # white between the images, as NaN is in gray
    elif sheet.ndim == 3:
        sheet = sheet[..., 0]
    axis.imshow(sheet, cmap=None if colour else "gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9, loc="left")
    axis.axis("off")


def _save_sheet(path: Path, sheet: np.ndarray, title: str) -> None:
    height, width = sheet.shape[:2]
    figure, axis = plt.subplots(figsize=(8, 8 * height / width + 0.4))
    _show(axis, sheet, title)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
