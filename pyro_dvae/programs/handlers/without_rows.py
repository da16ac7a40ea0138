"""Plates without rows, which Pyro has none of, and sites without draws are refused by name."""

from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_dvae.programs.messages import is_drawn, is_subsample
from pyro_dvae.programs.sites import Site, no_draws

__all__ = ["RowsChecked"]


class RowsChecked(Messenger):
    """Refuses a plate of size 0, or of a subsample of no rows, before Pyro divides by it.

    And a site whose distribution fails to draw, as one that has a density alone does.
    """

    _begun: Any = None  # a site that is being drawn

    def __exit__(self, *error: Any) -> Any:
        left = super().__exit__(*error)
        if isinstance(error[1], NotImplementedError | AssertionError) and self._begun:
            raise no_draws(Site.of(self._begun), error[1]) from error[1]
        return left

    def _pyro_sample(self, msg: Any) -> None:
        self._begun = msg if is_drawn(msg) and not msg["done"] else None

    def _pyro_post_sample(self, msg: Any) -> None:
        self._begun = None
        if is_subsample(msg) and len(msg["value"]) == 0:
            raise ValueError(
                f"plate '{msg['name']}' has no rows: Pyro's plates have at least one, of "
                f"{msg['fn'].size} here. Pass data with rows, and where a call may have none leave "
                "the plate out of it, in model and guide alike: `if len(x):`."
            )
