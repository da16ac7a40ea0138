"""The log: one JSON object per line, in step with the checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_dvae.fit.checkpoints import CHECKPOINT, write_atomically

LOG = "log.jsonl"


class Log:
    """Rows kept in memory and, given a folder, appended to its `log.jsonl`."""

    def __init__(self, folder: Path | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = None if folder is None else folder / LOG

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


def scalars(info: Any) -> dict[str, float]:
    """Return the scalar fields of a loss's `info`."""
    found = {}
    for name, value in getattr(info, "_asdict", dict)().items():
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            found[name] = float(value)
    return found


def keep_previous_run(folder: Path) -> None:
    """Move the checkpoint and log of an earlier run out of the way of a new one."""
    for name in (CHECKPOINT, LOG):
        path = folder / name
        if path.exists():
            path.replace(path.with_stem(f"{path.stem}.previous"))


def _line(row: dict[str, Any]) -> str:
    """Write strict JSON, which has no NaN or infinity."""
    finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
    return json.dumps(finite) + "\n"
