"""Several runs from different starts, of which the best is kept.

Where the gradient leads depends on where it starts: a decoder may stall in an optimum of its own
however good the inference is. Runs are compared by their loss of late, an exponential average
over the last tenth of the steps; with a bound as the loss, by the bound.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from jaxtyping import Float
from pyro.infer import SVI

from pyro_dvae.fit.loop import fit
from pyro_dvae.fit.result import DivergenceError, FitResult

__all__ = ["fit_restarts", "recent_loss"]


def fit_restarts(
    make_svi: Callable[[], SVI], *data: Any, num_restarts: int = 4, num_steps: int, **settings: Any
) -> FitResult:
    """Train from `num_restarts` starts, one after the other, and keep the best run.

    The parameter store then holds the parameters of the best run. A run that diverges is out.

    Args:
        make_svi: Makes model, guide and their `SVI`, afresh for each run: networks and optimiser
            with first values of their own.
        *data: As in `fit`.
        num_restarts: Runs.
        num_steps: Steps of each run.
        **settings: As in `fit`. Each run has a folder of its own in `folder`, `restart-0` and so
            on; with `resume` those that are there go on.

    Returns:
        The result of the best run; `recent_loss` of its losses is the least.

    Raises:
        ValueError: If `num_restarts` is not positive, or by `fit`.
        DivergenceError: If all runs diverge.
    """
    if num_restarts < 1:
        raise ValueError(f"`num_restarts` must be at least 1; got {num_restarts}.")
    best: tuple[float, FitResult, Any] | None = None
    diverged: DivergenceError | None = None
    for i in range(num_restarts):
        with pyro.get_param_store().scope() as store:
            try:
                result = fit(make_svi(), *data, num_steps=num_steps, **_settings(settings, i))
            except DivergenceError as error:
                diverged = error
                continue
        loss = recent_loss(result.losses)
        if best is None or loss < best[0]:
            best = loss, result, store
    if best is None:
        assert diverged is not None
        raise diverged
    pyro.get_param_store().set_state(best[2])
    return best[1]


def recent_loss(losses: Float[np.ndarray, "steps"]) -> float:
    """Exponential average of the losses, with the last tenth of the steps as its time constant."""
    decay = math.exp(-10.0 / len(losses))
    weights = decay ** np.arange(len(losses))[::-1]
    return float(np.average(losses, weights=weights))


def _settings(settings: dict[str, Any], i: int) -> dict[str, Any]:
    """The settings of run i; one that has not begun has nothing to resume."""
    folder = settings.get("folder")
    if folder is None:
        return settings
    own = Path(folder) / f"restart-{i}"
    begun = bool(settings.get("resume")) and (own / "checkpoint.pt").exists()
    return {**settings, "folder": own, "resume": begun}
