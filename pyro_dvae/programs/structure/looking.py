"""Runs that only look: without gradient, and with generators and statistics as they were.

`Path` tells two runs of a program apart that went another way through it, without a look at values.
"""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

__all__ = [
    "Path",
    "is_ours",
    "modules_noted",
    "numbers_within",
    "only_looking",
    "raise_slip",
    "same_but_rounding",
    "statistics_kept",
    "uncompiled",
    "without_gradient",
]

T = TypeVar("T")


def without_gradient(run: Callable[[], T]) -> T:
    """Run without gradient; with it, where a program differentiates inside of itself."""
    try:
        with torch.no_grad():
            return run()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return run()


def only_looking(run: Callable[[], T]) -> T:
    """As `without_gradient`, and what is drawn on the way is drawn again by whoever comes next."""
    with _generators_kept(), statistics_kept():
        return without_gradient(run)


@contextmanager
def statistics_kept(keep: bool = True) -> Iterator[None]:
    """Batch normalisations work as ever, but their running statistics stay: they advance by steps.

    Args:
        keep: False does nothing.
    """
    held: dict[nn.Module, dict[str, Tensor | None]] = {}

    def on_copies(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _NormBase) and module.training and module not in held:
            held[module] = dict(module._buffers)
            copies = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
            module._buffers.update(copies)

    if not keep:
        yield
        return
    with uncompiled():
        hook = register_module_forward_pre_hook(on_copies)
        try:
            yield
        finally:
            hook.remove()
            for module, buffers in held.items():
                module._buffers.update(buffers)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Networks that are compiled run as they are written: what is only tried is not worth it."""
    if "torch._dynamo" not in sys.modules:  # which takes seconds to import
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        yield


@contextmanager
def modules_noted() -> Iterator[dict[nn.Module, bool]]:
    """The modules that run, and whether each is in training mode."""
    modules: dict[nn.Module, bool] = {}

    def note(module: nn.Module, inputs: Any) -> None:
        modules[module] = module.training

    hook = register_module_forward_pre_hook(note)
    try:
        yield modules
    finally:
        hook.remove()


class Path(TorchFunctionMode):
    """The way that runs go: `taken` sums up which operations they are made of, in order.

    Of what these take, whole numbers count (an index, a dim, a shift), real ones do not, nor do
    those of arithmetic, such as a step that a temperature is multiplied with.

    Args:
        is_noted: False does nothing.
    """

    def __init__(self, is_noted: bool = True) -> None:
        super().__init__()
        self.is_noted, self.taken = is_noted, 0

    def __enter__(self) -> "Path":
        return super().__enter__() if self.is_noted else self

    def __exit__(self, *error: Any) -> None:
        if self.is_noted:
            super().__exit__(*error)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        # Whoever asks for a run says whether it has gradients; what is compiled goes one way.
        if func is torch._C._set_grad_enabled or torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        told: tuple = ()
        if func not in _ARITHMETIC:
            told = tuple([_static(value) for value in args if not isinstance(value, Tensor)])
        if kwargs:
            told += tuple(map(_static, kwargs.items()))
        self.taken = hash((self.taken, func, told))
        return func(*args, **(kwargs or {}))


_NAMES = "add sub mul div true_divide pow rsub rpow rdiv rtruediv truediv radd rmul".split()
_NAMES += [f"__{name}__" for name in _NAMES] + [f"__i{name}__" for name in _NAMES]
_ARITHMETIC = {
    getattr(owner, name) for owner in (torch, Tensor) for name in _NAMES if hasattr(owner, name)
}
_STATIC = {bool, int, str, type(None), type(...), torch.dtype, slice}


def _static(value: Any) -> Any:
    """What of an operation's argument says what it does."""
    kind = type(value)
    if kind is tuple or kind is list or kind is torch.Size:
        return kind, *map(_static, value)
    if kind is slice:
        return kind, *map(_static, (value.start, value.stop, value.step))
    if kind is int and value == -1:
        return "-1"  # whose hash is that of -2
    return value if kind in _STATIC or isinstance(value, Enum) else kind


def is_ours(error: Exception) -> bool:
    """Whether this package has raised an error, and not a program that it runs."""
    return _raised_in(error).startswith(f"{__name__.partition('.')[0]}.programs.")


def raise_slip(error: Exception) -> None:
    """Raise what a trial has met if it is a fault of this package, and no word of a program.

    What runs and scores a program meets shapes that do not fit, which are the program's; what
    makes the trials and compares them does not.
    """
    of_shapes = isinstance(error, IndexError | RuntimeError | ValueError)
    of_trials = _raised_in(error).startswith(f"{__name__.rpartition('.')[0]}.")
    if of_trials or (is_ours(error) and not of_shapes):
        raise error


def _raised_in(error: Exception) -> str:
    """The module whose code has raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def numbers_within(value: Any) -> Iterator[float]:
    """The numbers among the arguments; a single one in a tensor or an array is like any."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        for entry in value:
            yield from numbers_within(entry)
    elif isinstance(value, Real) and not isinstance(value, bool | Enum):
        yield value  # type: ignore[misc]
    elif isinstance(value, np.bool_) or (isinstance(value, np.ndarray) and value.ndim == 0):
        yield value.item()
    elif isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu":
        yield value.item()


@contextmanager
def _generators_kept() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    state = pyro.util.get_rng_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)


def same_but_rounding(one: Tensor, two: Tensor, in_single: float = 1e-3) -> bool:
    """Whether log-densities are equal up to what the order of sums may change.

    In double precision weak traces show, too: a millionth is what sums over the outputs of a
    network in single precision have.
    """
    in_double = torch.promote_types(one.dtype, two.dtype) == torch.float64
    most = 1e-6 if in_double else in_single
    return torch.allclose(one, two, rtol=most, atol=most, equal_nan=True)
