"""What a user may pass as data, read as arrays and as batches.

Data are arrays with one common leading axis, or an iterable of batches.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.ops.arguments import is_count

__all__ = [
    "Batch",
    "as_arrays",
    "as_batch",
    "check_batch_size",
    "check_no_dataset",
    "is_finite",
    "is_iterable_of_batches",
    "num_rows",
    "take_rows",
]

_PART = 2**24  # bytes that are looked at together


class Batch(NamedTuple):
    """What the model and guide of a step are called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_arrays(data: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Put arrays on the device; check that they are not empty, agree, and are finite."""
    held = tuple(_held(value, f"`{name}`") for value in data)
    for i, value in enumerate(held):
        if _is_floating(value):
            _check_finite(value, f"`{name}`: argument {i}")
    arrays = tuple(_on_device(value, f"`{name}`") for value in held)
    sizes = {i: len(value) for i, value in enumerate(arrays) if _has_rows(value)}
    if not sizes or min(sizes.values()) == 0:
        raise ValueError(
            f"`{name}` is empty: it needs an array with at least one row; got "
            f"{[v.shape if isinstance(v, jax.Array) else v for v in arrays]}."
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`{name}` needs one common leading axis (the data); got sizes "
            f"{', '.join(f'{size} (argument {i})' for i, size in sizes.items())}. Bind what is "
            "not data to the model and guide, for example by `functools.partial`."
        )
    return arrays


def as_batch(value: Any, source: str = "`data`") -> Batch:
    """Read one item of a user's iterable as arguments of the model; errors name its `source`."""
    if isinstance(value, Mapping):
        return Batch((), {name: _as_array(v, source) for name, v in value.items()})
    arguments = value if isinstance(value, tuple | list) else (value,)
    return Batch(tuple(_as_array(argument, source) for argument in arguments), {})


def check_batch_size(arrays: tuple[Any, ...], batch_size: int | None) -> int | None:
    """Return `batch_size` if it lies in [1, N]."""
    size = num_rows(arrays)
    if batch_size is not None and not (is_count(batch_size) and 1 <= batch_size <= size):
        raise ValueError(
            f"`batch_size` must lie between 1 and the number of data, {size}; got {batch_size!r}. "
            "None passes all data at every step."
        )
    return batch_size


def is_finite(batch: Batch) -> Array:
    """Return whether all values of a batch are finite; it may be traced."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(batch) if _is_floating(leaf)]
    return jnp.array([True, *finite]).all()


def is_iterable_of_batches(value: Any) -> bool:
    """Whether data are an iterable that makes its own batches.

    Raises:
        ValueError: If they are a tuple, which may be meant as one or the other.
    """
    if isinstance(value, tuple):
        raise ValueError(
            "`data` is a tuple: pass its arrays one by one, fit(rng_key, svi, *data, ...), or a "
            "list of batches."
        )
    check_no_dataset(value)
    is_array = hasattr(value, "__array__") or isinstance(value, str | bytes)
    return hasattr(value, "__iter__") and not is_array


def check_no_dataset(value: Any) -> None:
    """Check that data are no `Dataset` of single data, which makes no batches.

    Raises:
        ValueError: If they are.
    """
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not _can_be_read(value):
        raise ValueError(
            f"`data` is a {type(value).__name__}, which has data but no batches: pass its arrays, "
            "or a `DataLoader` of it."
        )


def _can_be_read(value: Any) -> bool:
    return any(hasattr(value, name) for name in ("__array__", "__iter__"))


def num_rows(values: Any) -> int:
    """Size of the leading axis of the first array; 1 if there is no array."""
    return next((len(value) for value in values if _has_rows(value)), 1)


def take_rows(arrays: tuple[Any, ...], rows: Array | np.ndarray | slice) -> tuple[Any, ...]:
    """Take rows of every array; scalars and other values stay as they are."""
    return tuple(value[rows] if _has_rows(value) else value for value in arrays)


def _held(value: Any, source: str) -> Any:
    """Arrays of JAX stay, what NumPy can read becomes its array, and the rest is constant."""
    if isinstance(value, jax.Array | np.generic) or not hasattr(value, "__array__"):
        return value
    value = np.asarray(value)
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ValueError(f"{source} must be numeric; got an array of dtype {value.dtype}.")
    return value


def _as_array(value: Any, source: str) -> Any:
    return _on_device(_held(value, source), source)


def _on_device(value: Any, source: str) -> Any:
    """Arrays of NumPy as those of JAX, which has no other byte order and may have fewer bits.

    Raises:
        ValueError: If they hold whole numbers that JAX would wrap.
    """
    if not isinstance(value, np.ndarray):
        return value
    kept = jax.dtypes.canonicalize_dtype(value.dtype)
    if value.dtype.kind in "iu" and kept.itemsize < value.dtype.itemsize and value.size:
        low, high, held = value.min(), value.max(), np.iinfo(kept)
        if low < held.min or high > held.max:
            raise ValueError(
                f"{source} holds whole numbers from {low} to {high}, but JAX keeps them as {kept}, "
                f"from {held.min} to {held.max}. Call jax.config.update('jax_enable_x64', True), "
                "pass floats, or count from another origin."
            )
    return jnp.asarray(value.astype(value.dtype.newbyteorder("="), copy=False))


def _has_rows(value: Any) -> bool:
    return isinstance(value, jax.Array) and value.ndim > 0


def _is_floating(value: Any) -> bool:
    is_array = isinstance(value, jax.Array | np.ndarray)
    return is_array and jnp.issubdtype(value.dtype, jnp.floating)


def _check_finite(values: Any, name: str) -> None:
    """A part at a time, so that arrays of any size can be checked."""
    num_values = num_rows = 0
    for part in _parts(values):
        bad = ~(np.isfinite(part) if isinstance(part, np.ndarray) else jnp.isfinite(part))
        if bad.any():
            num_values += int(bad.sum())
            num_rows += int(bad.reshape(len(bad), -1).any(1).sum())
    if num_values:
        raise ValueError(
            f"{name} holds {num_values} values that are NaN or infinite, in {num_rows} rows. Drop "
            "these rows, or fill them and mask the site (`handlers.mask`, `.mask(...)`)."
        )


def _parts(values: Any) -> Iterator[Any]:
    """Rows of an array, as many as a few megabytes hold; all, if there are few."""
    values = values.reshape(1) if values.ndim == 0 else values
    size = max(1, _PART // max(1, values.nbytes // max(1, len(values))))
    if len(values) <= size:
        yield values
        return
    for start in range(0, len(values), size):
        yield values[start : start + size]
