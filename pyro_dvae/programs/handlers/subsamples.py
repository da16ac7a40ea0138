"""Rows that plates draw in one run, kept for others, which replay them or hold them.

`drawn_subsamples` finds those of a run; under `HeldRows` all runs have the same.
"""

from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyro_dvae.programs.messages import Rows, is_among, is_subsample, rows_of_plates
from pyro_dvae.programs.sites import Run

__all__ = ["HeldRows", "drawn_subsamples"]


def drawn_subsamples(run: Run) -> poutine.Trace:
    """The subsamples that a run has drawn, to be replayed; not all rows, however many they are."""
    minibatch = poutine.Trace()
    for trace in (run.guide_trace, run.model_trace):
        taken = rows_of_plates(trace)
        for name, rows in taken.items():
            if not rows.are_all:
                minibatch.nodes.setdefault(name, trace.nodes[name])
    return minibatch


class HeldRows(Messenger):
    """Plates that subsample take the rows that they drew in the first run that had them.

    Rows that a program gives to a plate are those of its arguments, which may be others by then.

    Args:
        minibatch: Subsamples that runs have drawn; those of further plates are added.
    """

    def __init__(self, minibatch: poutine.Trace) -> None:
        super().__init__()
        self.minibatch = minibatch

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and is_among(msg, self.minibatch.nodes) and is_subsample(msg):
            msg["value"] = Rows.of(self.minibatch.nodes[msg["name"]]).indices
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg) and not Rows.of(msg).are_all:
            self.minibatch.nodes.setdefault(msg["name"], msg.copy())
