"""Checks of what a network is given, with errors in the words of its user."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from numpyro_dvae.ops.arguments import check_counts, is_count
from numpyro_dvae.ops.quantizing import check_codes_fit

__all__ = [
    "batch_shape_of",
    "check_codebook",
    "check_codes",
    "check_floats",
    "check_width",
    "flat_start",
    "nan_beyond",
    "not_encoded",
]


def batch_shape_of(x: Array, input_shape: Sequence[int]) -> Sequence[int]:
    """The leading dims of `x`, which must end in `input_shape` and hold floating-point numbers.

    Raises:
        ValueError: If `x` has another shape, or holds integers.
    """
    num_batch = x.ndim - len(input_shape)
    if num_batch < 0 or x.shape[num_batch:] != tuple(input_shape):
        raise ValueError(
            f"`x` must have shape (*batch, {', '.join(map(str, input_shape))}); got "
            f"{x.shape}. Reshape the data or build the network for that `input_shape`."
        )
    check_floats(x, "`x`")
    return x.shape[:num_batch]


def check_floats(x: Array, name: str) -> None:
    """Check that `x`, which the user knows by `name`, holds floating-point numbers.

    Raises:
        ValueError: If it holds integers, as images often do.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must hold floating-point numbers; got {x.dtype}. Convert it first, as in "
            "x.astype(float) / 255 or (x > 127).astype(float)."
        )


def check_codes(codes: Array | np.ndarray, num_codes: int | None, name: str) -> None:
    """Check that integers, which the user knows by `name`, are codes below `num_codes`.

    Real numbers stand for codes in other ways; and within a
    compiled function no values are known: there, what is made of such codes is NaN.

    Raises:
        ValueError: If one is negative, or too large.
    """
    if num_codes is None or jnp.issubdtype(codes.dtype, jnp.floating) or not _can_be_seen(codes):
        return
    seen = np.asarray(codes)  # in NumPy, as JAX may be tracing around it
    low, high = int(seen.min()), int(seen.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"`{name}` must hold codes from 0 to {num_codes - 1}; got {low if low < 0 else high}. "
            "Are they of another codebook?"
        )


def _can_be_seen(array: Array | np.ndarray) -> bool:
    """Whether values can be read, here and now."""
    if isinstance(array, jax.core.Tracer) or not array.size:
        return False
    return getattr(array, "is_fully_addressable", True)


def codes_or_beyond(codes: Shaped[Array, "..."], num_codes: int) -> Integer[Array, "..."]:
    """Codes, with `num_codes` for negative ones, which would count from the end of a table."""
    codes = codes.astype(int)
    return jnp.where(codes < 0, num_codes, codes)


def nan_beyond(
    vectors: Float[Array, "*batch D"], codes: Integer[Array, "*batch"], num_codes: int
) -> Float[Array, "*batch D"]:
    """The vectors of codes, NaN where these are none: a rule makes one of any integer."""
    is_code = (codes >= 0) & (codes <= num_codes - 1)
    return jnp.where(is_code[..., None], vectors, jnp.nan)


def flat_start(start: Array | np.ndarray, output_shape: Sequence[int]) -> np.ndarray:
    """The outputs that a decoder starts at, as a vector.

    Raises:
        ValueError: If they have another shape than the output.
    """
    if start.shape != tuple(output_shape):
        raise ValueError(
            f"`start` must have the shape of the output, {tuple(output_shape)}; got "
            f"{start.shape}. Average the data over their first axis."
        )
    return np.asarray(start).reshape(-1)


def not_encoded(x: Array, error: Exception) -> ValueError:
    """What to say of an encoder that failed."""
    return ValueError(
        f"`encoder` failed on data of shape {tuple(x.shape)} and {x.dtype}: {error} Convolutions "
        "take floating-point numbers (x / 255 of bytes), and have the channels of an image "
        "last, (N, H, W, C), in flax."
    )


def check_codebook(
    num_codes: int,
    embed_dim: int,
    decay: float | None,
    min_count: float | None,
    table: Any,
    start: str | None,
) -> None:
    """Check the arguments of a `Codebook`.

    Raises:
        ValueError: If one is out of its range, or the table has another shape.
    """
    check_counts(embed_dim=embed_dim)
    if num_codes < 2:
        raise ValueError(f"`num_codes` must be at least 2; got {num_codes}.")
    if decay is not None and not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay` must be in [0, 1), or None; got {decay}.")
    if min_count is not None and not min_count > 0.0:
        raise ValueError(
            f"`min_count` must be positive, in inputs per batch, or None; got {min_count}."
        )
    if table is not None and tuple(table.shape) != (num_codes, embed_dim):
        raise ValueError(
            f"`table` must have shape ({num_codes}, {embed_dim}); got {tuple(table.shape)}."
        )
    if table is not None:
        check_floats(table, "`table`")
        if _can_be_seen(table) and not np.isfinite(np.asarray(table)).all():
            raise ValueError("`table` must hold finite numbers; got some that are not.")
    if start not in (None, "uniform", "data", "k_means"):
        raise ValueError(f'`start` must be "uniform", "data" or "k_means"; got {start!r}.')
    if start is not None and table is not None:
        raise ValueError(f"`start` is for a codebook without `table`; got both, {start!r}.")


def check_width(vectors: Array, width: int, name: str) -> None:
    """Whether the vectors of a network are as wide as those of a codebook.

    Raises:
        ValueError: If not.
    """
    if vectors.shape[-1] != width:
        raise ValueError(
            f"`{name}` must return vectors as wide as the codebook's, (*batch, latents, {width}); "
            f"got {vectors.shape}. Of a grid, as convolutions return one, pass `grid`."
        )


def of_sizes(name: str, table: Array, sizes: tuple[int, int]) -> Array:
    """A table that a program holds by this name.

    Raises:
        ValueError: If it is of a codebook of other sizes.
    """
    if jnp.shape(table) != sizes:
        raise ValueError(
            f"`{name}` must have shape {sizes}; got {jnp.shape(table)}. Build the codebook with "
            "the sizes it was trained with."
        )
    return table


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels of finite scalars, as a tuple.

    Raises:
        ValueError: If they are not one whole number of at least 2 for each channel, or an integer
            does not hold their codes.
    """
    found = tuple(levels) if isinstance(levels, Iterable) else ()
    if not found or not all(is_count(each) and each >= 2 for each in found):
        raise ValueError(
            f"`levels` must be numbers of at least 2, one for each channel, as (8, 6, 5); got "
            f"{levels}."
        )
    check_codes_fit(found)
    return found
