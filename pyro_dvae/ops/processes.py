"""What processes that share a computation tell each other, by `torch.distributed`.

Each function is the identity in one process; in several all must call it, in the same order. Sums
and gathered arrays are the same numbers in all of them.

Shapes: rows of the data are on the axis that is named; every process has as many of them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.noise import current_share

__all__ = [
    "all_lengths",
    "all_rows",
    "among_all",
    "as_first",
    "coupled_rows",
    "entries_of_all",
    "first_says",
    "num_processes",
    "process_rank",
    "ragged_rows",
    "summed",
    "total",
    "total_gradients",
]


def num_processes() -> int:
    """How many processes there are; 1 unless `torch.distributed` is initialised."""
    is_one = not (distributed.is_available() and distributed.is_initialized())
    return 1 if is_one else distributed.get_world_size()


def process_rank() -> int:
    """Which of the processes this is, from 0."""
    return 0 if num_processes() == 1 else distributed.get_rank()


def total(array: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum of the arrays of all processes, without gradient; the array may be written to."""
    if num_processes() > 1:
        array = array.contiguous()
        with _lost():
            distributed.all_reduce(array)
    return array


def total_gradients(params: Iterable[Tensor]) -> None:
    """Sum the gradients of all processes that share rows, those of one type sent together.

    Args:
        params: In the same order in all processes.
    """
    if current_share() is None:
        return
    found = [value.grad for value in params if value.grad is not None]
    for dtype in dict.fromkeys(gradient.dtype for gradient in found):
        gradients = [gradient for gradient in found if gradient.dtype == dtype]
        everyone = total(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = everyone.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.reshape(gradient.shape))


def as_first(array: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The array of the first process, in place."""
    if num_processes() > 1:
        sent = array.detach().contiguous()
        with _lost():
            distributed.broadcast(sent, 0)
        array.detach().copy_(sent)
    return array


@checked
def first_says(say: Callable[[], Any]) -> Any:
    """What the first process finds by calling `say`, which the others do not; or how it fails."""
    if num_processes() == 1:
        return say()
    said: list[Any] = [None, None]
    if process_rank() == 0:
        try:
            said = [say(), None]
        except Exception as error:
            said = [None, error]
    with _lost():
        distributed.broadcast_object_list(said, 0)
    if said[1] is not None:
        raise said[1]
    return said[0]


def entries_of_all(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    found = [value] * num_processes()
    if num_processes() > 1:
        with _lost():
            distributed.all_gather_object(found, value)
    return found


def summed(array: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over processes; the gradient goes back to this one's part of it."""
    return array if num_processes() == 1 else _Summed.apply(array)


def all_rows(array: Shaped[Tensor, "rows *rest"]) -> Shaped[Tensor, "all *rest"]:
    """The rows of all processes, one after the other, without gradient."""
    return array if num_processes() == 1 else _all_rows(array)


def among_all(
    array: Shaped[Tensor, "rows *rest"], everyone: Shaped[Tensor, "all *rest"]
) -> Shaped[Tensor, "all *rest"]:
    """The rows of all processes, as they have been gathered; the gradient goes to one's own."""
    return _AmongAll.apply(array, everyone)


def coupled_rows(array: Shaped[Tensor, "rows *rest"]) -> Shaped[Tensor, "all *rest"]:
    """The rows of a shared batch, whose gradient comes from the losses of all processes.

    It is for what each process computes of all rows and adds to the loss of its own ones.
    """
    return array if current_share() is None else _CoupledRows.apply(array)


def all_lengths(array: Shaped[Tensor, "rows *rest"]) -> list[int]:
    """How many rows the array of each process has."""
    if num_processes() == 1:
        return [len(array)]
    if current_share() is not None:
        return [len(array)] * num_processes()
    length = torch.tensor([len(array)], device=array.device)
    return _all_rows(length).tolist()


def ragged_rows(array: Shaped[Tensor, "rows *rest"]) -> Shaped[Tensor, "all *rest"]:
    """As `all_rows`, without gradient, of arrays that may have different numbers of rows."""
    if num_processes() == 1:
        return array
    length = torch.tensor([len(array)], device=array.device)
    lengths = _all_rows(length).tolist()
    padded = array.new_zeros((max(lengths), *array.shape[1:]))
    padded[: len(array)] = array
    parts = _all_rows(padded).split(max(lengths))
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, array: Tensor) -> Tensor:
        return total(array.detach().clone().contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _AmongAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, array: Tensor, everyone: Tensor) -> Tensor:
        ctx.rows = len(array)
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.narrow(0, process_rank() * ctx.rows, ctx.rows), None


class _CoupledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, array: Tensor) -> Tensor:
        ctx.rows = len(array)
        return _all_rows(array)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous()).narrow(0, process_rank() * ctx.rows, ctx.rows)


def _all_rows(array: Tensor) -> Tensor:
    sent = array.detach().contiguous()
    sent = sent.to(torch.uint8) if array.dtype == torch.bool else sent
    found = [torch.empty_like(sent) for _ in range(num_processes())]
    with _lost():
        distributed.all_gather(found, sent)
    return torch.cat(found).to(array.dtype)


@contextmanager
def _lost() -> Iterator[None]:
    """Say in one line that others are gone."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run has ended, or cannot be reached: what it has written says "
            "why. Start all of them again; a run with a `folder` goes on from its last checkpoint "
            "with `resume=True`."
        ) from error
