"""The training loop around a Pyro `SVI`.

Pyro's `SVI.step` reads the loss back to the host at every step, for which a GPU must wait.
`fit` takes the same step without: losses stay on the device and are read at every row of
the log. The parameters that a step changes are those that `SVI.step` would change.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import zero_grads
from pyro.optim import PyroLRScheduler
from torch import Tensor
from tqdm.auto import tqdm

from pyro_dvae.fit import batches as _batches
from pyro_dvae.fit.checkpoints import (
    load_checkpoint,
    loss_of,
    modules_of,
    open_folder,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from pyro_dvae.fit.evaluation import Evaluation, unchanged
from pyro_dvae.fit.log import Log, keep_previous_run, scalars
from pyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from pyro_dvae.fit.signals import Signals

__all__ = ["fit"]

_NOT_ON_THE_BAR = {"step", "loss", "elbo", "beta_elbo", "seconds", "steps_per_second"}


def fit(
    svi: SVI,
    *data: Any,
    num_steps: int,
    batch_size: int | None = None,
    eval_data: Any = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    log_every: int = 50,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
) -> FitResult:
    """Train the model and guide of `svi` for `num_steps` steps.

    Model and guide are called with one batch of `data`. After ``pyro.set_rng_seed(seed)`` a run
    repeats bit by bit on one thread. It begins at the parameters that are in Pyro's parameter
    store. Learning-rate schedulers of `pyro.optim` step once a step; `ReduceLROnPlateau` steps
    at each evaluation, with its loss. A subclass of `SVI` that overrides `step` has it called.
    Interrupted by SIGINT or SIGTERM, the run finishes its step, writes a checkpoint and stops.

    Args:
        svi: Model, guide, optimiser and loss. Scalars in the loss's `info` are logged, its
            `state` is checkpointed.
        *data: Arrays or tensors with one common leading axis, the data; scalars and None pass
            as they are. Or one iterable of batches (a `DataLoader`): a tuple is unpacked, a
            dict becomes keyword arguments.
        num_steps: Steps in all, those before a resume included.
        batch_size: Rows per step, drawn without replacement; the remainder of an epoch that
            fills no batch is dropped. None passes all data at every step, for models that
            subsample in their own plate.
        eval_data: Held-out data, like `data`; a tuple if the model takes several arrays. Its
            loss is averaged over the leading axis, in evaluation mode and without gradients,
            and leaves generators and the loss's state as they were.
        folder: Where to keep `checkpoint.pt`, replaced atomically, and `log.jsonl`. A run that
            is there already is renamed to `*.previous.*`.
        resume: Go on from the checkpoint in `folder`, to the numbers of an unbroken run.
        progress: Show a progress bar.
        log_every: Steps between rows of the log; losses and parameters are checked as often.
        eval_every: Steps between evaluations; there is one at the end.
        checkpoint_every: Steps between checkpoints; there is one at the end.

    Returns:
        The trained model and guide, parameters, losses and log.

    Raises:
        ValueError: If an argument cannot be used, or the checkpoint is of another model.
        DivergenceError: If the loss or a parameter is not finite.
        FitInterrupt: After SIGINT or SIGTERM.
    """
    every = SimpleNamespace(log=log_every, eval=eval_every, checkpoint=checkpoint_every)
    _check_counts(num_steps=num_steps, **{f"{key}_every": n for key, n in vars(every).items()})
    if resume and folder is None:
        raise ValueError("`resume` is True, but there is no `folder` to resume from: pass it.")
    batches = _batches.make_batches(data, batch_size, _device(svi))
    evaluation = None
    if eval_data is not None:
        evaluation = Evaluation(svi, eval_data, batch_size, _device(svi))
    _check_plateau(svi, evaluation)
    run = _Run(svi, batches, evaluation, None if folder is None else open_folder(folder))
    if resume:
        run.resume()
    elif run.folder is not None:
        keep_previous_run(run.folder)
    bar = tqdm(total=num_steps, initial=run.step, disable=not progress, dynamic_ncols=True)
    with Signals() as signals, bar:
        run.train(num_steps, every, signals, bar)
    return run.result()


class _Run:
    """A training run: the counters and logs that change from step to step."""

    def __init__(
        self,
        svi: SVI,
        batches: _batches.Batches,
        evaluation: Evaluation | None,
        folder: Path | None,
    ) -> None:
        self.svi, self.batches, self.evaluation, self.folder = svi, batches, evaluation, folder
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.pending: list[tuple[Tensor, Tensor]] = []  # losses still on the device, and checks
        self.log = Log(folder)
        self.checkpoint: Path | None = None
        self._clock = time.perf_counter()

    def resume(self) -> None:
        """Load the checkpoint of the folder into the `SVI` and this run."""
        assert self.folder is not None
        state = load_checkpoint(self.folder)
        with unchanged(self.svi):  # one pass makes the parameters, as a first step would
            args, kwargs = self.batches.next()
            self.svi.evaluate_loss(*args, **kwargs)
        self.batches.restore(state["data"])
        restore_training_state(self.svi, state["training"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = state["losses"].tolist()
        self.log.restore(state["history"])
        self.checkpoint = self.folder / "checkpoint.pt"

    def train(self, num_steps: int, every: SimpleNamespace, signals: Signals, bar: tqdm) -> None:
        """Step until `num_steps`, with all that is due between steps."""
        self._clock = time.perf_counter()
        while self.step < num_steps:
            self._take_step()
            bar.update()
            last = self.step == num_steps
            evaluate = self.evaluation is not None and (last or self.step % every.eval == 0)
            if evaluate or last or self.step % every.log == 0:
                self._write_row(evaluate, bar)
            interrupted = 0 if last else signals.received
            if last or interrupted or self.step % every.checkpoint == 0:
                self._save()
            if interrupted:
                raise FitInterrupt(interrupted, self.result())

    def result(self) -> FitResult:
        """Return the training so far."""
        return FitResult(
            model=self.svi.model,
            guide=self.svi.guide,
            params={n: v.detach().clone() for n, v in pyro.get_param_store().items()},
            losses=np.array(self.losses),
            history=self.log.rows,
            num_steps=self.step,
            seconds=self.seconds,
            folder=self.folder,
        )

    def _take_step(self) -> None:
        args, kwargs = batch = self.batches.next()
        finite = torch.tensor(True) if self.batches.checked else _batches.is_finite(batch)
        try:
            loss = _svi_step(self.svi, args, kwargs)
        except (RuntimeError, ValueError):  # Pyro or a sampler meets a NaN before there is a loss
            self.pending.append((torch.tensor(torch.nan), finite))
            if not finite or _non_finite_tensors(self.svi):
                self._read_losses()
            raise
        self.pending.append((torch.as_tensor(loss).detach(), finite))
        self.step += 1
        if isinstance(self.svi.optim, PyroLRScheduler) and not _steps_on_plateau(self.svi):
            self.svi.optim.step()

    def _write_row(self, evaluate: bool, bar: tqdm) -> None:
        """Read the losses, check them, and write a row of the log."""
        self._read_losses()
        self._tick()
        start: dict[str, Any] = {"step": 0, "seconds": 0.0}
        if self.log.rows:
            start = self.log.rows[-1]
        num_steps = self.step - start["step"]
        row = {
            "step": self.step,
            "loss": self.losses[-1],
            "mean_loss": float(np.mean(self.losses[start["step"] :])),
            **scalars(getattr(loss_of(self.svi), "info", None)),
            "steps_per_second": num_steps / max(self.seconds - start["seconds"], 1e-9),
        }
        if evaluate and self.evaluation is not None:
            row["eval_loss"] = self.evaluation.loss()
            if _steps_on_plateau(self.svi):
                self.svi.optim.step(row["eval_loss"])
        self._tick()
        row["seconds"] = self.seconds
        self.log.write(row)
        shown = {k: f"{v:.4g}" for k, v in row.items() if k not in _NOT_ON_THE_BAR}
        bar.set_postfix(shown, refresh=False)

    def _save(self) -> None:
        self._read_losses()
        self._tick()
        if self.folder is None:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "history": self.log.rows,
            "data": self.batches.state(),
            "training": training_state(self.svi),
        }
        self.checkpoint = save_checkpoint(self.folder, state)

    def _read_losses(self) -> None:
        """Bring the losses to the host; stop if they or the parameters are not finite."""
        if not self.pending:
            return
        losses = torch.stack([loss.to(self.pending[-1][0]) for loss, _ in self.pending])
        finite_data = torch.stack([finite for _, finite in self.pending]).tolist()
        self.pending.clear()
        first = len(self.losses) + 1
        self.losses.extend(losses.double().tolist())
        bad = [
            first + i for i, value in enumerate(self.losses[first - 1 :]) if not np.isfinite(value)
        ]
        culprits = [f"the data of step {first + i}" for i, ok in enumerate(finite_data) if not ok]
        culprits += _non_finite_tensors(self.svi)
        if bad or culprits:
            known = [value for value in self.losses if np.isfinite(value)]
            step = min(bad, default=self.step)
            raise DivergenceError(step, known[-1] if known else None, self.checkpoint, culprits)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def _svi_step(svi: SVI, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what `SVI.step` does, but leave the loss on its device."""
    if type(svi).step is not SVI.step:
        loss = svi.step(*args, **kwargs)
    else:
        with poutine.trace(param_only=True) as capture:
            loss = svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
        sites = capture.trace.nodes.values()
        params = {site["value"].unconstrained() for site in sites}  # type: ignore[union-attr]
        svi.optim(params)
        zero_grads(params)
    return loss[0] if isinstance(loss, tuple) else loss  # wake-sleep: the model's own loss


