"""The training loop around a Pyro `SVI`: `fit`, which checks its arguments and makes the run."""

import os
from collections.abc import Callable
from typing import Any

from pyro.infer import SVI
from tqdm.auto import tqdm

from pyro_dvae.fit.batches import make_batches
from pyro_dvae.fit.capture import captured
from pyro_dvae.fit.devices import Devices
from pyro_dvae.fit.evaluation import HeldOut
from pyro_dvae.fit.result import FitResult
from pyro_dvae.fit.run import Intervals, Training
from pyro_dvae.fit.signals import Signals
from pyro_dvae.fit.steps import Steps
from pyro_dvae.fit.svi import described_svi, watches_loss
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["fit"]


@checked
def fit(
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
) -> FitResult:
    """Train the model and guide of `svi` for `num_steps` steps.

    Model and guide are called with one batch of `data`. After ``pyro.set_rng_seed(seed)`` a run
    repeats bit by bit on one thread. It begins at the parameters that are in Pyro's parameter
    store. Learning-rate schedulers of `pyro.optim` step once a step; `ReduceLROnPlateau` steps
    at each evaluation, with its loss. A subclass of `SVI` that overrides `step` has it called.
    Interrupted by SIGINT or SIGTERM, the run finishes its step, writes a checkpoint and stops.

    Where `torch.distributed` is initialised, as in processes of `torchrun`, these share the rows
    of each batch, and the numbers are those of one process. All of them call `fit` with all data.

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
        transform: Changes every training batch, as dynamic binarisation and random crops do. It is
            called with what the model would be called with, on the device, and returns the
            model's arguments, as a tuple, or the one array of a model that takes one. It draws
            from Torch's global generator, so that runs repeat and resume exactly. Of an
            iterable's dicts it takes keyword arguments, and may return a dict.
        eval_data: Held-out data, like `data`; a tuple if the model takes several arrays. Its
            loss is averaged over the leading axis, in evaluation mode and without gradients,
            and leaves generators and the loss's state as they were. `transform` does not touch
            them.
        folder: Where to keep `checkpoint.pt`, replaced atomically, and `log.jsonl`. A run that
            is there already is renamed to `*.previous.*`.
        resume: Go on from the checkpoint in `folder`, to the numbers of an unbroken run.
        capture: Whether the networks that the modules of model and guide hold are compiled, by
            `torch.compile`: the same numbers but for rounding, in fewer and larger kernels, on a
            GPU by CUDA graphs. A first step takes long, and so does each other shape.
        progress: Show a progress bar: the mean loss of the last steps, summed over a batch as the
            programs sum it, the held-out loss per datum, and what the loss tells of itself.
        log_every: Steps between rows of the log; losses and parameters are checked as often.
        eval_every: Steps between evaluations; there is one at the end.
        checkpoint_every: Steps between checkpoints; there is one at the end.

    Returns:
        The trained model and guide, parameters, losses and log.

    Raises:
        ValueError: If an argument cannot be used, or the checkpoint is of another model; if there
            are several processes and the batch cannot be shared among them.
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
    devices = Devices(svi, data)
    steps = Steps(svi, make_batches(data, batch_size), transform)
    held_out = None if eval_data is None else HeldOut(svi, eval_data, batch_size, devices)
    if held_out is None and watches_loss(svi):
        raise ValueError("`eval_data` is needed by `ReduceLROnPlateau`, which watches its loss.")
    with devices.folder_of_run(folder) as place:
        is_known = place is not None or devices.size > 1
        identity = described_svi(svi) | steps.described() if is_known else {}
        devices.agree(identity)
        run = Training(svi, steps, held_out, place, identity, devices)
        run.begin(resume)
        bar = _bar(num_steps, run.step, progress and devices.is_first)
        with Signals() as signals, bar, captured(svi, capture):
            run.train(num_steps, intervals, signals, bar)
    return run.result()


def _bar(num_steps: int, step: int, shown: bool) -> tqdm:
    hidden = {} if shown else {"disable": True}  # else TQDM_DISABLE of the environment says it
    return tqdm(total=num_steps, initial=step, dynamic_ncols=True, **hidden)


def _intervals(log_every: int, eval_every: int, checkpoint_every: int) -> Intervals:
    check_counts(log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every)
    return Intervals(log_every, eval_every, checkpoint_every)
