"""The log: one JSON object per line, in step with the checkpoint."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from numpyro_dvae.fit.checkpoints import CHECKPOINT

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
            _write_atomically(self._path, lambda file: file.write(text))


def scalars(info: Any) -> dict[str, float]:
    """Return the scalar fields of a loss's info."""
    found = {}
    for name, value in jax.device_get(getattr(info, "_asdict", dict)()).items():
        if isinstance(value, int | float | np.ndarray | np.generic) and np.size(value) == 1:
            found[name] = float(np.asarray(value).item())
    return found


def keep_previous_run(folder: Path) -> None:
    """Move the checkpoint and log of an earlier run out of the way of a new one."""
    for name in (CHECKPOINT, LOG):
        path = folder / name
        if path.exists():
            previous = path.with_stem(f"{path.stem}.previous")
            if previous.is_dir():
                shutil.rmtree(previous)
            path.replace(previous)


def _line(row: dict[str, Any]) -> str:
    """Write strict JSON, which has no NaN or infinity."""
    finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
    return json.dumps(finite) + "\n"


def _write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
