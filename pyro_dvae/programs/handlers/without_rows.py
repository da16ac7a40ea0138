"""Plates without rows, which Pyro has none of, are refused by their names."""

from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_dvae.programs.messages import is_subsample

__all__ = ["RowsChecked"]


class RowsChecked(Messenger):
    """Refuses a plate of size 0, or of a subsample of no rows, before Pyro divides by it."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg) and len(msg["value"]) == 0:
            raise ValueError(
                f"plate '{msg['name']}' has no rows: Pyro's plates have at least one, of "
                f"{msg['fn'].size} here. Pass data with rows, and where a call may have none leave "
                "the plate out of it, in model and guide alike: `if len(x):`."
            )
