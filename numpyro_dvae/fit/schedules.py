"""Schedules: callables from the step to a value, constant after `num_steps`.

One schedule serves both a loss (``DAPS_ELBO(beta=exponential_schedule(0.5, 0.01, 10_000))``)
and, times a constant, the learning rate of an optimiser of `numpyro.optim` or `optax`. The step
is a number or a traced array; schedules of `optax` serve as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_dvae.ops.arguments import check_counts, check_numbers, checked

__all__ = ["cosine_schedule", "exponential_schedule", "linear_schedule", "warmup_schedule"]


@checked
def exponential_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """Go from `start` at step 0 to `end` at `num_steps` by a constant factor per step.

    Raises:
        ValueError: If an end is not positive, or `num_steps` < 1.

    Example:
        >>> exponential_schedule(1.0, 0.01, 100)(50)
        0.1
    """
    check_numbers(start=start, end=end)
    if not (start > 0 and end > 0):
        raise ValueError(
            f"`start` and `end` of an exponential schedule must be positive; got {start} and "
            f"{end}. For a schedule that ends at 0 use `linear_schedule`."
        )
    check_counts(num_steps=num_steps)
    return _Exponential(start, end, num_steps)


@checked
def linear_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """Go from `start` at step 0 to `end` at `num_steps` by a constant amount per step.

    Raises:
        ValueError: If an end is not finite, or `num_steps` < 1.

    Example:
        >>> linear_schedule(1.0, 0.0, 100)(25)
        0.75
    """
    check_numbers(start=start, end=end)
    check_counts(num_steps=num_steps)
    return _Linear(start, end, num_steps)


@checked
def cosine_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """Go from `start` at step 0 to `end` at `num_steps` along half a period of a cosine.

    Raises:
        ValueError: If an end is not finite, or `num_steps` < 1.

    Example:
        >>> cosine_schedule(1.0, 0.0, 100)(50)
        0.5
    """
    check_numbers(start=start, end=end)
    check_counts(num_steps=num_steps)
    return _Cosine(start, end, num_steps)


@checked
def warmup_schedule(schedule: Callable[[Any], Any], num_steps: int) -> Callable[[Any], Any]:
    """Let a schedule grow from nearly 0 to its own values over the first `num_steps` steps.

    Raises:
        ValueError: If `num_steps` < 1.

    Example:
        >>> warmup_schedule(linear_schedule(1.0, 1.0, 1), 4)(1)
        0.5
    """
    check_counts(num_steps=num_steps)
    return _Warmup(schedule, num_steps)


@dataclass(frozen=True)
class _Exponential:
    """Called with a step; data rather than a closure, so that losses with it can be pickled."""

    start: float
    end: float
    num_steps: int

    def __call__(self, step: Any) -> Any:
        return self.start * (self.end / self.start) ** _fraction(step, self.num_steps)


@dataclass(frozen=True)
class _Linear:
    """As `_Exponential`."""

    start: float
    end: float
    num_steps: int

    def __call__(self, step: Any) -> Any:
        return self.start + (self.end - self.start) * _fraction(step, self.num_steps)


@dataclass(frozen=True)
class _Cosine:
    """As `_Exponential`."""

    start: float
    end: float
    num_steps: int

    def __call__(self, step: Any) -> Any:
        angle = math.pi * _fraction(step, self.num_steps)
        cosine = jnp.cos(angle) if isinstance(angle, jax.Array) else math.cos(angle)
        return self.end + 0.5 * (self.start - self.end) * (1.0 + cosine)


@dataclass(frozen=True)
class _Warmup:
    """As `_Exponential`."""

    schedule: Callable[[Any], Any]
    num_steps: int

    def __call__(self, step: Any) -> Any:
        return self.schedule(step) * _fraction(step + 1, self.num_steps)


def _fraction(step: Any, num_steps: int) -> Any:
    fraction = step / num_steps
    return jnp.minimum(fraction, 1.0) if isinstance(fraction, jax.Array) else min(fraction, 1.0)
