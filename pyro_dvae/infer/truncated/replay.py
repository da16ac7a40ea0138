"""Run a function of a tensor once, then again on other numbers without its Python.

A Pyro program costs a millisecond or two a pass, whatever its size. Over thousands of states that
forces passes whose tensors no cache holds. So one pass is recorded, and then repeated in the same
memory, as a CUDA graph is: a list of operations on fixed tensors, small enough for the cache.

A repetition is what another pass would be, or there is none: where a program draws random numbers,
asks for a tensor's values or writes to memory that its input does not reach, as `if`, `numpy`,
dropout and running means do, each pass may do another thing. The one door is `repeatable_pass`,
which also says what it is worth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Replay", "repeatable_pass"]

_UNREPEATABLE = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}
_FILLS = "new_ones new_zeros new_full ones_like zeros_like"
_OF_SHAPES = {f"aten::{name}" for name in _FILLS.split()}
_POINTWISE = {torch.ops.aten.mse_loss.default}  # where its result has the shape of its argument
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}
_EXITS = {Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.__array__, Tensor.__dlpack__}
_LARGE = 2**16  # bytes of results that are worth a place where another has been


@dataclass(frozen=True)
class Replay:
    """A pass that is repeated."""

    source: Tensor
    steps: list[Callable[[], object]]
    result: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """What the function makes of another tensor of the same shape; good until the next call."""
        self.source.copy_(value)
        for step in self.steps:
            step()
        return self.result


def repeatable_pass(
    function: Callable[[Tensor], Tensor], value: Tensor
) -> tuple[Tensor, Replay | None]:
    """The function's result, and how to have it again: None if it may do another thing each time.

    Call it without gradient. Repetitions leave alone whatever the function keeps of this pass.

    The E-step of `examples/benchmarks/truncated_speed_pyro.py` takes, at 64, 128 and 256 latents
    (``--beside make_fx --latents 64 128 256 --rounds 7``, torch 2.14, one thread, each at its best
    size of pieces):

    - 1.6, 1.6 and 1.5 times the CPU time by plain passes;
    - 1.8, 1.5 and 1.3 times by a graph of torch's that `make_fx` makes anew in each E-step, and
      2.3, 1.9 and 1.3 times if `torch.compile` has it then, of the same graph before.

    A graph that is kept from one E-step to the next would take 1.3, 1.25 and 1.2 times, and 1.05,
    1.07 and 1.06 after `torch.compile`, which takes 3 to 21 seconds before the first E-step and
    rounds 8 to 48 % of the scores otherwise. But it holds what the program's Python was: its
    numbers, its branches, the minibatch that it found. No later one may be taken for it.

    Args:
        function: From a tensor to another, both on the CPU.
        value: What to call it on.

    Returns:
        The result, and the same function for tensors of the same shape and dtype, bit for bit.
    """
    source = value.clone()
    with _Tape(source) as tape, _Exits(tape):
        result = function(source)
    if tape.failed or _memory(result) not in tape.reached:
        return result, None
    steps = _needed(tape.steps, result)
    places = _places(steps, _memory(result))
    again = [_again(step, places) for step in steps]
    return result, Replay(source, again, _moved(result, places))


class _Step(NamedTuple):
    """One operation on memory that the input reaches."""

    func: Any
    args: tuple
    kwargs: dict
    result: Any
    reads: set[int]  # memory that depends on the input
    writes: set[int]

    @property
    def is_write(self) -> bool:
        """Whether it changes what is there already."""
        return _is_mutable(self.func)

    @property
    def is_view(self) -> bool:
        return not self.is_write and self.writes <= self.reads

    @property
    def is_constant(self) -> bool:
        """Whether the result is the same at each repetition, unless a later step writes to it."""
        return not self.reads or self.func._schema.name in _OF_SHAPES

    @property
    def is_elementwise(self) -> bool:
        """Whether each entry of the result depends on the entries at the same place alone."""
        large = [t for t in self.tensors if t.untyped_storage().nbytes() >= _LARGE]
        layouts = {(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in large}
        is_pointwise = torch.Tag.pointwise in self.func.tags or self.func in _POINTWISE
        return is_pointwise and len(layouts) == 1

    @property
    def tensors(self) -> list[Tensor]:
        """Those of its arguments and results that depend on the input."""
        tensors = _tensors(self.args, self.kwargs, self.result)
        return [t for t in tensors if _memory(t) in self.reads | self.writes]


class _Tape(TorchDispatchMode):
    """The operations of one pass, and all that they have made."""

    def __init__(self, source: Tensor) -> None:
        super().__init__()
        self.steps: list[_Step] = []  # what they made stays, as its memory would go to others
        self.reached, self.failed = {_memory(source)}, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.failed:
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        reads = {_memory(value) for value in _tensors(args, kwargs)}
        writes = {_memory(value) for value in _tensors(result)}
        if _is_mutable(func) and not writes <= self.reached:
            self.failed = True
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.failed = True
        if reads and reads.isdisjoint(self.reached):
            return
        if not writes or not _is_repeatable(func, args):
            self.failed = True
        if not self.failed:
            self.steps.append(_Step(func, args, kwargs, result, reads & self.reached, writes))
            self.reached |= writes


class _Exits(TorchFunctionMode):
    """Fails a tape when numbers leave torch, which no operation shows."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _EXITS and _memory(args[0]) in self.tape.reached:
            self.tape.failed = True
        return func(*args, **kwargs or {})


