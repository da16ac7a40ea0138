"""Trees of tensors and numbers, as a checkpoint holds them and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_plain", "like"]

# Of a class of its own, as IntEnum and StrEnum make them, no load admits a number or a string.
_PLAIN: dict[type, Any] = {int: int.__int__, float: float.__float__, str: str.__str__}


def as_plain(value: Any) -> Any:
    """Copy a tree into tensors, numbers, strings, lists, tuples and dicts.

    Raises:
        ValueError: If it holds anything else; its place in the tree is named.
    """
    return _as_plain(value, "checkpoint")


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


def _as_plain(value: Any, path: str) -> Any:
    if isinstance(value, Tensor):  # one that repeats its values is written in full
        repeats = value.numel() * value.element_size() > value.untyped_storage().nbytes()
        return value.detach().contiguous() if repeats else value.detach()
    if isinstance(value, np.generic):  # a float64 is a `float`, but one that no load admits
        return value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        places = {key: f"{path}[{key!r}]" for key in value}
        return {_as_plain(k, places[k]): _as_plain(value[k], places[k]) for k in places}
    if isinstance(value, list | tuple):
        entries = [_as_plain(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    raise ValueError(
        f"`folder`: cannot checkpoint {path}, a {type(value).__name__}. State of losses, "
        "optimisers and schedulers must be tensors, numbers, strings, lists, tuples or dicts."
    )
