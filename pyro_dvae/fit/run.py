"""A training run: what changes from step to step, and what is due between two steps.

Pyro's `SVI.step` reads the loss back to the host at every step, for which a GPU must wait. A run
takes the same step without: losses stay on the device and are read at every row of the log. The
parameters that a step changes are those that `SVI.step` would change.
"""

import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import SVI
from torch import Tensor
from tqdm.auto import tqdm

from pyro_dvae.fit.checkpoints import (
    CHECKPOINT,
    RunState,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from pyro_dvae.fit.devices import Devices
from pyro_dvae.fit.evaluation import HeldOut
from pyro_dvae.fit.files import writing
from pyro_dvae.fit.identity import check_same_run
from pyro_dvae.fit.impossible import impossible_rows
from pyro_dvae.fit.log import LOG, Log, set_run_aside, shown_on_bar
from pyro_dvae.fit.losses import check_finite, warn_of_impossible
from pyro_dvae.fit.result import FitInterrupt, FitResult
from pyro_dvae.fit.signals import Signals
from pyro_dvae.fit.steps import Steps
from pyro_dvae.fit.svi import (
    loss_scalars,
    non_finite,
    trained_parameters,
    unchanged,
    watches_loss,
)
from pyro_dvae.ops.processes import first_says
from pyro_dvae.programs.handlers.rows import check_whole_plates

__all__ = ["Intervals", "Training"]


class Intervals(NamedTuple):
    """Steps from one of these to the next."""

    log: int
    evaluation: int
    checkpoint: int


class Training:
    """The counters, losses and log of a training, around its `SVI`."""

    def __init__(
        self,
        svi: SVI,
        steps: Steps,
        held_out: HeldOut | None,
        folder: Path | None,
        identity: dict[str, Any],
        devices: Devices,
    ) -> None:
        self.svi, self.steps, self.devices = svi, steps, devices
        self.held_out, self.folder, self.identity = held_out, folder, identity
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.log = Log(folder if devices.is_first else None)
        self.checkpoint: Path | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []  # losses, and whether their data are finite
        self._clock, self._has_warned = time.perf_counter(), False

    def begin(self, resume: bool) -> None:
        """Go on from the folder's checkpoint, or set an earlier run aside."""
        self.steps.check_plates(self.svi.model, self.svi.guide)
        if self.folder is None:
            return
        folder = self.folder
        if not resume:
            first_says(lambda: set_run_aside(folder))
            return
        saved = first_says(lambda: load_checkpoint(folder))
        self.steps.batches.check(saved.run.data)
        check_same_run(saved.identity, self.identity)
        with unchanged(self.svi):  # one pass makes the parameters, as a first step would
            self.devices.evaluate(self.steps.next()[0])
        self.steps.batches.restore(saved.run.data)
        restore(self.svi, saved)
        self.devices.synchronise()
        self.step, self.seconds = len(saved.run.losses), saved.run.seconds
        self.losses = saved.run.losses
        self.checkpoint = self.folder / CHECKPOINT
        with writing(self.folder / LOG, self.checkpoint, self.step):
            self.log.restore(saved.run.history)

    def train(self, num_steps: int, intervals: Intervals, signals: Signals, bar: tqdm) -> None:
        """Step until `num_steps`, with all that is due between steps."""
        if self.step > num_steps:
            warnings.warn(
                f"`num_steps` is {num_steps}, but the run in `folder` has {self.step} steps. They "
                "are returned as they are: ask for more to train on.",
                stacklevel=5,
            )
        self._clock, first = time.perf_counter(), self.step
        while self.step < num_steps:
            self._take_step()
            if self.step == first + 1:
                bar.unpause()  # the first step plans, and says nothing of the others' time
            bar.update()
            last = self.step == num_steps
            evaluate = self.held_out is not None and (last or self._is_due(intervals.evaluation))
            if evaluate or last or self._is_due(intervals.log):
                self._write_row(evaluate, bar)
            is_due = evaluate or any(self._is_due(n) for n in intervals)
            interrupted = 0 if last else self.devices.agreed_signal(signals.received, is_due)
            if last or interrupted or self._is_due(intervals.checkpoint):
                self._save()
            if interrupted:
                raise FitInterrupt(interrupted, self.result())

    def result(self) -> FitResult:
        """Return the training so far."""
        return FitResult(
            model=self.svi.model,
            guide=self.svi.guide,
            params=trained_parameters(self.svi),
            losses=np.array(self.losses),
            history=self.log.rows,
            num_steps=self.step,
            seconds=self.seconds,
            folder=self.folder,
        )

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0

    def _take_step(self) -> None:
        batch, finite = self.steps.next()
        try:
            loss = self.devices.take_step(batch)
        except (RuntimeError, ValueError):  # Pyro or a sampler meets a NaN before there is a loss
            self._unread.append((torch.tensor(torch.nan), finite))
            if not finite or non_finite(self.svi):
                self._read_losses()
            if parted := self.steps.batches.parted:
                check_whole_plates(self.svi.model, *batch, *parted)
            raise
        self._unread.append((torch.as_tensor(loss).detach(), finite))
        self.step += 1

    def _write_row(self, evaluate: bool, bar: tqdm) -> None:
        """Read the losses, check them, and write a row of the log."""
        self._read_losses()
        scalars = loss_scalars(self.svi)
        row = self.log.next_row(self.losses, self.step, self._read_clock(), scalars)
        if evaluate and self.held_out is not None:
            row["eval_loss"] = self.held_out.loss()
            if watches_loss(self.svi):
                self.svi.optim.step(row["eval_loss"])
        row["seconds"] = self._read_clock()
        with writing(self.folder and self.folder / LOG, self.checkpoint, self.step):
            self.log.write(row)
        bar.set_postfix(shown_on_bar(row), refresh=False)

    def _save(self) -> None:
        self._read_losses()
        self._read_clock()
        if self.folder is not None:
            run = RunState(self.losses, self.seconds, self.log.rows, self.steps.batches.state())
            with writing(self.folder / CHECKPOINT, self.checkpoint, self.step):
                if self.devices.is_first:
                    save_checkpoint(self.folder, self.svi, run, self.identity)
                self.checkpoint = self.folder / CHECKPOINT

    def _read_losses(self) -> None:
        """Bring the losses to the host; stop if they or the parameters are not finite."""
        if not self._unread:
            return
        losses = torch.stack([loss.to(self._unread[-1][0]) for loss, _ in self._unread])
        finite_data = torch.stack([finite for _, finite in self._unread]).tolist()
        self._unread.clear()
        self.losses.extend(losses.double().tolist())
        infinite = check_finite(self.losses, finite_data, non_finite(self.svi), self.checkpoint)
        if infinite and not self._has_warned:
            self._has_warned = True
            rows, sites = impossible_rows(self.svi, self.steps.batches.in_order())
            warn_of_impossible(infinite[0], rows, sites)

    def _read_clock(self) -> float:
        """Seconds of training so far, those before a resume included."""
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds
