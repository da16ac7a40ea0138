"""Runs that only look: without gradient, and with generators and statistics as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = [
    "modules_noted",
    "only_looking",
    "same_but_rounding",
    "statistics_kept",
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

    hook = register_module_forward_pre_hook(on_copies) if keep else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        for module, buffers in held.items():
            module._buffers.update(buffers)


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
