"""What takes long shows how far it is: a progress bar, once it has taken five seconds.

`TQDM_DISABLE=1` in the environment keeps it away. But for the package's name this file is the same
in both packages.
"""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

__all__ = ["waited"]

T = TypeVar("T")

_SILENT = 5.0  # seconds


def waited(steps: Iterable[T], what: str, count: int | None = None) -> Iterator[T]:
    """Go through some steps, with a progress bar if they take long.

    Args:
        steps: What is gone through.
        what: What a step is, in the plural.
        count: How many there are, of what has no length.
    """
    if count is None and isinstance(steps, Sized):
        count = len(steps)
    if count == 1:
        yield from steps
        return
    options = {"leave": False, "dynamic_ncols": True, "delay": _SILENT}
    yield from tqdm(steps, desc=what, total=count, **options)
