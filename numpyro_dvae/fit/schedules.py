"""Schedules: callables from the step to a value, constant after `num_steps`.

One schedule serves both a loss (``DAPS_ELBO(beta=exponential_schedule(0.5, 0.01, 10_000))``)
and, times a constant, the learning rate of an optimiser of `numpyro.optim` or `optax`. The step
is a number or a traced array; schedules of `optax` serve as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["exponential_schedule", "linear_schedule"]


def exponential_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """Go from `start` at step 0 to `end` at `num_steps` by a constant factor per step.

    Raises:
        ValueError: If an end is not positive, or `num_steps` < 1.
    """
    if not (start > 0 and end > 0):
        raise ValueError(
            f"`start` and `end` of an exponential schedule must be positive; got {start} and "
            f"{end}. For a schedule that ends at 0 use `linear_schedule`."
        )
    _check_num_steps(num_steps)
    return lambda step: start * (end / start) ** _fraction(step, num_steps)


def linear_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """Go from `start` at step 0 to `end` at `num_steps` by a constant amount per step.

    Raises:
        ValueError: If `num_steps` < 1.
    """
    _check_num_steps(num_steps)
    return lambda step: start + (end - start) * _fraction(step, num_steps)


def _fraction(step: Any, num_steps: int) -> Any:
    fraction = step / num_steps
    return jnp.minimum(fraction, 1.0) if isinstance(fraction, jax.Array) else min(fraction, 1.0)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` of a schedule must be at least 1; got {num_steps}.")
