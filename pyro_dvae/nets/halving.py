"""Grids of data and of their latents, which a number of halvings of each side connects."""

import math
from collections.abc import Sequence

from pyro_dvae.ops.arguments import check_counts

__all__ = ["check_spatial_dims", "coarse_grid", "resampling", "split_shape", "widths_between"]


def check_spatial_dims(spatial_dims: int) -> None:
    """Check a number of sides.

    Raises:
        ValueError: If it is neither 1 nor 2.
    """
    if spatial_dims not in (1, 2):
        raise ValueError(
            f"`spatial_dims` must be 1 (sequences) or 2 (images); got {spatial_dims!r}."
        )


def split_shape(shape: Sequence[int], spatial_dims: int, name: str) -> tuple[tuple[int, ...], int]:
    """The sides of a grid, and the channels at each place, which are the last dim or 1.

    Args:
        shape: Of a datum: ``(*sides)`` or ``(*sides, channels)``.
        spatial_dims: How many sides there are, 1 or 2.
        name: Of the argument that `shape` is, for the error.

    Raises:
        ValueError: If there are more or fewer dims.
    """
    check_spatial_dims(spatial_dims)
    shape = tuple(shape)
    if len(shape) not in (spatial_dims, spatial_dims + 1):
        wanted = "(T,) or (T, C)" if spatial_dims == 1 else "(H, W) or (H, W, C)"
        raise ValueError(
            f"`{name}` must be {wanted} with spatial_dims={spatial_dims}; got {shape}."
        )
    for size in shape:
        check_counts(**{name: size})
    return shape[:spatial_dims], math.prod(shape[spatial_dims:])


def coarse_grid(
    sides: Sequence[int], num_latents: int, per_place: int = 1
) -> tuple[tuple[int, ...], int]:
    """The grid that halving all sides leaves for L latents, and how many halvings that takes.

    Raises:
        ValueError: If no number of halvings leaves places for L, `per_place` at each.
    """
    found, grid = {}, tuple(sides)
    for halvings in range(max(sides).bit_length()):
        found[per_place * math.prod(grid)] = grid, halvings
        if any(side % 2 for side in grid):
            break
        grid = tuple(side // 2 for side in grid)
    if num_latents not in found:
        possible = ", ".join(f"{size} on {grid}" for size, (grid, _) in found.items())
        raise ValueError(
            f"`num_latents` must be what halving the sides {tuple(sides)} leaves, with "
            f"per_place={per_place}: {possible}; got {num_latents}. Pad or crop the data for other "
            "numbers."
        )
    return found[num_latents]


def resampling(length: int, places: int) -> tuple[bool, int]:
    """Whether a sequence grows from one length to another, and how many times one is the other.

    Raises:
        ValueError: If neither divides the other.
    """
    longer, shorter = max(length, places), min(length, places)
    if longer % shorter:
        raise ValueError(
            f"`num_latents` must divide the frames of a sequence, or be a multiple of them; got "
            f"lengths {length} and {places}. Pad or crop the data."
        )
    return places > length, longer // shorter


def widths_between(width: int, halvings: int, channels: int) -> list[int]:
    """Channels of the layers between the data and the coarse grid, from fine to coarse.

    Half as many on each finer grid, and never fewer than those of the data.
    """
    return [max(width >> (halvings - level), channels) for level in range(halvings)]
