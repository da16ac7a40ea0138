"""Several runs from different starts, of which the best is kept.

Where the gradient leads depends on where it starts: a decoder may stall in an optimum of its own
however good the inference is. Runs are compared by their loss of late, an exponential average
over the last tenth of the steps; with a bound as the loss, by the bound.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Float
from pyro.infer import SVI
from torch import Tensor

from pyro_dvae.fit.checkpoints import CHECKPOINT
from pyro_dvae.fit.loop import fit
from pyro_dvae.fit.result import DivergenceError, FitResult
from pyro_dvae.fit.svi import keep_start, start_of
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["fit_restarts"]


@checked
def fit_restarts(
    make_svi: Callable[[], SVI],
    *data: Any,
    num_restarts: int = 4,
    num_steps: int,
    batch_size: int | None = None,
    transform: Callable[..., Any] | None = None,
    eval_data: Any = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    capture: bool = False,
    progress: bool = True,
    log_every: int = 50,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
) -> FitResult:
    """Train from `num_restarts` starts, one after the other, and keep the best run.

    The parameter store then holds the parameters of the best run. A run that diverges is out.

    Args:
        make_svi: Makes model, guide and their `SVI`, afresh for each run: networks and optimiser
            with first values of their own.
        *data: As in `fit`.
        num_restarts: Runs.
        num_steps: Steps of each run.
        batch_size: As in `fit`.
        transform: As in `fit`; each run draws on its own.
        eval_data: As in `fit`.
        folder: As in `fit`. Each run has a folder of its own in it, `restart-0` and so on.
        resume: The runs that have begun in `folder` go on; the others begin.
        capture: As in `fit`.
        progress: As in `fit`.
        log_every: As in `fit`.
        eval_every: As in `fit`.
        checkpoint_every: As in `fit`.

    Returns:
        The result of the best run: the exponential average of its losses is the least, with a tenth
        of the steps as its time constant. Its `runs` are all.

    Raises:
        ValueError: If `num_restarts` is not positive, if runs share parameters, or by `fit`.
        DivergenceError: If all runs diverge.
    """
    _check_makes(make_svi)
    check_counts(num_restarts=num_restarts, num_steps=num_steps, log_every=log_every)
    check_counts(eval_every=eval_every, checkpoint_every=checkpoint_every, batch_size=batch_size)

    def run(i: int) -> tuple[SVI, FitResult]:
        place = None if folder is None else Path(folder) / f"restart-{i}"
        svi = keep_start(make_svi())
        return svi, fit(
            svi,
            *data,
            num_steps=num_steps,
            batch_size=batch_size,
            transform=transform,
            eval_data=eval_data,
            folder=place,
            resume=resume and (place is None or (place / CHECKPOINT).exists()),
            progress=progress,
            log_every=log_every,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
            capture=capture,
        )

    return _best_of(num_restarts, run)


def _recent_loss(losses: Float[np.ndarray, "steps"]) -> float:
    """Exponential average of the losses, with the last tenth of the steps as its time constant."""
    decay = math.exp(-10.0 / len(losses))
    weights = decay ** np.arange(len(losses))[::-1]
    return float(np.average(losses, weights=weights))


def _best_of(num_runs: int, run: Callable[[int], tuple[SVI, FitResult]]) -> FitResult:
    """Make the runs, each in a parameter store of its own, and leave that of the best."""
    found: list[tuple[float, FitResult, Any]] = []
    starts: list[dict[str, bytes]] = []
    diverged: DivergenceError | None = None
    for i in range(num_runs):
        before = torch.get_rng_state()
        with pyro.get_param_store().scope() as store:
            try:
                svi, result = run(i)
            except DivergenceError as error:
                diverged = error
                continue
        _check_apart(store["params"], [other["params"] for *_, other in found])
        found.append((_recent_loss(result.losses), result, store))
        starts.append(start_of(svi))
        if torch.equal(before, torch.get_rng_state()):  # it drew nothing but its first values,
            torch.rand(())  # which only a look has drawn: the next run is to have others
    if not found:
        assert diverged is not None
        raise diverged
    found.sort(key=lambda each: each[0])
    pyro.get_param_store().set_state(found[0][2])
    alike = [n for n, value in starts[0].items() if all(each.get(n) == value for each in starts)]
    runs = tuple(result for _, result, _ in found)
    return replace(found[0][1], runs=runs, alike=tuple(alike) if len(runs) > 1 else ())


def _check_apart(params: dict[str, Tensor], others: list[dict[str, Tensor]]) -> None:
    """Whether a run began at first values of its own.

    Raises:
        ValueError: If it has tensors of another run, or views of these: it begins where that ends.
    """
    taken = {_memory(param) for other in others for param in other.values() if param.numel()}
    for name, param in params.items():
        if _memory(param) in taken:
            raise ValueError(
                f"`make_svi` must make model and guide afresh for each run, but parameter '{name}' "
                "is the memory of one tensor in several runs: what one of them trains, the next "
                "starts with. Make what holds it, as the guide, or what it starts as, within "
                "`make_svi` (or start with a `.clone()` of it)."
            )


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _check_makes(make_svi: Any) -> None:
    if isinstance(make_svi, SVI):  # which Pyro lets be called
        raise ValueError(
            "`make_svi` must be a function that makes an SVI; got an SVI. Write `lambda: SVI(...)` "
            "in which model, guide and optimiser are made, too."
        )
