"""Checkpoints: all that a run needs to go on to the same numbers, written whole or not at all.

A checkpoint is a folder that Orbax's `CheckpointManager` keeps, with the newest step alone in it:
`state`, the leaves of the `SVIState` by name (parameters, optimiser, mutable state with the loss's
own, key) and the losses; `run`, in JSON, the key of the run, the log, the position in the data. A
step is written beside the one before it, and renamed when it is complete.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

CHECKPOINT = "checkpoint"
_FORMAT = 2
_LOSSES = "losses"


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    plain: dict[str, Any]  # what JSON can hold
    losses: np.ndarray
    leaves: dict[str, np.ndarray]  # of the `SVIState`


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


def save_checkpoint(
    folder: Path, svi: SVI, svi_state: SVIState, losses: list[float], *, step: int, **plain: Any
) -> Path:
    """Write the state to the folder's one checkpoint, replacing it atomically."""
    leaves = _named_leaves(svi_state)
    plain |= {"format": _FORMAT, "step": step, "shapes": parameter_shapes(svi, svi_state)}
    plain["empty"] = {name: value.shape for name, value in leaves.items() if not value.size}
    arrays = {name: value for name, value in leaves.items() if value.size}  # Orbax takes no others
    arrays[_LOSSES] = np.array(losses, np.float64)
    state, run = ocp.args.StandardSave(arrays), ocp.args.JsonSave(plain)
    path = folder / CHECKPOINT
    try:
        with _manager(path) as manager:
            manager.save(step, args=ocp.args.Composite(state=state, run=run), force=True)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{str(path)!r} could not be written at step {step}, and is as it was before: {error}"
        ) from error
    return path


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the folder's checkpoint."""
    path = folder / CHECKPOINT
    try:
        found = _read(path)
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`folder`: {str(path)!r} cannot be read as a checkpoint ({error})."
        ) from None
    if found is None:
        raise ValueError(
            f"`resume` is True, but {str(folder)!r} holds no {CHECKPOINT}: check `folder`, or "
            "start afresh with `resume=False`."
        )
    plain, leaves = found["run"], found["state"]
    if plain.get("format") != _FORMAT:
        raise ValueError(
            f"`folder`: {str(path)!r} is not a checkpoint of this version of `fit`; start afresh "
            "with `resume=False`."
        )
    losses = leaves.pop(_LOSSES)
    leaves |= {name: np.zeros(shape) for name, shape in plain["empty"].items()}
    return Checkpoint(plain, losses, leaves)


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
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=create, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(path.absolute(), options=options)


def restore_svi_state(svi: SVI, template: SVIState, saved: Checkpoint) -> SVIState:
    """Give the saved leaves the structure and types of a state of the same model."""
    shapes = {name: tuple(shape) for name, shape in saved.plain["shapes"].items()}
    _check_same("parameters", parameter_shapes(svi, template), shapes)
    leaves = saved.leaves
    found = {name: value.shape for name, value in _named_leaves(template).items()}
    _check_same("optimiser or loss", found, {name: value.shape for name, value in leaves.items()})
    like, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(
        structure, [as_leaf(leaves[name], old) for name, old in zip(found, like, strict=True)]
    )


def as_leaf(value: np.ndarray, like: Any) -> Array:
    """Turn a saved array into one of the type of another, a typed key for instance."""
    if jnp.issubdtype(jnp.result_type(like), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
    return jnp.asarray(value, jnp.result_type(like))


def as_saved(leaf: Any) -> np.ndarray:
    """Copy a leaf to the host; of a typed key, its numbers."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def parameters(svi: SVI, svi_state: SVIState) -> dict[str, Any]:
    """Return the unconstrained parameters, nested ones by dotted names."""
    return dotted(svi.optim.get_params(svi_state.optim_state))


def parameter_shapes(svi: SVI, svi_state: SVIState) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in parameters(svi, svi_state).items()}


def dotted(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by names such as `encoder$params.layer.bias`."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]

    def part(entry: Any) -> str:
        names = (getattr(entry, attribute, None) for attribute in ("key", "name", "idx"))
        return str(next((name for name in names if name is not None), entry))

    return {".".join(map(part, path)): value for path, value in found}


def _named_leaves(svi_state: SVIState) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_flatten_with_path(svi_state)[0]
    return {jax.tree_util.keystr(path): as_saved(value) for path, value in found}


def _check_same(what: str, found: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compare the names and shapes of the model's arrays with those of the checkpoint."""
    complaints = [f"{name!r} is missing from the model" for name in saved.keys() - found.keys()]
    complaints += [f"{name!r} is not in the checkpoint" for name in found.keys() - saved.keys()]
    complaints += [
        f"{name!r} has shape {found[name]}, in the checkpoint {saved[name]}"
        for name in found.keys() & saved.keys()
        if found[name] != saved[name]
    ]
    if complaints:
        raise ValueError(
            f"`folder` holds the checkpoint of another model; {what} differ: "
            f"{'; '.join(sorted(complaints)[:5])}. Build the same `SVI`, or choose another folder."
        )
