"""The training loop around a NumPyro `SVI`.

The step is compiled once. Between two rows of the log as many steps as take about a second run
in one dispatch, over data that stay on the device; the number of steps is an argument of the
compiled program, so that neither a row that is due nor the end of the run compiles anew. Batches
of an iterable take one dispatch each. The progress bar, the log and checkpoints are the host's,
between dispatches.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from numpyro_dvae.fit import batches as _batches
from numpyro_dvae.fit.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    as_leaf,
    as_saved,
    dotted,
    load_checkpoint,
    open_folder,
    parameters,
    restore_svi_state,
    save_checkpoint,
)
from numpyro_dvae.fit.evaluation import Evaluation
from numpyro_dvae.fit.log import Log, keep_previous_run, scalars
from numpyro_dvae.fit.result import DivergenceError, FitInterrupt, FitResult
from numpyro_dvae.fit.signals import Signals
from numpyro_dvae.infer.elbo import LOSS_MEMORY
from numpyro_dvae.infer.svi import loss_info, with_memory

__all__ = ["fit"]

_NOT_ON_THE_BAR = {"step", "loss", "elbo", "beta_elbo", "seconds", "steps_per_second"}
_DISPATCH_SECONDS = 2.0  # a signal or the bar waits no longer, steps permitting
_MOST_STEPS = 1000  # per dispatch
_DATA, _EVALUATION = 2**16, 2**16 + 1  # folded into the key; `SVI.init` splits it for the rest


def fit(
    rng_key: Array,
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
    init_state: SVIState | None = None,
) -> FitResult:
    """Train the model and guide of `svi` for `num_steps` steps.

    Model and guide are called with one batch of `data`. A key repeats a run bit by bit; on all
    data at once it is the run of ``svi.run(rng_key, ...)``. Step sizes of `numpyro.optim` and of
    `optax` may be schedules; nothing watches the evaluation loss as Torch's `ReduceLROnPlateau`
    does. A subclass of `SVI` that overrides `update` has it called. A loss that remembers finds
    its state in any `SVI`. Interrupted by SIGINT or SIGTERM, the run finishes the steps that it
    has sent to the device (two seconds' worth, if more than one), writes a checkpoint and stops.

    Args:
        rng_key: Key of the parameters' first values, of all draws, and of the order of the data.
        svi: Model, guide, optimiser and loss. Scalars in the loss's info are logged, its state
            is checkpointed.
        *data: Arrays with one common leading axis, the data; scalars and None pass as they are,
            not traced. Or one iterable of batches (a `DataLoader`): a tuple is unpacked, a dict
            becomes keyword arguments; each shape is compiled once.
        num_steps: Steps in all, those before a resume included.
        batch_size: Rows per step, drawn without replacement; the remainder of an epoch that
            fills no batch is dropped. None passes all data at every step, for models that
            subsample in their own plate.
        eval_data: Held-out data, like `data`; a tuple if the model takes several arrays. Its
            loss is averaged over the leading axis, always with the same key, and leaves the
            state as it was. Model and guide are called as in training.
        folder: Where to keep `checkpoint`, a folder of Orbax's that is replaced atomically, and
            `log.jsonl`. A run that is there already is renamed to `*.previous*`.
        resume: Go on from the checkpoint in `folder`, to the numbers of an unbroken run; its
            key goes on too, whatever `rng_key`.
        progress: Show a progress bar.
        log_every: Steps between rows of the log; losses and parameters are checked as often.
        eval_every: Steps between evaluations; there is one at the end.
        checkpoint_every: Steps between checkpoints; there is one at the end.
        init_state: Begin at this state, `svi_state` of an earlier result, in place of
            ``svi.init(rng_key, ...)``; it is left as it is.

    Returns:
        The trained model and guide, parameters, losses and log.

    Raises:
        ValueError: If an argument cannot be used, or the checkpoint is of another model.
        DivergenceError: If the loss or a parameter is not finite.
        FitInterrupt: After SIGINT or SIGTERM.
    """
    every = SimpleNamespace(log=log_every, eval=eval_every, checkpoint=checkpoint_every)
    _check_counts(num_steps=num_steps, **{f"{key}_every": n for key, n in vars(every).items()})
    saved = None
    if resume:
        if folder is None:
            raise ValueError("`resume` is True, but there is no `folder` to resume from: pass it.")
        saved = load_checkpoint(open_folder(folder))
        rng_key = as_leaf(np.array(saved.plain["rng_key"], np.uint32), rng_key)
    data_key, eval_key = (jax.random.fold_in(rng_key, i) for i in (_DATA, _EVALUATION))
    most = min(*vars(every).values(), _MOST_STEPS)
    batches = _batches.make_batches(data_key, data, batch_size, _updater(svi), most)
    evaluation = None
    if eval_data is not None:
        evaluation = Evaluation(eval_key, svi, eval_data, batch_size)
    run = _Run(rng_key, svi, batches, evaluation, None if folder is None else open_folder(folder))
    run.begin(init_state, saved)
    bar = tqdm(total=num_steps, initial=run.step, disable=not progress, dynamic_ncols=True)
    with Signals() as signals, bar:
        run.train(num_steps, every, signals, bar)
    return run.result()


class _Run:
    """A training run: the state, counters and logs that change from step to step."""

    svi_state: SVIState

    def __init__(
        self,
        rng_key: Array,
        svi: SVI,
        batches: _batches.Batches,
        evaluation: Evaluation | None,
        folder: Path | None,
    ) -> None:
        self.svi, self.batches, self.evaluation, self.folder = svi, batches, evaluation, folder
        self.rng_key, self.step, self.seconds = rng_key, 0, 0.0
        self.losses: list[float] = []
        self.pending: list[tuple[int, _batches.Steps]] = []  # counts, and losses on the device
        self.log = Log(folder)
        self.checkpoint: Path | None = None
        self._clock, self._seconds_per_step = time.perf_counter(), _DISPATCH_SECONDS

    def begin(self, init_state: SVIState | None, saved: Checkpoint | None) -> None:
        """Make the first state, or take the one that is given or saved."""
        args, kwargs = self.batches.first()
        state = with_memory(self.svi.init(self.rng_key, *args, **kwargs), self.svi.loss)
        if init_state is not None and saved is None:
            state = _complete(init_state, state)
        if saved is not None:
            self._resume(state, saved)
        else:  # copied, as steps give their state away, and it may hold the user's own arrays
            self.svi_state = jax.tree.map(jnp.copy, state)
            if self.folder is not None:
                keep_previous_run(self.folder)

    def _resume(self, template: SVIState, saved: Checkpoint) -> None:
        assert self.folder is not None
        self.batches.restore(saved.plain["data"])
        self.svi_state = restore_svi_state(self.svi, template, saved)
        self.step, self.seconds = saved.plain["step"], saved.plain["seconds"]
        self.losses = saved.losses.tolist()
        self.log.restore(saved.plain["history"])
        self.checkpoint = self.folder / CHECKPOINT

    def train(self, num_steps: int, every: SimpleNamespace, signals: Signals, bar: tqdm) -> None:
        """Step until `num_steps`, with all that is due between steps."""
        self._clock = time.perf_counter()
        while self.step < num_steps:
            due = min(n - self.step % n for n in vars(every).values())
            bar.update(self._take_steps(min(due, num_steps - self.step)))
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
        svi_state = self._best_state()
        mutable = dict(svi_state.mutable_state or {})
        mutable.pop(LOSS_MEMORY, None)
        return FitResult(
            model=self.svi.model,
            guide=self.svi.guide,
            params={**self.svi.get_params(svi_state), **mutable},
            losses=np.array(self.losses),
            history=self.log.rows,
            num_steps=self.step,
            seconds=self.seconds,
            folder=self.folder,
            svi_state=svi_state,
        )

    def _best_state(self) -> SVIState:
        """The state, or that of the best of several runs (see `fit_restarts`)."""
        return getattr(self.svi, "best_state", lambda state: state)(self.svi_state)

    def _take_steps(self, most: int) -> int:
        """Take at most so many steps, about two seconds' worth, and return how many."""
        start = time.perf_counter()
        count = max(1, int(_DISPATCH_SECONDS / max(self._seconds_per_step, 1e-9)))
        count = min(count, most, self.batches.most)
        steps = self.batches.take_steps(self.svi_state, self.step, count)
        self.svi_state = steps.svi_state
        self.pending.append((count, steps._replace(svi_state=None)))
        self.step += count
        if self.batches.most > 1:
            jax.block_until_ready(steps.losses)
            self._seconds_per_step = (time.perf_counter() - start) / count
        return count

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
            **scalars(loss_info(self._best_state())),
            "steps_per_second": num_steps / max(self.seconds - start["seconds"], 1e-9),
        }
        if evaluate and self.evaluation is not None:
            row["eval_loss"] = self.evaluation.loss(self._best_state())
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
        self.checkpoint = save_checkpoint(
            self.folder,
            self.svi,
            self.svi_state,
            self.losses,
            step=self.step,
            seconds=self.seconds,
            history=self.log.rows,
            data=self.batches.state(),
            rng_key=as_saved(self.rng_key).tolist(),
        )

    def _read_losses(self) -> None:
        """Bring the losses to the host; stop if they or the parameters are not finite."""
        if not self.pending:
            return
        pending = jax.device_get([(count, s.losses, s.finite) for count, s in self.pending])
        self.pending.clear()
        first, bad_data = len(self.losses) + 1, []
        for count, losses, finite in pending:
            self.losses.extend(losses[:count].tolist())
            bad_data += [] if finite else [len(self.losses)]
        bad = [
            first + i for i, value in enumerate(self.losses[first - 1 :]) if not np.isfinite(value)
        ]
        culprits = [f"the data of step {step}" for step in bad_data]
        culprits += _non_finite_arrays(self.svi, self.svi_state)
        if bad or culprits:
            known = [value for value in self.losses if np.isfinite(value)]
            step = min(bad, default=self.step)
            raise DivergenceError(step, known[-1] if known else None, self.checkpoint, culprits)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def _updater(svi: SVI) -> _batches.Update:
    """Return the step of an `SVI` as a function of a state and a batch."""

    def update(svi_state: SVIState, batch: _batches.Batch) -> tuple[SVIState, Array]:
        args, kwargs = batch
        new_state, loss = svi.update(svi_state, *args, **kwargs)
        names = [dotted(state.mutable_state or {}).keys() for state in (svi_state, new_state)]
        if names[0] != names[1]:
            raise ValueError(
                f"`svi`: {type(svi.loss).__name__} does not keep the mutable state "
                f"{sorted(names[0] ^ names[1])}, which NumPyro's own losses do at one particle "
                "alone: use a loss of numpyro_dvae, or `num_particles=1`."
            )
        return new_state, loss

    return update


def _complete(svi_state: SVIState, template: SVIState) -> SVIState:
    """Add the memory of the loss, where a state comes without."""
    if loss_info(template) is None or loss_info(svi_state) is not None:
        return svi_state
    memory = {LOSS_MEMORY: template.mutable_state[LOSS_MEMORY]}
    return svi_state._replace(mutable_state={**(svi_state.mutable_state or {}), **memory})


def _non_finite_arrays(svi: SVI, svi_state: SVIState) -> list[str]:
    """Names of parameters and mutable state that are not finite, with one wait for the device."""
    mutable = dict(svi_state.mutable_state or {})
    mutable.pop(LOSS_MEMORY, None)
    arrays = {**parameters(svi, svi_state), **dotted(mutable)}
    found = jax.device_get(_are_finite(arrays))
    return [name for name in arrays if not found[name]]


@jax.jit
def _are_finite(arrays: dict[str, Array]) -> dict[str, Any]:
    return {
        name: jnp.isfinite(value).all() if jnp.issubdtype(value.dtype, jnp.floating) else True
        for name, value in arrays.items()
    }


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1; got {count}.")
