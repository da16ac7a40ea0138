"""A training on several devices: each process has some rows of every batch.

`torchrun` starts a process for each device; where `torch.distributed` is initialised, `fit` trains
in all of them as in one. Every process holds all data, draws the same batch, and runs model and
guide with its own block of rows. What a loss makes of a batch is made of all rows (see
`programs.processes`), gradients are summed, and so parameters, generators and the state
of the loss stay the same in all. The first process writes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DistributedSampler

from pyro_dvae.fit import rng
from pyro_dvae.fit.data import Batch, num_rows
from pyro_dvae.fit.files import folder_of_run
from pyro_dvae.fit.identity import described_data, shown
from pyro_dvae.fit.svi import loss_of, modules_of, parameters, take_step
from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.ops.noise import Share
from pyro_dvae.ops.processes import (
    all_rows,
    as_first,
    entries_of_all,
    first_says,
    num_processes,
    process_rank,
    total,
)
from pyro_dvae.programs.processes import find_plates, sharded

__all__ = ["Devices"]

_DROPOUT = ("native_dropout", "bernoulli_", "rrelu_with_noise", "rrelu_with_noise_functional")


class Devices:
    """The processes of a training, as one of them sees them; one alone does what `SVI` does.

    Raises:
        ValueError: If there are several, and the loss, a network or the `SVI` cannot be shared.
    """

    def __init__(self, svi: SVI, data: tuple[Any, ...]) -> None:
        self.rank, self.size = process_rank(), num_processes()
        self.is_first = self.rank == 0
        self._svi = svi
        self._plates: dict[str, bool] | None = None
        self._is_watched = False  # whether a step has shown what networks do
        if self.size > 1:
            _check_loss(svi)
            _check_sampler(data)

    def agree(self, identity: dict[str, Any]) -> None:
        """Check that all processes train the same, and begin where the first one is.

        Raises:
            ValueError: If one has other data or settings.
        """
        if self.size > 1:
            self._compare(identity)
            self.synchronise()

    def synchronise(self) -> None:
        """Take parameters, buffers and generators from the first process."""
        if self.size == 1:
            return
        tensors = list(parameters(self._svi).values())
        for module in modules_of(self._svi).values():
            tensors += module.state_dict().values()
        with torch.no_grad():
            for tensor in tensors:
                as_first(tensor)
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        mine = None if device is None else torch.cuda.get_rng_state(device)
        state, cuda = first_says(lambda: (rng.get_state(), mine))
        rng.set_state({**state, "cuda": []})
        if device is not None and cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    def _compare(self, identity: dict[str, Any]) -> None:
        """Check that something is the same in all processes."""
        for rank, other in enumerate(entries_of_all(identity)):
            different = [name for name in identity if other.get(name) != identity[name]]
            if different:
                raise ValueError(
                    f"process {rank} trains with another {different[0]!r} than process "
                    f"{self.rank}: {shown(other.get(different[0]))} in place of "
                    f"{shown(identity[different[0]])}. Start all of them with the same program, "
                    "data and seeds: `fit` gives each process its rows by itself."
                )

    def take_step(self, batch: Batch) -> Any:
        """Do what `SVI.step` does with a batch, and return its loss."""
        if self.size == 1:
            return take_step(self._svi, *batch)
        with self._sharded(batch) as own:
            if self._is_watched:
                loss = take_step(self._svi, *own)
            else:
                described = described_data((*batch.args, *batch.kwargs.values()))
                self._compare({"batch of `data`": described})
                with _Watch():
                    loss = take_step(self._svi, *own)
                self._is_watched = True
        return self._of_all(loss)

    def evaluate(self, batch: Batch) -> float:
        """Do what `SVI.evaluate_loss` does; each process its part of a batch that they divide."""
        size = num_rows((*batch.args, *batch.kwargs.values()))
        if self.size == 1 or size % self.size:
            loss = self._svi.evaluate_loss(*batch.args, **batch.kwargs)
            return float(loss[0] if isinstance(loss, tuple) else loss)
        with self._sharded(batch) as own:
            loss = self._svi.evaluate_loss(*own.args, **own.kwargs)
        return float(self._of_all(loss))

    def agreed_signal(self, received: int, is_due: bool) -> int:
        """The signal that any process has received, 0 if none has.

        Args:
            received: That of this process.
            is_due: Whether devices are waited for anyway; those of CUDA are asked only then.
        """
        if self.size == 1:
            return received
        on_cuda = distributed.get_backend() == "nccl"
        if on_cuda and not is_due:
            return 0
        device = "cuda" if on_cuda else "cpu"
        return int(all_rows(torch.tensor([received], device=device)).max())

    @contextmanager
    def folder_of_run(self, folder: str | os.PathLike[str] | None) -> Iterator[Path | None]:
        """As `files.folder_of_run`, which the first process does for all."""
        held = folder_of_run(folder)
        if self.size == 1:
            with held as place:
                yield place
            return
        place = first_says(held.__enter__)
        try:
            yield place
        finally:
            if self.is_first:
                held.__exit__(None, None, None)

    @contextmanager
    def _sharded(self, batch: Batch) -> Iterator[Batch]:
        """Run a block with this process's rows of a batch.

        Raises:
            ValueError: If the processes do not divide the batch.
        """
        size = num_rows((*batch.args, *batch.kwargs.values()))
        if size % self.size:
            divisible = size - size % self.size
            fix = f"`batch_size={divisible}`" if divisible else f"at most {size} processes"
            raise ValueError(
                f"`batch_size`: the {size} rows of a batch are to be shared by {self.size} "
                f"processes, which must divide them. Take {fix}; of an iterable that makes its own "
                "batches, drop the last one if it is smaller."
            )
        rows = size // self.size
        if self._plates is None:
            some, more = (_rows_of(batch, 0, count, size) for count in (rows, rows + 1))
            self._plates = find_plates(self._svi.model, some, more, rows)
        with sharded(Share(self.rank, self.size, rows), self._plates):
            yield _rows_of(batch, self.rank * rows, rows, size)

    def _of_all(self, loss: Any) -> Any:
        """The loss of all rows: our losses know it, of Pyro's the parts are to be added up."""
        loss = loss[0] if isinstance(loss, tuple) else loss
        if isinstance(loss_of(self._svi), ParticleELBO):
            return loss
        return total(torch.as_tensor(loss).detach().clone())


