"""The log: one JSON object per line, in step with the checkpoint.

But for the package's name this file is the same in both packages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_dvae.fit.checkpoints import CHECKPOINT
from numpyro_dvae.fit.files import set_aside, write_atomically

__all__ = ["LOG", "Log", "set_run_aside", "shown_on_bar"]

LOG = "log.jsonl"
_NOT_ON_THE_BAR = {"step", "loss", "elbo", "beta_elbo", "seconds", "steps_per_second"}
_SHOWN_AS = {"eval_loss": "eval_loss/datum"}  # as the others are of a whole batch


class Log:
    """Rows kept in memory and, given a folder, appended to its `log.jsonl`."""

    def __init__(self, folder: Path | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = None if folder is None else folder / LOG

    def next_row(
        self, losses: Sequence[float], step: int, seconds: float, scalars: Mapping[str, float]
    ) -> dict[str, Any]:
        """Make, not write, the row of a run after so many steps, in so many `seconds`."""
        start: dict[str, Any] = self.rows[-1] if self.rows else {"step": 0, "seconds": 0.0}
        return {
            "step": step,
            "loss": losses[step - 1],
            "mean_loss": float(np.mean(losses[start["step"] : step])),
            **scalars,
            "steps_per_second": (step - start["step"]) / max(seconds - start["seconds"], 1e-9),
        }

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Go back to the rows of a checkpoint: what was written after it did not happen."""
        self.rows = rows
        if self._path is not None:
            text = "".join(map(_line, rows)).encode()
            write_atomically(self._path, lambda file: file.write(text))


def set_run_aside(folder: Path) -> None:
    """Move the checkpoint and log of an earlier run out of the way of a new one."""
    for name in (CHECKPOINT, LOG):
        set_aside(folder / name)


def shown_on_bar(row: Mapping[str, Any]) -> dict[str, str]:
    """What of a row stands on the progress bar."""
    shown = {name: f"{value:.4g}" for name, value in row.items() if name not in _NOT_ON_THE_BAR}
    return {_SHOWN_AS.get(name, name): value for name, value in shown.items()}


def _line(row: dict[str, Any]) -> str:
    """Write strict JSON, which has no NaN or infinity."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"
