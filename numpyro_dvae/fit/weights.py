"""Trained weights in a file, and back.

    save_weights("weights.msgpack", result)              # and load_weights(path, (model, guide))

The file has the parameters of the result, those of `numpyro.param` among them, and its mutable
state.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from numpyro_dvae.fit.files import write_atomically
from numpyro_dvae.fit.result import FitResult, as_result
from numpyro_dvae.ops.arguments import checked

__all__ = ["load_weights", "save_weights"]

_MARK = b"numpyro_dvae weights, sha256"  # at the end, after the sum of what is before
_SUM_SIZE = hashlib.sha256().digest_size
_TUPLE = "numpyro_dvae.tuple"  # key of the entries of a tuple, which msgpack has not


@checked
def save_weights(path: str | os.PathLike[str], result: Any) -> None:
    """Write what was trained to a file: parameters, and the tables of codebooks.

    Args:
        path: Of the file, which is replaced as a whole.
        result: What `fit` returned.

    Raises:
        ValueError: If it has no parameters, as a pair (model, guide) that was not trained, or
            some that are neither arrays nor dicts, lists or tuples of these.
    """
    params = dict(as_result(result).params)
    if not params:
        raise ValueError(
            "`result` must be what `fit` or `load_weights` returned, which has the parameters; got "
            "none. A pair (model, guide) holds no weights here."
        )
    states = msgpack_serialize(_as_plain(params, "params"))
    content = states + hashlib.sha256(states).digest() + _MARK
    write_atomically(Path(path), lambda file: file.write(content))


@checked
def load_weights(path: str | os.PathLike[str], result: Any) -> FitResult:
    """Read the weights of a model and guide that are built as those that were saved.

    Args:
        path: Of the file that `save_weights` wrote.
        result: A pair (model, guide), or a result; its weights are left as they are.

    Returns:
        The model and guide, for the calls of this package.

    Raises:
        ValueError: If the file is no whole one of `save_weights`; on a call, if the weights are of
            other networks.
    """
    params = _as_trees(msgpack_restore(_read(path)))
    found = as_result(result)
    return FitResult(found.model, found.guide, params, np.zeros(0))


def _as_plain(tree: Any, place: str) -> Any:
    """Arrays in dicts and lists, which msgpack has."""
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {key: _as_plain(value, f"{place}['{key}']") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        found = [_as_plain(value, f"{place}[{i}]") for i, value in enumerate(tree)]
        return found if isinstance(tree, list) else {_TUPLE: found}
    if tree is None or hasattr(tree, "__array__") or isinstance(tree, int | float | complex):
        return None if tree is None else np.asarray(tree)
    raise ValueError(
        f"`save_weights`: {place} of the result is a {type(tree).__name__}, which no file of "
        "weights holds: arrays, and dicts by names, lists and tuples of these. Give the program "
        "such, as jax.tree.leaves(...) of it."
    )


def _as_trees(plain: Any) -> Any:
    if isinstance(plain, dict) and plain.keys() == {_TUPLE}:
        return tuple(map(_as_trees, plain[_TUPLE]))
    if isinstance(plain, dict):
        return {key: _as_trees(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return list(map(_as_trees, plain))
    return None if plain is None else jnp.asarray(plain)


def _read(path: str | os.PathLike[str]) -> bytes:
    """The parameters in a file whose checksum holds."""
    content = Path(path).read_bytes()
    if not content.endswith(_MARK):
        raise _not_whole(path, "it is cut off, or has no checksum as those of `save_weights` have")
    content = content[: -len(_MARK)]
    states, found = content[:-_SUM_SIZE], content[-_SUM_SIZE:]
    if hashlib.sha256(states).digest() != found:
        raise _not_whole(path, "its checksum does not hold")
    return states


def _not_whole(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(
        f"`path`: {str(path)!r} cannot be read as weights: {reason}. Put a copy in its place, or "
        "write it again with `save_weights`."
    )