def _check_loss(svi: SVI) -> None:
    loss = loss_of(svi)
    known = isinstance(loss, ParticleELBO) or type(loss) in (Trace_ELBO, TraceMeanField_ELBO)
    if not known or type(svi).step is not SVI.step:
        what = "an `SVI` with a step of its own" if known else type(loss).__name__
        raise ValueError(
            f"`svi`: {what} cannot be shared by {num_processes()} processes, as it is not known "
            "how it adds up over rows. Take a loss of pyro_dvae, Trace_ELBO or "
            "TraceMeanField_ELBO in an `SVI` of Pyro's, or train in one process."
        )


class _Watch(TorchDispatchMode):
    """Refuses what networks make of the rows of a batch together, or draw for them, in a step."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        what = None
        given = _given(func, args, kwargs) if "batch_norm" in name or "attention" in name else {}
        if "backward" not in name and (given.get("training") or given.get("train")):
            what = "normalises by the rows of its batch"
        elif name in _DROPOUT or given.get("dropout_p", 0.0) > 0.0:
            what = "draws masks, as dropout does, for the rows of its batch"
        if what is not None:
            raise ValueError(
                f"`svi`: a network {what} ({name}), which in each of {num_processes()} processes "
                "are others than in one. Take GroupNorm or LayerNorm, dropout with p=0, or train "
                "in one process."
            )
        return func(*args, **kwargs)


def _given(func: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an operation is given, by name."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _check_sampler(data: tuple[Any, ...]) -> None:
    if any(isinstance(getattr(value, "sampler", None), DistributedSampler) for value in data):
        raise ValueError(
            "`data`: the loader has a DistributedSampler, which gives each process its own rows. "
            "Leave it out: `fit` has all processes draw the same batch and gives each its rows."
        )


def _rows_of(batch: Batch, start: int, count: int, size: int) -> Batch:
    """Some rows of a batch.

    Raises:
        ValueError: If an array has other rows than the batch.
    """

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if len(value) != size:
            raise ValueError(
                f"`data`: an array of shape {tuple(value.shape)} in a batch of {size} rows cannot "
                "be shared among processes by its rows. Bind what is not data to the model and "
                "guide, for example by `functools.partial`."
            )
        return value[start : start + count]

    kwargs = {name: take(value) for name, value in batch.kwargs.items()}
    return Batch(tuple(map(take, batch.args)), kwargs)
