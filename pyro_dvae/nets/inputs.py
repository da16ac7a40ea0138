"""Checks of what a network is given, with errors in the words of its user."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor

from pyro_dvae.ops.arguments import check_counts, is_count
from pyro_dvae.ops.quantizing import check_codes_fit

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


def batch_shape_of(x: Tensor, input_shape: Sequence[int]) -> Sequence[int]:
    """The leading dims of `x`, which must end in `input_shape` and hold floating-point numbers.

    Raises:
        ValueError: If `x` has another shape, or holds integers.
    """
    num_batch = x.dim() - len(input_shape)
    if num_batch < 0 or tuple(x.shape[num_batch:]) != tuple(input_shape):
        raise ValueError(
            f"`x` must have shape (*batch, {', '.join(map(str, input_shape))}); got "
            f"{tuple(x.shape)}. Reshape the data or build the network for that `input_shape`."
        )
    check_floats(x, "`x`")
    return x.shape[:num_batch]


def check_floats(x: Tensor, name: str) -> None:
    """Check that `x`, which the user knows by `name`, holds floating-point numbers.

    Raises:
        ValueError: If it holds integers, as images often do.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must hold floating-point numbers; got {x.dtype}. Convert it first, as in "
            "x.float() / 255 or (x > 127).float()."
        )


def check_codes(codes: Tensor, num_codes: int | None, name: str) -> None:
    """Check that integers, which the user knows by `name`, are codes below `num_codes`.

    Real numbers stand for codes in other ways; and a GPU is not asked while it trains.

    Raises:
        ValueError: If one is negative, or too large.
    """
    if num_codes is None or codes.is_floating_point() or not _can_be_seen(codes):
        return
    low, high = (int(each) for each in codes.aminmax())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"`{name}` must hold codes from 0 to {num_codes - 1}; got {low if low < 0 else high}. "
            "Are they of another codebook?"
        )


def _can_be_seen(array: Tensor) -> bool:
    """Whether values can be read, and nothing has to wait for that."""
    if torch.compiler.is_compiling() or not array.numel():
        return False
    if isinstance(array, ProvenanceTensor):  # a run that follows draws notes who reads them
        return False
    return array.device.type == "cpu" or not torch.is_grad_enabled()


def nan_beyond(
    vectors: Float[Tensor, "*batch D"], codes: Integer[Tensor, "*batch"], num_codes: int
) -> Float[Tensor, "*batch D"]:
    """The vectors of codes, NaN where these are none: a rule makes one of any integer."""
    is_code = (codes >= 0) & (codes <= num_codes - 1)
    return torch.where(is_code[..., None], vectors, torch.nan)


def flat_start(start: Tensor, output_shape: Sequence[int]) -> Tensor:
    """The outputs that a decoder starts at, as a vector.

    Raises:
        ValueError: If they have another shape than the output.
    """
    if tuple(start.shape) != tuple(output_shape):
        raise ValueError(
            f"`start` must have the shape of the output, {tuple(output_shape)}; got "
            f"{tuple(start.shape)}. Average the data over their first axis."
        )
    return start.reshape(-1)


def not_encoded(x: Tensor, error: Exception) -> ValueError:
    """What to say of an encoder that failed."""
    advice = (
        "Convolutions take floating-point numbers (x / 255 of bytes), and have the channels of an "
        "image first, (N, C, H, W), in Torch."
    )
    of_types = any(words in str(error) for words in ("same dtype", "bias type"))
    if x.is_floating_point() and of_types:
        advice = "Give data and networks one precision: x.float(), or encoder.to(x.dtype)."
    failed = f"`encoder` failed on data of shape {tuple(x.shape)} and {x.dtype}"
    return ValueError(f"{failed}: {str(error).rstrip('.')}. {advice}")


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
        if not table.isfinite().all():
            raise ValueError("`table` must hold finite numbers; got some that are not.")
    if start not in (None, "uniform", "data", "k_means"):
        raise ValueError(f'`start` must be "uniform", "data" or "k_means"; got {start!r}.')
    if start is not None and table is not None:
        raise ValueError(f"`start` is for a codebook without `table`; got both, {start!r}.")


def check_width(vectors: Tensor, width: int, name: str) -> None:
    """Whether the vectors of a network are as wide as those of a codebook.

    Raises:
        ValueError: If not.
    """
    if vectors.shape[-1] != width:
        raise ValueError(
            f"`{name}` must return vectors as wide as the codebook's, (*batch, latents, {width}); "
            f"got {tuple(vectors.shape)}. Of a grid, as convolutions return one, pass `grid`."
        )


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
