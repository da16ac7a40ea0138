"""The losses of a run as they reach the host, and the check that training has not diverged.

But for the package's name this file is the same in both packages.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from numpyro_dvae.fit.result import DivergenceError

__all__ = ["check_finite"]


def check_finite(
    losses: Sequence[float],
    finite_data: Sequence[bool],
    culprits: Sequence[str],
    checkpoint: Path | None,
) -> None:
    """Stop a run whose latest losses, their batches or its parameters are not finite.

    Args:
        losses: Losses of all steps; the latest, as many as `finite_data` has entries, are checked.
        finite_data: Whether the batch of each of the latest steps was finite.
        culprits: Names of parameters and buffers that are not finite.
        checkpoint: Path of the last good checkpoint, None if there is none.

    Raises:
        DivergenceError: If there is anything that is not finite; it names the data as well.
    """
    first = len(losses) - len(finite_data) + 1
    latest = range(first, len(losses) + 1)
    diverged = [step for step in latest if not math.isfinite(losses[step - 1])]
    bad_data = [step for step, ok in zip(latest, finite_data, strict=True) if not ok]
    culprits = [*(f"the data of step {step}" for step in bad_data), *culprits]
    if diverged or culprits:
        finite = [loss for loss in losses if math.isfinite(loss)]
        step = min(diverged, default=len(losses))
        raise DivergenceError(step, finite[-1] if finite else None, checkpoint, culprits)
