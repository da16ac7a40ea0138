"""Folders and files of a run: proved to be writable, replaced whole or not at all.

But for the package's name this file is the same in both packages.
"""

import contextlib
import errno
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where a folder is not locked
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_system",
    "folder_of_run",
    "open_folder",
    "set_aside",
    "write_atomically",
    "writing",
]

_HELD: set[int] = set()  # descriptors of folders that are locked
_OF_THE_SYSTEM = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM}
_TRIES = 30  # a tenth of a second apart, to remove what is still written to
_LEFT_OVER = (".checkpoint.pt.*", ".log.jsonl.*", "checkpoint/*.orbax-checkpoint-tmp*")


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder and prove that it can be written to.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(folder)
    if not os.fspath(folder):
        raise ValueError("`folder` is empty: name a folder, or '.' for this one.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # a name may hold what no system allows
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"`folder` cannot be written to: {str(path)!r} ({reason}). Choose another."
        ) from None
    return path


@contextlib.contextmanager
def folder_of_run(folder: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """Keep a folder for one run: others are refused until the block ends or the process does.

    What a killed run has left half-written is removed. Without a folder there is nothing to do.

    Raises:
        ValueError: If the folder cannot be written to, or another run is in it.
    """
    if folder is None:
        yield None
        return
    path = open_folder(folder)
    with _locked(path):
        for pattern in _LEFT_OVER:
            for left in path.glob(pattern):
                _clear(left)
        yield path


def _clear(left: Path) -> None:
    """Remove what a run has left behind, unless threads of a save that failed still write to it."""
    for _ in range(_TRIES):
        try:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            return
        except FileNotFoundError:  # removed beside us
            continue
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        time.sleep(0.1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The system's lock on a folder, which no process leaves behind; nothing where there is none.

    Processes that are started meanwhile, as a `DataLoader` does, do not keep it alive.
    """
    if fcntl is None:
        yield
        return
    _let_go_in_children()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise ValueError(
                f"`folder`: another run is writing to {str(folder)!r}. Wait until it ends, or "
                "choose another folder."
            ) from None
    _HELD.add(descriptor)
    try:  # without a lock where a network's file system has none
        yield
    finally:
        _HELD.discard(descriptor)
        os.close(descriptor)


@functools.cache
def _let_go_in_children() -> None:
    """A lock is that of all processes that have its descriptor: those forked close theirs."""

    def close() -> None:
        while _HELD:
            os.close(_HELD.pop())

    os.register_at_fork(after_in_child=close)


@contextlib.contextmanager
def writing(path: Path | None, checkpoint: Path | None, step: int) -> Iterator[None]:
    """Write to a file of a run; where the system does not let it, say so in one line.

    Args:
        path: The file or folder; None writes nothing.
        checkpoint: The last good checkpoint, None if there is none.
        step: Steps that the run has taken.

    Raises:
        OSError: If there is no room, no permission, no descriptor left.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or next(iter(str(error).splitlines()), type(error).__name__)
        kept = _kept(checkpoint)
        raise OSError(
            error.errno or errno.EIO,
            f"{reason}: {str(path)!r} could not be written at step {step}; {kept}. Make room, or "
            "see to the permissions, and go on with `resume=True`",
        ) from error


def _kept(checkpoint: Path | None) -> str:
    """What there is to go on from."""
    if checkpoint is None:
        return "there is no checkpoint"
    return f"{str(checkpoint)!r} is {'whole' if os.path.exists(checkpoint) else 'gone'}"


def check_system(path: Path, error: Exception) -> None:
    """Check that what could not be read is at fault itself, and not the system.

    Raises:
        ValueError: If the system does not let it be read: it may be whole.
    """
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        raise ValueError(
            f"`folder`: {str(path)!r} cannot be opened: {error.strerror}. See to that, and try "
            "again: it may be whole."
        ) from error


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)
    watched = _Watched(file)
    try:
        with file:
            write(watched)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException as error:
        Path(file.name).unlink(missing_ok=True)
        if watched.error is not None and isinstance(error, Exception):
            raise watched.error from None
        raise
    _sync_folder(path.parent)


class _Watched:
    """A file that remembers why it could not be written, which a library may hide."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def set_aside(path: Path) -> None:
    """Rename a file or folder, if it is there, to ``*.previous*``, in place of an earlier one."""
    if not path.exists():
        return
    previous = path.with_stem(f"{path.stem}.previous")
    if previous.is_dir() and not previous.is_symlink():
        shutil.rmtree(previous)
    elif path.is_dir():
        previous.unlink(missing_ok=True)
    path.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
