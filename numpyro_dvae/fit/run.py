"""A training run: what changes from step to step, and what is due between two steps.

As many steps as take about two seconds run in one dispatch, but for those of an iterable. The
progress bar, the log and checkpoints are the host's, between dispatches: the seconds of a row that
was due within one are a share of its.
"""

import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from numpyro_dvae.fit.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    RunState,
    restore,
    save_checkpoint,
)
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.evaluation import HeldOut
from numpyro_dvae.fit.files import writing
from numpyro_dvae.fit.identity import check_same_run
from numpyro_dvae.fit.impossible import impossible_rows
from numpyro_dvae.fit.log import LOG, Log, set_run_aside, shown_on_bar
from numpyro_dvae.fit.losses import check_finite, warn_of_impossible
from numpyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from numpyro_dvae.fit.signals import Signals
from numpyro_dvae.fit.steps import Steps, Taken
from numpyro_dvae.fit.svi import (
    best_state,
    first_state,
    loss_scalars,
    non_finite,
    trained_parameters,
)
from numpyro_dvae.programs.handlers.rows import check_whole_plates

__all__ = ["Intervals", "Training"]

_DISPATCH_SECONDS = 2.0  # a signal or the bar waits no longer, steps permitting
_MOST_STEPS = 1000  # per dispatch


class Intervals(NamedTuple):
    """Steps from one of these to the next."""

    log: int
    evaluation: int
    checkpoint: int


class Training:
    """The state, counters, losses and log of a training, around its `SVI`."""

    svi_state: SVIState

    def __init__(
        self,
        rng_key: Array,
        svi: SVI,
        steps: Steps,
        held_out: HeldOut | None,
        folder: Path | None,
        identity: dict[str, Any],
        devices: Devices,
    ) -> None:
        self.rng_key, self.svi, self.steps, self.devices = rng_key, svi, steps, devices
        self.held_out, self.folder, self.identity = held_out, folder, identity
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.log = Log(folder if devices.is_first else None)
        self.checkpoint: Path | None = None
        self._unread: list[Taken] = []
        self._due: list[int] = []  # steps whose row of the log is to be written
        self._scalars: dict[int, dict[str, float]] = {}  # of the loss, after steps that are read
        self._clock, self._clock_step = time.perf_counter(), 0
        self._seconds_per_step = _DISPATCH_SECONDS
        self._has_warned = False

    def begin(self, init_state: SVIState | None, saved: Checkpoint | None) -> None:
        """Make the first state, or take the one that is given or saved."""
        self.steps.check_plates(self.svi.guide)
        if saved is not None:
            self.steps.batches.check(saved.run.data)
            check_same_run(saved.identity, self.identity)
            init_state = None
        batch, parted = self.steps.first(), self.steps.batches.parted
        try:
            state = first_state(self.rng_key, self.svi, batch, init_state)
        except (TypeError, ValueError):
            if parted:
                check_whole_plates(self.rng_key, self.svi.model, *batch, *parted)
            raise
        self.steps.check_parameters(self.svi, state)
        if saved is not None:
            self._resume(state, saved)
        else:  # copied, as steps give their state away, and it may hold the user's own arrays
            self.svi_state = self.devices.on_all(jax.tree.map(jnp.copy, state))
            if self.folder is not None:
                folder = self.folder
                self.devices.first_does(lambda: set_run_aside(folder))

    def _resume(self, template: SVIState, saved: Checkpoint) -> None:
        assert self.folder is not None
        self.steps.batches.restore(saved.run.data)
        self.svi_state = self.devices.on_all(restore(self.svi, template, saved))
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
        self._clock, self._clock_step = time.perf_counter(), self.step
        first = self.step
        while self.step < num_steps:
            count = self._take_steps(num_steps - self.step, intervals)
            if self.step == first + count:
                bar.unpause()  # the first step compiles, and says nothing of the others' time
            bar.update(count)
            last = self.step == num_steps
            evaluate = self.held_out is not None and (last or self._is_due(intervals.evaluation))
            if (evaluate or last) and self.step not in self._due:
                self._due.append(self.step)
            if self._due:
                self._write_rows(evaluate, bar)
            interrupted = 0 if last else self.devices.agreed_signal(signals.received)
            if last or interrupted or self._is_due(intervals.checkpoint):
                self._save()
            if interrupted:
                raise FitInterrupt(interrupted, self.result())

    def result(self) -> FitResult:
        """Return the training so far."""
        svi_state = best_state(self.svi, self.devices.local(self.svi_state))
        return FitResult(
            model=self.svi.model,
            guide=self.svi.guide,
            params=trained_parameters(self.svi, svi_state),
            losses=np.array(self.losses),
            history=self.log.rows,
            num_steps=self.step,
            seconds=self.seconds,
            folder=self.folder,
            svi_state=svi_state,
        )

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0

    def _take_steps(self, left: int, intervals: Intervals) -> int:
        """Take steps until one is due, at most two seconds' worth; return how many."""
        start, together = time.perf_counter(), self.steps.together
        between = intervals[1:] if together else intervals  # rows are due within a dispatch
        most = min(*between, _MOST_STEPS) if together else 1
        until_due = min(left, *(n - self.step % n for n in between))
        count = max(1, int(_DISPATCH_SECONDS / max(self._seconds_per_step, 1e-9)))
        count = self.devices.first_number(min(count, until_due, most))
        taken = self.steps.take(self.svi_state, self.step, count, most)
        self.svi_state, losses = taken.svi_state, self.devices.settled(taken.losses)
        self._unread.append(taken._replace(svi_state=None, losses=losses))
        if most > 1:
            count = int(taken.num_steps)  # waits for the steps
            self._seconds_per_step = (time.perf_counter() - start) / count
        self.step += count
        due = (step for step in taken.kept if step % intervals.log == 0)
        self._due.extend(step for step in due if step <= self.step)
        return count

    def _write_rows(self, evaluate: bool, bar: tqdm) -> None:
        """Read the losses, check them, and write the rows of the log that are due."""
        start, seconds = self._clock_step, self.seconds
        rate = (self._read_clock() - seconds) / max(self.step - start, 1)
        due, self._due = [(step, seconds + rate * (step - start)) for step in self._due], []
        try:
            self._read_losses()
        except DivergenceError as error:
            for step, at in due:
                if step < error.step:
                    self._write_row(step, at, False)
            raise
        for step, at in due:
            row = self._write_row(step, at, evaluate and step == self.step)
        bar.set_postfix(shown_on_bar(row), refresh=False)
        self._scalars.clear()

    def _write_row(self, step: int, seconds: float, evaluate: bool) -> dict[str, Any]:
        scalars = self._scalars.get(step) or loss_scalars(self.svi, self.svi_state)
        row = self.log.next_row(self.losses, step, seconds, scalars)
        if evaluate and self.held_out is not None:
            row["eval_loss"] = self.held_out.loss(best_state(self.svi, self.svi_state))
            seconds = self._read_clock()
        row["seconds"] = seconds
        with writing(self.folder and self.folder / LOG, self.checkpoint, self.step):
            self.log.write(row)
        return row

    def _save(self) -> None:
        self._read_losses()
        self._read_clock()
        if self.folder is not None:
            data = self.steps.batches.state()
            run = RunState(self.losses, self.seconds, self.log.rows, data)
            with writing(self.folder / CHECKPOINT, self.checkpoint, self.step):
                if self.devices.is_first:
                    state = self.devices.local(self.svi_state)
                    save_checkpoint(self.rng_key, self.folder, self.svi, state, run, self.identity)
                self.checkpoint = self.folder / CHECKPOINT

    def _read_losses(self) -> None:
        """Bring the losses to the host; stop if they or the parameters are not finite."""
        if not self._unread:
            return
        finite_data: list[bool] = []
        sound = True
        for taken in jax.device_get(self._unread):
            self.losses.extend(taken.losses[: taken.num_steps].tolist())
            finite = np.ones(taken.num_steps, bool) if taken.finite is None else taken.finite
            finite_data.extend(finite[: taken.num_steps].tolist())
            for i, step in enumerate(taken.kept if taken.scalars else ()):
                self._scalars[step] = {name: float(v[i]) for name, v in taken.scalars.items()}
            sound = bool(taken.sound)
        self._unread.clear()
        culprits = [] if sound else non_finite(self.svi, self.devices.local(self.svi_state))
        infinite = check_finite(self.losses, finite_data, culprits, self.checkpoint)
        if infinite and not self._has_warned:
            self._has_warned = True
            state = best_state(self.svi, self.devices.local(self.svi_state))
            batches = self.steps.batches.in_order()
            rows, sites = impossible_rows(self.rng_key, self.svi, state, batches)
            warn_of_impossible(infinite[0], rows, sites)

    def _read_clock(self) -> float:
        """Seconds of training so far, those before a resume included."""
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        self._clock_step = self.step
        return self.seconds
