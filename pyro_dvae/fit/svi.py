"""What an `SVI` holds: its loss, the modules behind its programs, their device and their mode.

`modules_of`, `device_of` and `evaluation_mode` take whatever has a `model` and a `guide`: an `SVI`,
or a trained pair. Modules are found in a model or guide that is a module or a method of one; Pyro
does not know those of a module in a closure.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import zero_grads
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn

from pyro_dvae.fit import rng
from pyro_dvae.fit.identity import described
from pyro_dvae.ops.processes import total_gradients
from pyro_dvae.programs.messages import param_values

__all__ = [
    "check_loss",
    "described_svi",
    "device_of",
    "evaluation_mode",
    "keep_start",
    "loss_of",
    "loss_scalars",
    "loss_unchanged",
    "modules_of",
    "non_finite",
    "parameters",
    "start_of",
    "take_step",
    "trained_parameters",
    "unchanged",
    "watches_loss",
]

_START = "_pyro_dvae_start"  # attribute of an `SVI`: digests of what its parameters start at


def check_loss(svi: SVI) -> None:
    """Raise if the loss of an `SVI` is a class."""
    if isinstance(svi.loss, type):
        name = svi.loss.__name__
        raise TypeError(
            f"`svi` has the class {name} for its `loss`, where it needs a loss: call it, as in "
            f"SVI(model, guide, optim, loss={name}())."
        )


def described_svi(svi: SVI) -> dict[str, Any]:
    """Describe model, guide, loss and optimiser by what decides the numbers of a run."""
    optim, names = svi.optim, ["pt_optim_constructor", "pt_optim_args", "pt_clip_args"]
    names += ["pt_scheduler_constructor", "kwargs"]
    settings = {name: described(getattr(optim, name)) for name in names if hasattr(optim, name)}
    return {
        "model": described(svi.model),
        "guide": described(svi.guide),
        "loss": described(loss_of(svi)),
        "optim": {"kind": type(optim).__qualname__, **settings},
    }


def loss_of(svi: SVI) -> Any:
    """Return the loss object of an `SVI`, which may hold `state` and `info`."""
    return getattr(svi.loss_and_grads, "__self__", svi.loss_and_grads)


def loss_scalars(svi: SVI) -> dict[str, float]:
    """Return the scalar fields of the loss's `info`."""
    info = getattr(loss_of(svi), "info", None)
    scalars = {}
    for name, value in getattr(info, "_asdict", dict)().items():
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            scalars[name] = float(value)
    return scalars


def modules_of(programs: Any) -> dict[str, nn.Module]:
    """Return the modules behind "model" and "guide", be they modules or methods of one."""
    modules = {}
    for name in ("model", "guide"):
        program = getattr(programs, name)
        owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
        if isinstance(owner, nn.Module):
            modules[name] = owner
    return modules


def device_of(programs: Any, params: Iterable[Tensor]) -> torch.device | None:
    """Return where the parameters of the modules are, or else `params`; None if there are none."""
    for module in modules_of(programs).values():
        for parameter in module.parameters():
            return parameter.device
    return next((value.device for value in params), None)


def parameters(svi: SVI) -> dict[str, Tensor]:
    """Return the unconstrained parameters by name: those in the parameter store."""
    return dict(pyro.get_param_store().named_parameters())


def trained_parameters(svi: SVI) -> dict[str, Tensor]:
    """Return copies of the parameters by name, constrained and detached."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def non_finite(svi: SVI) -> list[str]:
    """Names of parameters and buffers that are not finite, with one wait for the device."""
    tensors = parameters(svi)
    for name, module in modules_of(svi).items():
        tensors.update({f"{name}.{key}": value for key, value in module.named_buffers()})
    tensors = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not tensors:
        return []
    finite = torch.stack([value.detach().isfinite().all() for value in tensors.values()])
    return [name for name, ok in zip(tensors, finite.tolist(), strict=True) if not ok]


def take_step(svi: SVI, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what `SVI.step` does, but leave the loss on its device."""
    if type(svi).step is not SVI.step:
        loss = svi.step(*args, **kwargs)
    else:
        with poutine.trace(param_only=True) as capture:
            loss = svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
        values = {n: value.unconstrained() for n, value in param_values(capture.trace).items()}
        if getattr(svi, _START, None) == {}:
            setattr(svi, _START, {name: _digest(value) for name, value in values.items()})
        total_gradients(dict.fromkeys(values.values()))
        params = set(values.values())
        svi.optim(params)
        zero_grads(params)
    if isinstance(svi.optim, PyroLRScheduler) and not watches_loss(svi):
        svi.optim.step()
    return loss[0] if isinstance(loss, tuple) else loss  # wake-sleep: the model's own loss


def keep_start(svi: SVI) -> SVI:
    """Let the next step of an `SVI`, which is its first, note what its parameters start at."""
    setattr(svi, _START, {})
    return svi


def start_of(svi: SVI) -> dict[str, bytes]:
    """Digests of the values that parameters started at, by name, where they were noted."""
    return dict(getattr(svi, _START, {}))


def _digest(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().tobytes()).digest()


def watches_loss(svi: SVI) -> bool:
    """Whether the learning rate falls when an evaluation loss does not."""
    constructor = getattr(svi.optim, "pt_scheduler_constructor", None)
    return constructor is torch.optim.lr_scheduler.ReduceLROnPlateau


@contextmanager
def evaluation_mode(programs: Any) -> Iterator[None]:
    """Run a block with the modules in evaluation mode; each gets back the mode that it had."""
    roots = modules_of(programs).values()
    with ExitStack() as stack:
        for root in roots:
            for module in root.modules():
                stack.callback(setattr, module, "training", module.training)
        for root in roots:
            root.eval()
        yield


@contextmanager
def loss_unchanged(loss: Any) -> Iterator[None]:
    """Run a block after which a loss has the `state` and `info` that it had."""
    before = {name: getattr(loss, name) for name in ("state", "info") if hasattr(loss, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(loss, name, value)


@contextmanager
def unchanged(svi: SVI) -> Iterator[None]:
    """Run a block in evaluation mode that leaves generators, loss and modules as they were."""
    with rng.preserved(), loss_unchanged(loss_of(svi)), evaluation_mode(svi):
        yield
