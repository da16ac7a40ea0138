"""What the closed forms of a model gather between their updates, the memory of a truncated loss.

Each step adds the statistics of its data, averaged over the members of their sets. Once all data
have been seen, the parameters are set at their optimum and gathering begins anew.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_dvae.ops.noise import current_share
from pyro_dvae.ops.processes import total as summed_over
from pyro_dvae.programs.readers.statistics import Factors, Statistic, sums

__all__ = ["TruncatedMemory", "gather"]


class TruncatedMemory(NamedTuple):
    """What the closed forms have gathered since their last update."""

    totals: dict[str, Tensor]  # parameter -> sum over data of q's mean statistic, of its shape
    counts: dict[str, Tensor]  # parameter -> how many observed entries are in it
    rows: int  # data seen


def gather(
    statistics: Mapping[str, Statistic | Factors],
    targets: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    weights: Float[Tensor, "S *plates"],
    memory: TruncatedMemory,
) -> TruncatedMemory:
    """Add the statistics of these data to those since the last update.

    Args:
        statistics: Of each site with a closed form, of all members.
        targets: Of each such site, the name that its parameter's totals have in the memory; sites
            with one parameter share them.
        shapes: Of the parameters, by that name.
        weights: q of each member.
        memory: What has been gathered; nothing is kept of it where there are no statistics.
    """
    if not statistics:
        return TruncatedMemory({}, {}, 0)
    totals, counts = dict(memory.totals), dict(memory.counts)
    for name, statistic in statistics.items():
        target = targets[name]
        total, count = _of_all(sums(statistic, weights, shapes[target]))
        if target in totals:  # after a resume they may be on another device
            total = total + totals[target].to(total.device)
            count = count + counts[target].to(count.device)
        totals[target], counts[target] = total, count
    share = current_share()
    rows = weights[0].numel() * (1 if share is None else share.size)
    return TruncatedMemory(totals, counts, memory.rows + rows)


def _of_all(sums_of_own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over the data of all processes that share a batch."""
    if current_share() is None:
        return sums_of_own
    total, count = sums_of_own
    return summed_over(total), summed_over(count)