def _needed(steps: list[_Step], result: Tensor) -> list[_Step]:
    """Without views, which are there already, constants, and what the result does not need."""
    needed, kept = {_memory(result)}, []
    changed = {memory for step in steps if step.is_write for memory in step.writes}
    for step in reversed(steps):
        is_there = step.is_view or (step.is_constant and changed.isdisjoint(step.writes))
        if not is_there and not needed.isdisjoint(step.writes):
            needed |= step.reads
            kept.append(step)
    return kept[::-1]


def _places(steps: list[_Step], wanted: int) -> dict[int, torch.UntypedStorage]:
    """Memory of results, to memory of their own; large ones share it once nothing needs the other.

    An elementwise operation may write over its own argument; the `wanted` memory stays.
    """
    last = {memory: n for n, step in enumerate(steps) for memory in step.reads | step.writes}
    places: dict[int, torch.UntypedStorage] = {}
    free: list[torch.UntypedStorage] = []
    for n, step in enumerate(steps):
        ended = [places[m] for m in step.reads - {wanted} if last[m] == n and m in places]
        ended = [place for place in ended if place.nbytes() >= _LARGE]
        if step.is_elementwise:
            free, ended = free + ended, []
        for made in step.tensors:
            memory, size = _memory(made), made.untyped_storage().nbytes()
            if memory not in step.reads | places.keys():
                fits = [place for place in free if place.nbytes() >= size >= _LARGE]
                places[memory] = fits[-1] if fits else torch.UntypedStorage(size)
                free = [place for place in free if place is not places[memory]]
        free += ended
    return places


def _again(step: _Step, places: dict[int, torch.UntypedStorage]) -> Callable[[], object]:
    """The operation, into the memory of its result."""
    func, (args, kwargs, result) = step.func, _moved(step[1:4], places)
    if step.is_write:
        return partial(func, *args, **kwargs)
    if func in _COPIES:
        return partial(result.copy_, args[0])
    if func is torch.ops.aten.relu.default:  # whose own `out` makes a copy
        return partial(torch.clamp_min, args[0], 0.0, out=result)
    if out := _out_of(func):
        return partial(out, *args, **kwargs, out=result)

    def run() -> None:
        for old, new in zip(_tensors(result), _tensors(func(*args, **kwargs)), strict=True):
            old.copy_(new)

    return run


def _moved(values: Any, places: dict[int, torch.UntypedStorage]) -> Any:
    """The same, with the tensors in their places."""
    if isinstance(values, Tensor):
        place = places.get(_memory(values))
        if place is None:
            return values
        layout = values.storage_offset(), values.shape, values.stride()
        return torch.empty(0, dtype=values.dtype).set_(place, *layout)
    if isinstance(values, dict):
        return {name: _moved(value, places) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_moved(value, places) for value in values]
    return values


@cache
def _out_of(func: Any) -> Any:
    """The operation with an argument `out`, if there is one that writes there at once."""
    packet = func.overloadpacket
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        named = {a.name for a in overload._schema.arguments if a.is_out}
        others = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        # A generated one makes a copy.
        if named == {"out"} and others == wanted and torch.Tag.generated not in overload.tags:
            return overload
    return None


@cache
def _is_mutable(func: Any) -> bool:
    return func._schema.is_mutable


def _is_repeatable(func: Any, args: tuple) -> bool:
    if func is torch.ops.aten.index.Tensor:  # by numbers, not by a mask
        return all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])
    return _UNREPEATABLE.isdisjoint(func.tags)


def _tensors(*values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
        elif isinstance(value, dict):
            found += _tensors(*value.values())
    return found


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
