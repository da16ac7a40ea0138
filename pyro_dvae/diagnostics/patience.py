"""How long reports take, where each draw is a run of its own: said once that is known."""

import time
import warnings
from collections.abc import Iterator

from pyro_dvae.diagnostics.waiting import waited

__all__ = ["Patience"]

_LOOKED = 3.0  # seconds, after which the rest can be told
_LONG = 30.0  # seconds that nothing is said of


class Patience:
    """Counts the runs of programs that take draws one by one, and says how long they will take.

    Args:
        num_runs: All that are to come.
    """

    def __init__(self, num_runs: int) -> None:
        self.num_runs, self._done, self._has_told = num_runs, 0, False
        self._begin: float | None = None

    def over(self, num_runs: int) -> Iterator[int]:
        """Number some of the runs, which are made on the way."""
        begin = self._begin = time.perf_counter() if self._begin is None else self._begin
        for i in waited(range(num_runs), "draws"):
            yield i
            self._done += 1
            seconds = time.perf_counter() - begin
            if not self._has_told and seconds > _LOOKED:
                self._has_told = True
                self._tell(seconds * self.num_runs / self._done)

    def _tell(self, seconds: float) -> None:
        if seconds <= _LONG:
            return
        about = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
        warnings.warn(
            "model or guide does not take all draws at once, on an axis left of all plates, so "
            f"that each of {self.num_runs} draws is a run of its own: this will take about "
            f"{about}. Index from the right (x[..., i], sum(-1)), and let no Python `if` or "
            "`while` ask for a draw, to have them at once; or ask for fewer draws.",
            stacklevel=2,
        )
