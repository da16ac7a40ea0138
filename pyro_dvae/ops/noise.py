"""Random numbers of the rows that a process has, as one process would draw them for all rows.

Several processes that share the rows of a batch keep their generators alike. Each draws the numbers
of all rows, which are cheap, and keeps those of its own: what is drawn does then not depend on how
many processes there are. `sharing` says which rows are whose; outside of it all is as ever.

Samplers whose use of random numbers depends on what they draw from (gamma, Poisson) give rows right
draws, though not those of one process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_dvae.ops.arguments import checked

__all__ = ["Share", "alike", "current_share", "drawn_for_rows", "draws_of_rows", "sharing"]


class Share(NamedTuple):
    """The rows of a batch that one of several processes has: the rank-th block of equal ones."""

    rank: int
    size: int  # processes
    rows: int  # of each


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)


def current_share() -> Share | None:
    """What is shared now, None if nothing is."""
    return _SHARE.get()


@contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """Run a block in which rows are shared; None: in which they are not."""
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def alike() -> Any:
    """Run a block whose draws are the same in all processes."""
    return sharing(None)


@checked
def drawn_for_rows(
    draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int], axis: int
) -> Tensor:
    """Call ``draw(shape)``, whose `axis` holds the rows, for all rows; keep those of this process.

    Args:
        draw: Makes independent random numbers of a shape.
        shape: What this process wants.
        axis: Where its rows are, or so many blocks of them.
    """
    share, shape = _SHARE.get(), tuple(shape)
    if share is None:
        return draw(shape)
    if shape[axis] % share.rows:
        return _apart(share, lambda: draw(shape))
    axis %= len(shape)
    blocks = *shape[:axis], shape[axis] // share.rows, share.rows, *shape[axis + 1 :]
    everyone = *blocks[: axis + 1], share.rows * share.size, *blocks[axis + 2 :]
    flat = *shape[:axis], blocks[axis] * everyone[axis + 1], *shape[axis + 1 :]
    found = draw(flat).reshape(everyone)
    return found.narrow(axis + 1, share.rank * share.rows, share.rows).reshape(shape)


@contextmanager
def draws_of_rows(*axes: int) -> Iterator[None]:
    """Run a block in which all that is drawn is of rows.

    Args:
        axes: Where the rows are in the arrays that are drawn, the likeliest first.
    """
    share = _SHARE.get()
    if share is None:
        yield
        return
    with _OfRows(share, axes):
        yield


class _OfRows(TorchDispatchMode):
    """Lets each operation that draws do so for all rows."""

    def __init__(self, share: Share, axes: Sequence[int]) -> None:
        super().__init__()
        self.share, self.axes = share, axes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if not draws or len(func._schema.returns) != 1:  # several are returned by attention
            return func(*args, **kwargs)
        place = next((i for i, value in enumerate(args) if _has_shape(value)), None)
        axis = None if place is None else self._axis(func, _shape_of(args[place]))
        if axis is None:
            return _apart(self.share, lambda: func(*args, **kwargs))
        share, everyone = self.share, [self._repeated(value, axis) for value in args]
        found = func(*everyone, **kwargs)
        length = found.shape[axis] // share.size
        found = found.narrow(axis, share.rank * length, length).contiguous()
        return args[0].copy_(found) if func._schema.is_mutable else found

    def _axis(self, func: Any, shape: tuple[int, ...]) -> int | None:
        """Where the rows are, or blocks of entries by rows."""
        rows, num_dims = self.share.rows, len(shape)
        if func.overloadpacket is torch.ops.aten.multinomial:
            return 0 if num_dims == 2 and shape[0] % rows == 0 else None
        likely = [axis % num_dims for axis in self.axes if -num_dims <= axis < num_dims]
        equal = [axis for axis in (*likely, *range(num_dims)) if shape[axis] == rows]
        blocks = [axis for axis in range(num_dims) if shape[axis] and shape[axis] % rows == 0]
        return next(iter((*equal, *blocks)), None)

    def _repeated(self, value: Any, axis: int) -> Any:
        """An array or a size of as many rows as all processes have."""
        if not _has_shape(value):
            return value
        size = self.share.size
        if isinstance(value, Tensor):
            return torch.cat([value] * size, axis) if value.dim() else value
        return [*value[:axis], value[axis] * size, *value[axis + 1 :]]


def _has_shape(value: Any) -> bool:
    return isinstance(value, Tensor | list | tuple | torch.Size)


def _shape_of(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value)


def _apart(share: Share, draw: Callable[[], Tensor]) -> Tensor:
    """Draw from a stream of this process's own, which the common one has begun."""
    seed = int(torch.randint(2**31, ()))
    with torch.random.fork_rng():
        torch.manual_seed(seed + share.rank)
        return draw()
