"""Checkpoints: all that a run needs to go on to the same numbers, written whole or not at all.

A checkpoint is one file of tensors and plain values, which `torch.load(weights_only=True)`
reads: unconstrained parameters, modules with their buffers, optimisers and schedulers, the
loss's state, the generators, the position in the data. Buffers are found in a model or guide
that is a module or a method of one; Pyro does not know those of a module in a closure.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_dvae.fit import rng as _rng

CHECKPOINT = "checkpoint.pt"
_FORMAT = 1


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder and prove that it can be written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`folder` cannot be written to: {str(path)!r} ({error.strerror}). Choose another."
        ) from None
    return path


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write the state to the folder's one checkpoint, replacing it atomically."""
    plain = as_plain({"format": _FORMAT, **state}, "checkpoint")
    write_atomically(folder / CHECKPOINT, lambda file: torch.save(plain, file))
    return folder / CHECKPOINT


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the folder's checkpoint to the CPU."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise ValueError(
            f"`resume` is True, but {str(folder)!r} holds no {CHECKPOINT}: check `folder`, or "
            "start afresh with `resume=False`."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"`folder`: {str(path)!r} cannot be read as a checkpoint ({error})."
        ) from None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"`folder`: {str(path)!r} is not a checkpoint of this version of `fit`; start afresh "
            "with `resume=False`."
        )
    return state


def as_plain(value: Any, path: str) -> Any:
    """Copy a tree into tensors, numbers, strings, lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        return {key: as_plain(entry, f"{path}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [as_plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    raise ValueError(
        f"`folder`: cannot checkpoint {path}, a {type(value).__name__}. State of losses, "
        "optimisers and schedulers must be tensors, numbers, strings, lists, tuples or dicts."
    )


def like(template: Any, plain: Any) -> Any:
    """Give a plain tree the types (NamedTuples) and devices of a template of its structure."""
    if isinstance(template, tuple) and isinstance(plain, tuple) and len(template) == len(plain):
        entries = [like(*pair) for pair in zip(template, plain, strict=True)]
        return type(template)(*entries) if hasattr(template, "_fields") else tuple(entries)
    if isinstance(template, list) and isinstance(plain, list) and len(template) == len(plain):
        return [like(*pair) for pair in zip(template, plain, strict=True)]
    if isinstance(template, Mapping) and isinstance(plain, Mapping):
        return {key: like(template.get(key), entry) for key, entry in plain.items()}
    if isinstance(template, Tensor) and isinstance(plain, Tensor):
        return plain.to(template.device)
    return plain


def loss_of(svi: SVI) -> Any:
    """Return the loss object of an `SVI`, which may hold `state` and `info`."""
    return getattr(svi.loss_and_grads, "__self__", svi.loss_and_grads)


def modules_of(svi: SVI) -> dict[str, nn.Module]:
    """Return the modules behind model and guide, be they modules or methods of one."""
    found = {}
    for name in ("model", "guide"):
        value = getattr(svi, name)
        value = value if isinstance(value, nn.Module) else getattr(value, "__self__", None)
        if isinstance(value, nn.Module):
            found[name] = value
    return found


def training_state(svi: SVI) -> dict[str, Any]:
    """Collect parameters, buffers, optimisers, the loss's state and the generators."""
    return {
        "params": dict(pyro.get_param_store().named_parameters()),
        "modules": {name: module.state_dict() for name, module in modules_of(svi).items()},
        "optim": {n: s for n, s in svi.optim.get_state().items() if n is not None},  # in the store
        "loss_state": getattr(loss_of(svi), "state", None),
        "rng": _rng.get_state(),
    }


def restore_training_state(svi: SVI, state: dict[str, Any]) -> None:
    """Put a state back, in place, so that modules and parameter store stay one.

    The parameters must exist: run model and guide once before.
    """
    store = dict(pyro.get_param_store().named_parameters())
    _check_same("parameters", store, state["params"])
    modules = modules_of(svi)
    _check_same("modules", dict.fromkeys(modules), dict.fromkeys(state["modules"]))
    for name, module in modules.items():
        _check_same(f"the {name}'s tensors", module.state_dict(), state["modules"][name])
    with torch.no_grad():
        for name, value in store.items():
            value.copy_(state["params"][name])
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    svi.optim.optim_objs.clear()  # they are made anew, by name, at the next step
    svi.optim.grad_clip.clear()
    svi.optim.set_state(state["optim"])
    loss = loss_of(svi)
    if hasattr(loss, "state"):
        loss.state = like(loss.state, state["loss_state"])
    _rng.set_state(state["rng"])


def _check_same(what: str, found: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compare the names and shapes of the model's tensors with those of the checkpoint."""
    complaints = [f"{name!r} is missing from the model" for name in saved.keys() - found.keys()]
    complaints += [f"{name!r} is not in the checkpoint" for name in found.keys() - saved.keys()]
    for name in found.keys() & saved.keys():
        shapes = [tuple(getattr(tree[name], "shape", ())) for tree in (found, saved)]
        if shapes[0] != shapes[1]:
            complaints.append(f"{name!r} has shape {shapes[0]}, in the checkpoint {shapes[1]}")
    if complaints:
        raise ValueError(
            f"`folder` holds the checkpoint of another model; {what} differ: "
            f"{'; '.join(sorted(complaints)[:5])}. Build the same model and clear the parameter "
            "store (`pyro.clear_param_store()`), or choose another folder."
        )


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system can open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
