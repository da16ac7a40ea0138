"""Plates without rows, which NumPyro has none of, are refused by their names."""

from types import TracebackType
from typing import Any

from jax.core import Tracer
from numpyro import plate
from numpyro.primitives import Messenger

__all__ = ["RowsChecked"]


class RowsChecked(Messenger):
    """Refuses a plate of size 0, or one that draws no rows, in place of NumPyro's raw errors.

    A plate whose rows are given, and are none, NumPyro takes: what is under it adds nothing.
    """

    def __exit__(
        self, exc_type: Any, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Before any handler hears of a plate it has failed: the traceback knows which."""
        super().__exit__(exc_type, exc_value, traceback)
        while traceback is not None:
            frame = traceback.tb_frame
            if frame.f_code in (plate.__init__.__code__, plate._subsample.__code__):
                _check_rows(**{name: frame.f_locals[name] for name in _NAMES}, error=exc_value)
            traceback = traceback.tb_next


_NAMES = ("name", "size", "subsample_size")


def _check_rows(name: str, size: Any, subsample_size: Any, error: BaseException | None) -> None:
    if 0 in [number for number in (size, subsample_size) if not isinstance(number, Tracer)]:
        raise ValueError(
            f"plate '{name}' has no rows: NumPyro's plates have at least one, of {size} here. Pass "
            "data with rows, and where a call may have none leave the plate out of it, in model "
            "and guide alike: `if len(x):`."
        ) from error
