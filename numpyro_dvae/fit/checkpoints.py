"""Checkpoints: all that a run needs to go on to the same numbers, written whole or not at all.

A checkpoint is a folder that Orbax's `CheckpointManager` keeps, with the newest step alone in it:
`state`, the leaves of the `SVIState` by name (parameters, optimiser, mutable state with the loss's
own, key) and the losses; `run`, in JSON, the key of the run, the log, the position in the data. A
step is written beside the one before it, and renamed when it is complete. The JSON also says what
the run is of (`identity`), and holds the sums of all arrays and of itself, which are compared
before anything is restored.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from orbax.checkpoint.options import MultiprocessingOptions

from numpyro_dvae.fit.files import check_system
from numpyro_dvae.fit.plain import as_plain, like
from numpyro_dvae.fit.svi import parameters

__all__ = ["CHECKPOINT", "Checkpoint", "RunState", "load_checkpoint", "restore", "save_checkpoint"]

CHECKPOINT = "checkpoint"
_FORMAT = 3  # raised with what is written, apart from that of Pyro
_FIELDS = {  # of what the JSON part holds
    "step": int,
    "seconds": float,
    "identity": dict,
    "history": list,
    "data": dict,
    "rng_key": list,
    "shapes": dict,
    "empty": dict,
    "sums": dict,
}
_LOSSES = "losses"


class RunState(NamedTuple):
    """How far a run has come, beside what it has learnt."""

    losses: list[float]  # of every step
    seconds: float
    history: list[dict[str, Any]]  # rows of the log
    data: dict[str, Any]  # position in the data


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    identity: dict[str, Any]  # what the run is of
    rng_key: np.ndarray  # of the run, as plain numbers
    run: RunState
    training: dict[str, Any]  # what `restore` puts back: shapes of parameters, and leaves


def save_checkpoint(
    rng_key: Array,
    folder: Path,
    svi: SVI,
    svi_state: SVIState,
    run: RunState,
    identity: dict[str, Any],
) -> Path:
    """Write the state to the folder's one checkpoint, replacing it atomically."""
    step, leaves = len(run.losses), _named_leaves(svi_state)
    plain = {
        "format": _FORMAT,
        "step": step,
        "seconds": run.seconds,
        "identity": identity,
        "history": run.history,
        "data": run.data,
        "rng_key": as_plain(rng_key).tolist(),
        "shapes": _parameter_shapes(svi, svi_state),
        "empty": {name: value.shape for name, value in leaves.items() if not value.size},
    }
    arrays = {name: value for name, value in leaves.items() if value.size}  # Orbax takes no others
    arrays[_LOSSES] = np.array(run.losses, np.float64)
    plain["sums"] = {name: _sum(value) for name, value in arrays.items()}
    plain["sum"] = _sum_of_json(plain)
    items = {"state": ocp.args.StandardSave(arrays), "run": ocp.args.JsonSave(plain)}
    path = folder / CHECKPOINT
    try:
        with _manager(path) as manager:
            manager.save(step, args=ocp.args.Composite(**items), force=True)
    except ValueError as error:  # Tensorstore's, of the system's
        raise OSError(str(error)) from error
    return path


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the folder's checkpoint.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = folder / CHECKPOINT
    try:
        contents = _read(path)
    except Exception as error:  # of Orbax, Tensorstore and JSON, on files that may hold anything
        check_system(path, error)
        raise _broken(path, _reason(error)) from None
    if contents is None:
        raise ValueError(
            f"`resume` is True, but {str(folder)!r} holds no {CHECKPOINT}: check `folder`, or "
            "start afresh with `resume=False`."
        )
    plain, leaves = contents["run"], contents["state"]
    if not isinstance(plain, dict) or plain.get("format") != _FORMAT:
        raise ValueError(
            f"`folder`: {str(path)!r} is not a checkpoint of this version of `fit`; start afresh "
            "with `resume=False`."
        )
    _check_sums(path, plain, leaves)
    losses = leaves.pop(_LOSSES).tolist()
    leaves |= {name: np.zeros(shape) for name, shape in plain["empty"].items()}
    run = RunState(losses, plain["seconds"], plain["history"], plain["data"])
    training = {"shapes": plain["shapes"], "leaves": leaves}
    return Checkpoint(plain["identity"], np.array(plain["rng_key"], np.uint32), run, training)


