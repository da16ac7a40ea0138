"""Baselines for score-function gradients: what to subtract from a particle's score.

The gradient ``E_q[f ∇ log q]`` keeps its expectation if a baseline b that does not depend
on the particle is taken from its score f, as E[∇ log q] = 0; a good b removes most of the
noise. Each function here makes a `Baseline`, a pair of pure functions:

    state = baseline.init()
    values, state = baseline.apply(scores, state, prediction)
    advantages = scores - values

Shapes: particles lead, as in ``(K, *batch)``; scores are in nats. Values carry no gradient.

References:
    [1] Williams. Simple statistical gradient-following algorithms. Machine Learning, 1992.
    [2] Mnih & Gregor. Neural variational inference and learning (NVIL). ICML, 2014.
    [3] Kool, van Hoof & Welling. Buy 4 REINFORCE samples, get a baseline for free!
        ICLR workshop, 2019.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.ops.arguments import checked

__all__ = [
    "Baseline",
    "MovingAverageState",
    "learned",
    "leave_one_out",
    "moving_average",
    "no_baseline",
]


class MovingAverageState(NamedTuple):
    """What a moving average carries from batch to batch."""

    total: Float[Tensor, ""]  # weighted sum of the past batches' mean scores, in nats
    weight: Float[Tensor, ""]  # sum of their weights, 1 - decay ** steps


BaselineState = tuple[Tensor, ...]  # whatever `apply` hands on; () if nothing


class Baseline(NamedTuple):
    """A baseline as a pair of pure functions, and what it asks of its caller."""

    init: Callable[[], BaselineState]
    """Makes the state before the first step."""
    apply: Callable[[Tensor, BaselineState, Tensor | None], tuple[Tensor, BaselineState]]
    """Maps (scores, state, prediction) to (values that broadcast to the scores, next state).

    The prediction is None unless it `predicts`.
    """
    min_particles: int
    """The fewest particles per datum it can work with."""
    predicts: bool
    """Whether it takes a prediction, one per datum, which the guide computes."""


def no_baseline() -> Baseline:
    """Subtract nothing (Williams [1])."""
    return Baseline(_no_state, _nothing, min_particles=1, predicts=False)


def leave_one_out() -> Baseline:
    """Subtract from each particle's score the mean score of the others (Kool et al. [3]).

    Example:
        >>> leave_one_out().apply(torch.tensor([1.0, 2.0, 6.0]), (), None)[0]
        tensor([4.0000, 3.5000, 1.5000])
    """
    return Baseline(_no_state, _mean_of_others, min_particles=2, predicts=False)


@checked
def moving_average(decay: float = 0.9) -> Baseline:
    """Subtract one scalar, the decaying average of the mean scores of past batches.

    The current batch enters only after its own value is made, or its gradient were biased.
    Each batch counts as one, whatever its size. The average is corrected for its start:
    0 at the first step, the first batch's mean at the second. A batch whose mean score is
    not finite shows in that step's loss and leaves the state as it was.

    Args:
        decay: Weight of the past at each step, in [0, 1); 0 keeps the last batch alone.

    Raises:
        ValueError: If `decay` is outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay` is the weight of the past, in [0, 1); got {decay}.")

    return Baseline(_no_past, partial(_mean_of_the_past, decay), min_particles=1, predicts=False)


def learned() -> Baseline:
    """Subtract a prediction of the score, one per datum, computed from the datum alone [2].

    The value carries no gradient: the caller trains the prediction by regressing the scores
    on it, as a loss of its own.
    """
    return Baseline(_no_state, _prediction, min_particles=1, predicts=True)


def _nothing(
    scores: Float[Tensor, "K *batch"],
    state: BaselineState,
    prediction: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, ""], BaselineState]:
    return scores.new_zeros(()), state


def _mean_of_others(
    scores: Float[Tensor, "K *batch"],
    state: BaselineState,
    prediction: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "K *batch"], BaselineState]:
    scores = scores.detach()
    if scores.shape[0] < 2:
        raise ValueError(
            f"`scores` needs K >= 2 particles on axis 0 for a leave-one-out baseline; got "
            f"{tuple(scores.shape)}. Raise `num_particles` or use another baseline."
        )
    return (scores.sum(dim=0) - scores) / (scores.shape[0] - 1), state


def _no_past() -> MovingAverageState:
    return MovingAverageState(torch.zeros(()), torch.zeros(()))


def _mean_of_the_past(
    decay: float,
    scores: Float[Tensor, "K *batch"],
    state: BaselineState,
    prediction: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, ""], BaselineState]:
    total, weight = (entry.to(scores.device, scores.dtype) for entry in state)
    value = total / torch.where(weight > 0.0, weight, 1.0)  # no past yet: 0
    mean = scores.detach().mean()
    seen = torch.isfinite(mean)
    total = torch.where(seen, decay * total + (1.0 - decay) * mean, total)
    weight = torch.where(seen, decay * weight + (1.0 - decay), weight)
    return value, MovingAverageState(total, weight)


def _prediction(
    scores: Float[Tensor, "K *batch"],
    state: BaselineState,
    prediction: Float[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "..."], BaselineState]:
    if prediction is None:
        raise ValueError(
            "`prediction` must be an array of one predicted score per datum for a learned "
            "baseline; got None. Let the guide compute it, or use another baseline."
        )
    return prediction.detach(), state


def _no_state() -> tuple[()]:
    return ()
