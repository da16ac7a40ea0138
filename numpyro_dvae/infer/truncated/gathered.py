"""What the closed forms of a model gather between their updates, the memory of a truncated loss.

Each step adds the statistics of its data, averaged over the members of their sets. Once all data
have been seen, the parameters are set at their optimum and gathering begins anew.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from numpyro_dvae.programs.readers.statistics import Factors, Statistic, sums

__all__ = ["TruncatedMemory", "gather"]


class TruncatedMemory(NamedTuple):
    """What the closed forms have gathered since their last update."""

    totals: dict[str, Array]  # parameter -> sum over data of q's mean statistic, of its shape
    counts: dict[str, Array]  # parameter -> how many observed entries are in it
    rows: Int[Array, ""]  # data seen


def gather(
    statistics: Mapping[str, Statistic | Factors],
    targets: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    weights: Float[Array, "S *plates"],
    memory: TruncatedMemory,
) -> TruncatedMemory:
    """Add the statistics of these data to those since the last update.

    Args:
        statistics: Of each site with a closed form, of all members.
        targets: Of each such site, the name that its parameter's totals have in the memory; sites
            with one parameter share them.
        shapes: Of the parameters, by that name.
        weights: q of each member.
        memory: What has been gathered; it stays as it is where there are no statistics.
    """
    if not statistics:
        return memory
    totals, counts = dict(memory.totals), dict(memory.counts)
    for name, statistic in statistics.items():
        target = targets[name]
        total, count = sums(statistic, weights, shapes[target])
        totals[target], counts[target] = totals[target] + total, counts[target] + count
    return TruncatedMemory(totals, counts, memory.rows + weights[0].size)