def _broken(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"`folder`: {str(path)!r} cannot be read as a checkpoint: {reason}. Put a copy in its "
        "place, or start afresh with `resume=False`, which sets it aside."
    )


def _reason(error: Exception) -> str:
    """What is wrong with a checkpoint that Orbax cannot read, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return "its JSON part is damaged or cut off"
    if isinstance(error, KeyError | FileNotFoundError):
        return "a part of it is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is damaged, cut off, or no folder of `fit`'s"


def _check_sums(path: Path, plain: dict[str, Any], leaves: Any) -> None:
    """Whether all is there and as it was written."""
    for name, kind in _FIELDS.items():
        if not isinstance(plain.get(name), kind):
            raise _broken(path, f"it has no {name!r} of type {kind.__name__}")
    if plain.get("sum") != _sum_of_json(plain):
        raise _broken(path, "the checksum of its JSON part does not hold")
    if not isinstance(leaves, dict) or leaves.keys() != plain["sums"].keys():
        raise _broken(path, "its parts do not fit together")
    for name, value in leaves.items():
        if _sum(value) != plain["sums"][name]:
            raise _broken(path, f"the checksum of {name!r} in it does not hold")
    if leaves.get(_LOSSES, np.zeros(0)).shape != (plain["step"],):
        raise _broken(path, "its parts do not fit together")


def _sum(value: Any) -> str:
    """The SHA-256 of an array: its type, shape and values."""
    array = np.asarray(value)
    found = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _sum_of_json(plain: Mapping[str, Any]) -> str:
    """The SHA-256 of what JSON says of all but the sum itself."""
    rest = {name: value for name, value in plain.items() if name != "sum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def restore(svi: SVI, svi_state: SVIState, checkpoint: Checkpoint) -> SVIState:
    """Give the saved leaves the structure and types of a state of the same model.

    Raises:
        ValueError: If the checkpoint is of another model.
    """
    saved = {name: tuple(shape) for name, shape in checkpoint.training["shapes"].items()}
    _check_same("parameters", _parameter_shapes(svi, svi_state), saved)
    leaves = checkpoint.training["leaves"]
    shapes = {name: value.shape for name, value in _named_leaves(svi_state).items()}
    _check_same("optimiser or loss", shapes, {name: v.shape for name, v in leaves.items()})
    templates, structure = jax.tree.flatten(svi_state)
    return jax.tree.unflatten(
        structure,
        [like(old, leaves[name]) for name, old in zip(shapes, templates, strict=True)],
    )


def _read(path: Path) -> Any:
    """Return the newest step in a folder of checkpoints, None if there is none."""
    if not path.exists():
        return None
    with _manager(path, create=False) as manager:
        step = manager.latest_step()
        if step is None and path.is_dir():
            return None
        state, run = ocp.args.StandardRestore(), ocp.args.JsonRestore()
        return manager.restore(step, args=ocp.args.Composite(state=state, run=run))


def _manager(path: Path, *, create: bool = True) -> ocp.CheckpointManager:
    alone: dict[str, Any] = {"create": create}
    if jax.process_count() > 1:  # each process for itself: one writes, and all may read
        rank = jax.process_index()
        own = {"primary_host": rank, "active_processes": {rank}}
        own["barrier_sync_key_prefix"] = f"process{rank}"
        alone = {"create": False, "multiprocessing_options": MultiprocessingOptions(**own)}
        if create:
            path.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False, **alone)
    return ocp.CheckpointManager(path.absolute(), options=options)


def _parameter_shapes(svi: SVI, svi_state: SVIState) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in parameters(svi, svi_state).items()}


def _named_leaves(svi_state: SVIState) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(svi_state)[0]
    return {jax.tree_util.keystr(path): as_plain(value) for path, value in leaves}


def _check_same(what: str, model: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compare the names and shapes of the model's arrays with those of the checkpoint."""
    complaints = [f"{name!r} is missing from the model" for name in saved.keys() - model.keys()]
    complaints += [f"{name!r} is not in the checkpoint" for name in model.keys() - saved.keys()]
    complaints += [
        f"{name!r} has shape {model[name]}, in the checkpoint {saved[name]}"
        for name in model.keys() & saved.keys()
        if model[name] != saved[name]
    ]
    if complaints:
        raise ValueError(
            f"`folder` holds the checkpoint of another model; {what} differ: "
            f"{'; '.join(sorted(complaints)[:5])}. Build the same `SVI`, or choose another folder."
        )
