"""Checkpoints: all that a run needs to go on to the same numbers, written whole or not at all.

A checkpoint is one file of tensors and plain values, which `torch.load(weights_only=True)`
reads: what the run is of (`identity`), unconstrained parameters, modules with their buffers,
optimisers and schedulers, the loss's state, the generators, the position in the data. It is a zip
archive, whose checksums are compared before anything is read.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.infer import SVI

from pyro_dvae.fit import rng
from pyro_dvae.fit.files import check_system, write_atomically
from pyro_dvae.fit.plain import as_plain, like
from pyro_dvae.fit.svi import loss_of, modules_of, parameters

__all__ = [
    "CHECKPOINT",
    "Checkpoint",
    "RunState",
    "load_checkpoint",
    "restore",
    "save_checkpoint",
]

CHECKPOINT = "checkpoint.pt"
_FORMAT = 2  # raised with what is written, apart from that of NumPyro
_FIELDS = {  # of what a checkpoint holds
    "format": int,
    "step": int,
    "seconds": float,
    "identity": dict,
    "losses": torch.Tensor,
    "history": list,
    "data": dict,
    "training": dict,
}
_TRAINING = {"params": dict, "modules": dict, "optim": dict, "rng": dict}


class RunState(NamedTuple):
    """How far a run has come, beside what it has learnt."""

    losses: list[float]  # of every step
    seconds: float
    history: list[dict[str, Any]]  # rows of the log
    data: dict[str, Any]  # position in the data


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    identity: dict[str, Any]  # what the run is of
    run: RunState
    training: dict[str, Any]  # what `restore` puts back


def save_checkpoint(folder: Path, svi: SVI, run: RunState, identity: dict[str, Any]) -> Path:
    """Write the state to the folder's one checkpoint, replacing it atomically."""
    state = {
        "format": _FORMAT,
        "step": len(run.losses),
        "seconds": run.seconds,
        "identity": identity,
        "losses": torch.tensor(run.losses, dtype=torch.float64),
        "history": run.history,
        "data": run.data,
        "training": _training_state(svi),
    }
    plain = as_plain(state)
    write_atomically(folder / CHECKPOINT, lambda file: torch.save(plain, file))
    return folder / CHECKPOINT


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the folder's checkpoint to the CPU.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise ValueError(
            f"`resume` is True, but {str(folder)!r} holds no {CHECKPOINT}: check `folder`, or "
            "start afresh with `resume=False`."
        )
    state = _read(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(
            f"`folder`: {str(path)!r} is not a checkpoint of this version of `fit`; start afresh "
            "with `resume=False`."
        )
    _check_fields(path, state)
    losses = state["losses"].tolist()
    run = RunState(losses, state["seconds"], state["history"], state["data"])
    return Checkpoint(state["identity"], run, state["training"])


def _read(path: Path) -> Any:
    """The contents of a file whose checksums hold, and that holds as much as it says."""
    if (damage := _damage(path)) is not None:
        raise _broken(path, damage)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever it says, the fix is not to trust the file
        raise _broken(path, "it holds more than tensors and plain values") from None


def _damage(path: Path) -> str | None:
    """What is wrong with a file, before anything of it is unpacked."""
    try:
        return damage_of(path, path.stat().st_size)
    except OSError as error:
        check_system(path, error)
        return error.strerror or "it cannot be opened"


def damage_of(file: Any, size: int) -> str | None:
    """What is wrong with a zip archive of `size` bytes; None if it is whole."""
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                return "it would unpack to more than it holds"
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception:  # a header may hold anything
        return "it is cut off, or no file of `fit`'s"
    return None if damaged is None else f"the checksum of {damaged!r} in it does not hold"


def _broken(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"`folder`: {str(path)!r} cannot be read as a checkpoint: {reason}. Put a copy in its "
        "place, or start afresh with `resume=False`, which sets it aside."
    )


def _check_fields(path: Path, state: dict[str, Any]) -> None:
    """Whether all is there, of its type, and no tensor claims more values than the file holds."""
    for fields, where in ((_FIELDS, state), (_TRAINING, state.get("training"))):
        for name, kind in fields.items():
            if not isinstance(where, dict) or not isinstance(where.get(name), kind):
                raise _broken(path, f"it has no {name!r} of type {kind.__name__}")
    if state["losses"].shape != (state["step"],) or "loss_state" not in state["training"]:
        raise _broken(path, "its parts do not fit together")
    for tensor in _tensors(state):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise _broken(path, "a tensor in it claims more values than there are")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def restore(svi: SVI, checkpoint: Checkpoint) -> None:
    """Put the training state back, in place, so that modules and parameter store stay one.

    The parameters must exist: run model and guide once before.

    Raises:
        ValueError: If the checkpoint is of another model.
    """
    saved, store, modules = checkpoint.training, parameters(svi), modules_of(svi)
    _check_same("parameters", store, saved["params"])
    _check_same("modules", dict.fromkeys(modules), dict.fromkeys(saved["modules"]))
    for name, module in modules.items():
        _check_same(f"the {name}'s tensors", module.state_dict(), saved["modules"][name])
    _check_loss(loss_of(svi), saved["loss_state"])
    with torch.no_grad():
        for name, value in store.items():
            value.copy_(saved["params"][name])
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])
    svi.optim.optim_objs.clear()  # they are made anew, by name, at the next step
    svi.optim.grad_clip.clear()
    svi.optim.set_state(saved["optim"])
    loss = loss_of(svi)
    if hasattr(loss, "state"):
        loss.state = like(loss.state, saved["loss_state"])
    rng.set_state(saved["rng"])


def _training_state(svi: SVI) -> dict[str, Any]:
    """Collect parameters, buffers, optimisers, the loss's state and the generators."""
    return {
        "params": parameters(svi),
        "modules": {name: module.state_dict() for name, module in modules_of(svi).items()},
        "optim": {n: s for n, s in svi.optim.get_state().items() if n is not None},  # in the store
        "loss_state": getattr(loss_of(svi), "state", None),
        "rng": rng.get_state(),
    }


def _check_loss(loss: Any, saved: Any) -> None:
    """Whether a state is one that the loss can go on from."""
    if _structure(getattr(loss, "state", None)) != _structure(saved):
        raise ValueError(
            f"`folder` holds the checkpoint of another loss than {type(loss).__name__}, or of an "
            "earlier version of it: their states differ. Train on with the loss that wrote it, or "
            "start afresh with `resume=False`."
        )


def _structure(state: Any) -> Any:
    """The tuples of a state; a dictionary in it may fill up on the way."""
    if isinstance(state, tuple):
        return tuple(map(_structure, state))
    return state is None


def _check_same(what: str, model: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compare the names and shapes of the model's tensors with those of the checkpoint."""
    complaints = [f"{name!r} is missing from the model" for name in saved.keys() - model.keys()]
    complaints += [f"{name!r} is not in the checkpoint" for name in model.keys() - saved.keys()]
    for name in model.keys() & saved.keys():
        shapes = [tuple(getattr(tree[name], "shape", ())) for tree in (model, saved)]
        if shapes[0] != shapes[1]:
            complaints.append(f"{name!r} has shape {shapes[0]}, in the checkpoint {shapes[1]}")
    if complaints:
        raise ValueError(
            f"`folder` holds the checkpoint of another model; {what} differ: "
            f"{'; '.join(sorted(complaints)[:5])}. Build the same model and clear the parameter "
            "store (`pyro.clear_param_store()`), or choose another folder."
        )
