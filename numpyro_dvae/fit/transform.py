"""The user's change of each training batch: a binarisation by draws, a crop, an augmentation."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from numpyro_dvae.fit.data import Batch, as_batch

__all__ = ["transformed"]

_NEEDED = "return the model's arguments as a tuple, or the array if the model takes but one"


def transformed(rng_key: Array, transform: Callable[..., Any], batch: Batch) -> Batch:
    """Call the transform as the model would be called, and read what it returns as a batch.

    Raises:
        ValueError: If it cannot be called so, or returns something else.
    """
    args, kwargs = batch
    try:
        value = transform(rng_key, *args, **kwargs)
    except TypeError as error:
        if complaint := _why_not_callable(transform, (rng_key, *args), kwargs):
            raise ValueError(
                f"`transform` cannot be called with a key and what the model is called with, "
                f"{len(args) + len(kwargs)} argument(s): {complaint}. Let it take these, and "
                f"{_NEEDED}."
            ) from error
        raise
    _check_returned(value, len(args) + len(kwargs))
    return as_batch(value, "what `transform` returns")


def _why_not_callable(transform: Callable[..., Any], args: tuple, kwargs: dict) -> str | None:
    """What its signature says against the arguments; None if nothing, or nothing is known."""
    try:
        inspect.signature(transform).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:  # a builtin without a signature
        return None
    return None


def _check_returned(value: Any, num_arguments: int) -> None:
    is_array = isinstance(value, jax.Array | np.ndarray)
    if isinstance(value, tuple | list | Mapping) or (is_array and num_arguments == 1):
        return
    kind = type(value).__name__
    what = f"one array in place of {num_arguments} arguments" if is_array else f"a {kind}"
    raise ValueError(f"`transform` returned {what}. Let it {_NEEDED}.")