def _non_finite_tensors(svi: SVI) -> list[str]:
    """Names of parameters and buffers that are not finite, with one wait for the device."""
    tensors: dict[str, Tensor] = dict(pyro.get_param_store().named_parameters())
    for name, module in modules_of(svi).items():
        tensors.update({f"{name}.{key}": value for key, value in module.named_buffers()})
    tensors = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not tensors:
        return []
    finite = torch.stack([value.detach().isfinite().all() for value in tensors.values()])
    return [name for name, ok in zip(tensors, finite.tolist(), strict=True) if not ok]


def _device(svi: SVI) -> torch.device | None:
    """Where the parameters are, None if there are none yet."""
    for module in modules_of(svi).values():
        for value in module.parameters():
            return value.device
    for _, parameter in pyro.get_param_store().named_parameters():
        return parameter.device
    return None


def _steps_on_plateau(svi: SVI) -> bool:
    constructor = getattr(svi.optim, "pt_scheduler_constructor", None)
    return constructor is torch.optim.lr_scheduler.ReduceLROnPlateau


def _check_plateau(svi: SVI, evaluation: Evaluation | None) -> None:
    if _steps_on_plateau(svi) and evaluation is None:
        raise ValueError("`eval_data` is needed by `ReduceLROnPlateau`, which watches its loss.")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1; got {count}.")
