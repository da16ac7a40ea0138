"""Beta, the weight of the rate: a number, a schedule, or what a target rate steers.

Beta weighs the rate in the objective of every loss (Higgins et al. [1]). Where a rate is asked for
in its place, beta is the multiplier of that constraint (Rezende & Viola [2]): it rises while the
latents carry more than the target, and falls while they carry less.

References:
    [1] Higgins et al. beta-VAE: learning basic visual concepts with a constrained variational
        framework. ICLR, 2017.
    [2] Rezende & Viola. Taming VAEs. arXiv 1810.00597.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BetaState", "check_beta", "current_beta", "first_beta", "next_beta"]

_RATE_GAIN = 0.01  # largest change of log beta per step


class BetaState(NamedTuple):
    """Step count, and the logarithm of beta where a target rate steers it."""

    step: int
    log_beta: float | Tensor


def check_beta(owner: str, beta: Any, target_rate: float | None) -> None:
    """Whether these arguments of a loss can be.

    Raises:
        ValueError: If one is out of range, or if they exclude each other.
    """
    is_number = isinstance(beta, float | int) and not isinstance(beta, bool)
    if not callable(beta) and not (is_number and 0 <= beta < math.inf):
        raise ValueError(f"`beta` must be finite and not negative, or a schedule; got {beta!r}.")
    if target_rate is not None and not 0 < target_rate < math.inf:
        raise ValueError(f"`target_rate` must be positive and finite, in bits; got {target_rate}.")
    if target_rate is not None and (callable(beta) or beta == 0):
        raise ValueError(
            f"`target_rate` steers {owner}'s beta from the number that `beta` is, which must be "
            f"positive; got {'a schedule' if callable(beta) else beta}. Leave one of the two out."
        )


def first_beta(beta: float | Callable[[int], float]) -> BetaState:
    """What the first step needs."""
    return BetaState(0, 0.0 if callable(beta) or not beta else math.log(beta))


def current_beta(
    state: BetaState, beta: float | Callable[[int], float], target_rate: float | None
) -> float | Tensor:
    """Beta at this step."""
    if target_rate is not None:
        return torch.as_tensor(state.log_beta).exp()
    return float(beta(state.step)) if callable(beta) else beta


def next_beta(
    state: BetaState, target_rate: float | None, rate: float | Float[Tensor, ""]
) -> BetaState:
    """What the step after needs, of a step with this rate in nats per datum."""
    if target_rate is None:
        return BetaState(state.step + 1, state.log_beta)
    excess = torch.as_tensor(rate) / (target_rate * math.log(2)) - 1.0
    excess = torch.where(excess.isfinite(), excess, 0.0)  # a bad batch is not remembered
    return BetaState(state.step + 1, state.log_beta + _RATE_GAIN * excess.clamp(-1, 1))
