"""What a run is of: all that decides its numbers, described, and compared when it is resumed.

A description is made of plain values, so that a checkpoint can hold it: the settings of the loss
and of the optimiser, the networks, the sum of the data, the size of a batch. Of a function it has
the name and what it closes over; its code may change.

But for the package's name this file is the same in both packages.
"""

import dataclasses
import functools
import math
import types
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["check_same_run", "described", "described_batch", "described_data", "shown"]

_DEPTH = 16  # of a description
_CHUNK = 2**24  # bytes of data that are summed at once
_SAMPLED = 4096  # values of each array of a batch that are summed
_SHOWN = 60  # characters of a value in a message
_DEEP = 3  # names that are too many to tell a user anything


def described_data(data: Iterable[Any]) -> list[Any]:
    """Describe the arrays and constants that a run is given as data, by shape, type and sum."""
    return [described(value, sums=True) for value in data]


def described_batch(values: Iterable[Any]) -> list[Any]:
    """Describe a batch by shapes, types and the sums of some thousand values, evenly spread.

    It costs microseconds a step. Arrays on a device, for which a step does not wait, have no sums.
    """

    def sampled(value: Any) -> Any:
        found = described(value)
        device = getattr(value, "device", None)
        if not isinstance(found, dict) or "shape" not in found or not math.prod(found["shape"]):
            return found
        if getattr(device, "type", getattr(device, "platform", "cpu")) != "cpu":
            return found
        flat = value.reshape(-1)
        return found | {"sum": _sum(flat[:: 1 + (len(flat) - 1) // _SAMPLED])}

    return [sampled(value) for value in values]


def described(value: Any, *, sums: bool = False, depth: int = _DEPTH) -> Any:
    """Describe a value by plain ones, which JSON gives back as they are.

    Args:
        value: Anything.
        sums: Whether to read arrays through; else their shapes and types do, as of parameters.
        depth: Of what is nested.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, types.ModuleType):
        return value.__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value, sums=sums)
    return _structure(value, depth - 1)


def _structure(value: Any, depth: int) -> Any:
    """Describe what is no array, number or string."""
    inner = functools.partial(described, depth=depth)
    if isinstance(value, functools.partial):
        parts = {"args": inner(value.args), **{k: inner(v) for k, v in value.keywords.items()}}
        return {"kind": inner(value.func), **parts}
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, Mapping):
        return {str(key): inner(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields = {name: inner(entry) for name, entry in value._asdict().items()}
        return {"kind": type(value).__qualname__, **fields}
    if isinstance(value, list | tuple):
        return [inner(entry) for entry in value]
    if hasattr(value, "named_buffers"):  # a module of Torch's, which lists its layers
        return str(value)
    if hasattr(value, "__self__"):
        return {"kind": value.__name__, "of": inner(value.__self__)}
    if hasattr(value, "__code__") or hasattr(value, "__wrapped__"):
        return {"kind": value.__qualname__, **_closure(value, depth)}
    return {"kind": type(value).__qualname__, **_attributes(value, depth)}


def _closure(function: Any, depth: int) -> dict[str, Any]:
    """What a function closes over that its name and its constants do not say.

    Containers may fill up as it runs, and objects may be anything: they are left out.
    """
    function = getattr(function, "__wrapped__", function)
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        is_settled = isinstance(value, bool | int | float | str | tuple | functools.partial)
        if is_settled or dataclasses.is_dataclass(value) or hasattr(value, "named_buffers"):
            found[name] = described(value, depth=depth)
        elif hasattr(value, "__code__") or hasattr(value, "dtype"):
            found[name] = described(value, depth=depth)
    return found


def _attributes(value: Any, depth: int) -> dict[str, Any]:
    """Its public attributes: of a dataclass the fields, else what it holds itself."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
    else:
        names = list(getattr(value, "__dict__", ()))
    kept = (n for n in names if not n.startswith("_") and n not in ("state", "info"))
    entries = {name: getattr(value, name, None) for name in kept}
    own = {n: v for n, v in entries.items() if not callable(getattr(type(value), n, None))}
    return {name: described(entry, depth=depth) for name, entry in own.items()}


def _array(value: Any, *, sums: bool) -> dict[str, Any]:
    """Shape and type of an array of any library; its sum, read a part at a time."""
    found = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return found | ({"sum": _sum(value)} if sums and math.prod(value.shape) else {})


def _sum(value: Any) -> int | None:
    """The CRC-32 of an array's values, in order; None if they are not to be had."""
    if not len(value.shape):
        value = value.reshape(1)
    size = getattr(value, "nbytes", None) or value.shape[0]
    rows = max(1, _CHUNK * value.shape[0] // max(size, 1))
    total = 0
    try:
        for start in range(0, value.shape[0], rows):
            total = zlib.crc32(_bytes(value[start : start + rows]), total)
    except (TypeError, ValueError, RuntimeError):  # typed keys, bfloat16 of Torch
        return None
    return total


def _bytes(part: Any) -> Any:
    part = part.detach().cpu() if hasattr(part, "detach") else part
    return np.ascontiguousarray(np.asarray(part)).view(np.uint8).data


def check_same_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that a run goes on with what it began with.

    Args:
        saved: The description in the checkpoint.
        here: The description of the run that is to go on.

    Raises:
        ValueError: If they differ; what differs is named.
    """
    for name in (*here, *(name for name in saved if name not in here)):
        if found := _difference(saved.get(name), here.get(name), ""):
            place, before, now = _plainer(*found) if name == "optim" else found
            raise ValueError(
                f"`{name}`{place} is {shown(now)}, but the checkpoint in `folder` is of a run "
                f"with {shown(before)}. Resume with what the run began with, or choose another "
                "folder."
            )


def _difference(saved: Any, here: Any, place: str) -> tuple[str, Any, Any] | None:
    """The first place where two descriptions differ, and what is there."""
    if saved == here:
        return None
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        if saved.get("kind") != here.get("kind"):
            return place, saved.get("kind"), here.get("kind")
        for name in dict.fromkeys((*here, *saved)):
            if found := _difference(saved.get(name), here.get(name), f"{place}.{name}"):
                return found
    if isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
        entries = enumerate(zip(saved, here, strict=True))
        differences = (_difference(*pair, f"{place}[{i}]") for i, pair in entries)
        return next(filter(None, differences))  # one of the entries differs
    if isinstance(saved, str) and isinstance(here, str) and "\n" in saved + here:
        lines = zip(saved.splitlines(), here.splitlines(), strict=False)
        pairs = ((before.strip(), now.strip()) for before, now in lines if before != now)
        return (place, *next(pairs, (saved, here)))
    return place, saved, here


def _plainer(place: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """A place deep within an optimiser, by its last name; optax has minus the learning rate."""
    outer, _, last = place.rpartition(".")
    if outer.count(".") < _DEEP or "[" in last:
        return place, before, now
    is_step = last == "step_size" and isinstance(before, float) and isinstance(now, float)
    if is_step and max(before, now) <= 0:
        return ": its learning rate", -before, -now
    return f": its {last}", before, now


def shown(value: Any) -> str:
    """A value in a message, cut off where it is long."""
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
