"""Folders and files of a run: proved to be writable, replaced whole or not at all.

But for the package's name this file is the same in both packages.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["open_folder", "set_aside", "write_atomically"]


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder and prove that it can be written to.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`folder` cannot be written to: {str(path)!r} ({error.strerror}). Choose another."
        ) from None
    return path


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
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


def set_aside(path: Path) -> None:
    """Rename a file or folder, if it is there, to ``*.previous*``, in place of an earlier one."""
    if not path.exists():
        return
    previous = path.with_stem(f"{path.stem}.previous")
    if previous.is_dir():
        shutil.rmtree(previous)
    path.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
