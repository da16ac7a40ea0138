"""What the command lines share: common arguments, one-line errors, the JSON line at the end."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "CommandError",
    "Parser",
    "check_folder",
    "finish",
    "open_folder",
    "positive",
    "run_main",
]


class CommandError(Exception):
    """Something the user can put right; its text is the one line that is shown."""


class Parser(argparse.ArgumentParser):
    """An argument parser with the arguments of every example and one-line errors."""

    def __init__(self, description: str | None, *, out: str | None) -> None:
        first = (description or "").split("\n\n")[0]
        super().__init__(description=first, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
        self.add_argument("--seed", type=int, default=0, help="same seed, same numbers")
        self.add_argument("--out", type=Path, default=out, help="folder for all that is written")
        self.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
        self.add_argument("--json", action="store_true", help="end with one line of JSON")

    def error(self, message: str) -> NoReturn:
        """Raise what `run_main` shows as one line."""
        raise CommandError(message)


def positive(text: str) -> int:
    """Parse a count, at least 1 and of 31 bits."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    if value >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below {2**31}, got {text!r}")
    return value


def check_folder(path: Path | None) -> None:
    """Check that a folder is there, if one is given."""
    if path is not None and not path.is_dir():
        raise CommandError(f"no such folder: {path}")


def open_folder(path: Path) -> Path:
    """Make an output folder and see that it can be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        raise CommandError(f"--out {path}: cannot be written to ({error.strerror})") from None
    if not writable:
        raise CommandError(f"--out {path}: cannot be written to")
    return path


def finish(result: dict[str, Any], out: Path | None, *, show: bool, name: str) -> None:
    """Write the result as JSON to the folder and, if asked, as the last line of the output."""
    plain = {key: _plain(value) for key, value in result.items()}
    if out is not None:
        (out / name).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    if show:
        print(json.dumps(plain), flush=True)


def run_main(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command; bad input is one line and exit status 2, as from other tools."""
    try:
        main(sys.argv[1:])
    except (CommandError, ValueError) as error:
        _exit(2, f"error: {_one_line(error)}")
    except (FloatingPointError, OSError) as error:  # training diverged; no room, no permission
        _exit(1, f"error: {_one_line(error)}")
    except KeyboardInterrupt as error:
        _exit(128 + getattr(error, "signal", 2), _one_line(error) or "Interrupted.")
    sys.exit(0)


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    """Python numbers of six digits: NumPy's and Torch's scalars do not pass as JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)
    return float(f"{number:.6g}") if abs(number) < float("inf") else None
