"""The training loop around a NumPyro `SVI`: `fit`, which checks its arguments and makes the run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from numpyro_dvae.fit.batches import make_batches
from numpyro_dvae.fit.checkpoints import Checkpoint, load_checkpoint
from numpyro_dvae.fit.devices import Devices
from numpyro_dvae.fit.evaluation import HeldOut
from numpyro_dvae.fit.plain import like
from numpyro_dvae.fit.result import FitResult
from numpyro_dvae.fit.run import Intervals, Training
from numpyro_dvae.fit.signals import Signals
from numpyro_dvae.fit.steps import Steps
from numpyro_dvae.fit.svi import described_svi
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["fit"]

_DATA, _EVALUATION, _TRANSFORM = (2**16 + i for i in range(3))  # folded into the run's key, of
# which `SVI.init` splits off the rest


@checked
def fit(
    rng_key: Array,
    svi: SVI,
    *data: Any,
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
    init_state: SVIState | None = None,
    devices: Sequence[jax.Device] | None = None,
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
        transform: Changes every training batch, as dynamic binarisation and random crops do. It is
            called with a key and what the model would be called with, compiled with the step,
            and returns the model's arguments, as a tuple, or the one array of a model that takes
            one. The key is made of `rng_key` and the step, so that runs repeat and resume
            exactly. Of an iterable's dicts it takes keyword arguments, and may return a dict.
        eval_data: Held-out data, like `data`; a tuple if the model takes several arrays. Its
            loss is averaged over the leading axis, always with the same key, and leaves the
            state as it was. Model and guide are called as in training; `transform` does not
            touch the data.
        folder: Where to keep `checkpoint`, a folder of Orbax's that is replaced atomically, and
            `log.jsonl`. A run that is there already is renamed to `*.previous*`.
        resume: Go on from the checkpoint in `folder`, to the numbers of an unbroken run; its
            key goes on too, whatever `rng_key`.
        capture: Nothing here, where XLA compiles steps as a whole; in pyro_dvae, whether networks
            are compiled.
        progress: Show a progress bar: the mean loss of the last steps, summed over a batch as the
            programs sum it, the held-out loss per datum, and what the loss tells of itself.
        log_every: Steps between rows of the log; losses and parameters are checked as often.
        eval_every: Steps between evaluations; there is one at the end.
        checkpoint_every: Steps between checkpoints; there is one at the end.
        init_state: Begin at this state, `svi_state` of an earlier result, in place of
            ``svi.init(rng_key, ...)``; it is left as it is.
        devices: Devices that share the rows of each batch, such as ``jax.devices()``; the numbers
            are those of one. They may be of several hosts that have met by
            `jax.distributed.initialize`, and all call `fit` with all data. None leaves the choice
            to JAX, which takes one.

    Returns:
        The trained model and guide, parameters, losses and log.

    Raises:
        ValueError: If an argument cannot be used, or the checkpoint is of another model.
        TypeError: If the loss of `svi` is a class, and not one of it.
        ConnectionError: If another process has ended.
        DivergenceError: If the loss is NaN or a parameter not finite. A loss of +inf, of data
            that are impossible under the model, is warned of.
        FitInterrupt: After SIGINT or SIGTERM.
    """
    check_counts(num_steps=num_steps)
    intervals = _intervals(log_every, eval_every, checkpoint_every)
    if resume and folder is None:
        raise ValueError("`resume` is True, but there is no `folder` to resume from: pass it.")
    used = Devices(devices)
    with used.connected(), used.folder_of_run(folder) as place:
        saved, rng_key = _saved(place, rng_key) if resume else (None, rng_key)
        data_key, eval_key, transform_key = _keys(rng_key)
        batches = make_batches(data_key, data, batch_size)
        steps = Steps(transform_key, svi, batches, transform, used, log_every)
        held_out = (
            None if eval_data is None else HeldOut(eval_key, svi, eval_data, batch_size, used)
        )
        is_known = place is not None or used.size > 1
        identity = described_svi(svi) | steps.described() if is_known else {}
        used.agree(identity)
        run = Training(rng_key, svi, steps, held_out, place, identity, used)
        run.begin(init_state, saved)
        bar = _bar(num_steps, run.step, progress and used.is_first)
        with Signals() as signals, bar:
            run.train(num_steps, intervals, signals, bar)
    return run.result()


def _bar(num_steps: int, step: int, shown: bool) -> tqdm:
    hidden = {} if shown else {"disable": True}  # else TQDM_DISABLE of the environment says it
    return tqdm(total=num_steps, initial=step, dynamic_ncols=True, **hidden)


def _saved(place: Path | None, rng_key: Array) -> tuple[Checkpoint | None, Array]:
    """What is resumed from, and its key."""
    saved = None if place is None else load_checkpoint(place)
    return saved, rng_key if saved is None else like(rng_key, saved.rng_key)


def _intervals(log_every: int, eval_every: int, checkpoint_every: int) -> Intervals:
    check_counts(log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every)
    return Intervals(log_every, eval_every, checkpoint_every)


def _keys(rng_key: Array) -> tuple[Array, ...]:
    """Of the order of the data, of the evaluation, of the transform."""
    return tuple(jax.random.fold_in(rng_key, i) for i in (_DATA, _EVALUATION, _TRANSFORM))
