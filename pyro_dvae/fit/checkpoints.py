"""Checkpoints: all that a run needs to go on to the same numbers, written whole or not at all.

A checkpoint is one file of tensors and plain values, which `torch.load(weights_only=True)`
reads: unconstrained parameters, modules with their buffers, optimisers and schedulers, the
loss's state, the generators, the position in the data.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.infer import SVI

from pyro_dvae.fit import rng
from pyro_dvae.fit.files import write_atomically
from pyro_dvae.fit.plain import as_plain, like
from pyro_dvae.fit.svi import loss_of, modules_of, parameters

__all__ = ["CHECKPOINT", "Checkpoint", "RunState", "load_checkpoint", "restore", "save_checkpoint"]

CHECKPOINT = "checkpoint.pt"
_FORMAT = 1


class RunState(NamedTuple):
    """How far a run has come, beside what it has learnt."""

    losses: list[float]  # of every step
    seconds: float
    history: list[dict[str, Any]]  # rows of the log
    data: dict[str, Any]  # position in the data


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    run: RunState
    training: dict[str, Any]  # what `restore` puts back


def save_checkpoint(folder: Path, svi: SVI, run: RunState) -> Path:
    """Write the state to the folder's one checkpoint, replacing it atomically."""
    state = {
        "format": _FORMAT,
        "step": len(run.losses),
        "seconds": run.seconds,
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
    losses = state["losses"].tolist()
    run = RunState(losses, state["seconds"], state["history"], state["data"])
    return Checkpoint(run, state["training"])


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
