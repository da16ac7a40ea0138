"""The losses of a run as they reach the host, and the check that training has not diverged.

A loss of +inf is that of impossible data, or draws: training goes on with what is possible, if the
parameters stay finite. NaN is a divergence.

But for the package's name this file is the same in both packages.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from numpyro_dvae.fit.result import DivergenceError

__all__ = ["check_finite", "warn_of_impossible"]


def check_finite(
    losses: Sequence[float],
    finite_data: Sequence[bool],
    culprits: Sequence[str],
    checkpoint: Path | None,
) -> list[int]:
    """Stop a run whose latest losses are NaN, or their batches or its parameters not finite.

    Args:
        losses: Losses of all steps; the latest, as many as `finite_data` has entries, are checked.
        finite_data: Whether the batch of each of the latest steps was finite.
        culprits: Names of parameters and buffers that are not finite.
        checkpoint: Path of the last good checkpoint, None if there is none.

    Returns:
        The latest steps whose loss is +inf.

    Raises:
        DivergenceError: If there is anything else that is not finite; it names the data as well.
    """
    first = len(losses) - len(finite_data) + 1
    latest = range(first, len(losses) + 1)
    diverged = [step for step in latest if not losses[step - 1] > -math.inf]
    bad_data = [step for step, ok in zip(latest, finite_data, strict=True) if not ok]
    culprits = [*(f"the data of step {step}" for step in bad_data), *culprits]
    if diverged or culprits:
        finite = [loss for loss in losses if math.isfinite(loss)]
        step = min(diverged, default=len(losses))
        raise DivergenceError(step, finite[-1] if finite else None, checkpoint, culprits)
    return [step for step in latest if losses[step - 1] == math.inf]


def warn_of_impossible(step: int, rows: Sequence[int], sites: Sequence[str]) -> None:
    """Say that the loss of a step is +inf, and of which data, if that is known.

    Args:
        step: The step.
        rows: Data whose draws are all impossible.
        sites: What the guide draws without a gradient, if that is known.
    """
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    whose = f"data in rows {shown} of `data` have" if rows else "a datum, or a draw, has"
    drawn = f"values of {', '.join(map(repr, sites))}" if sites else "values"
    warnings.warn(
        f"the loss of step {step} is infinite: {whose} probability 0 under the model, or the guide "
        f"draws {drawn} that the data rule out. Training goes on with what is possible. Leave "
        "these data out, give the model a likelihood that allows what is observed, or take a guide "
        "that draws what is possible alone: AutoDiscrete leaves out what the data rule out.",
        stacklevel=6,
    )
