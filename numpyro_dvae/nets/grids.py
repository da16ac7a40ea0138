"""Latents on a grid: for priors and losses in a row, line by line; on the grid for networks.

Networks over images have a width for each place of a grid, as their last dim (flax) or before the
dims of the grid (Torch): `channels_first` says which.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax.linen import activation
from jaxtyping import Array, Shaped

from numpyro_dvae.ops.arguments import is_count

__all__ = ["are_sizes", "check_grid", "from_grid", "to_grid"]

_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvLocal", "Upsampling")
_HAS_CHANNELS_FIRST = False  # each of these
_ELEMENTWISE = tuple(vars(activation).values())


def check_grid(
    grid: Sequence[int] | None, channels_first: bool, network: Any = None, *, at_end: bool = True
) -> tuple[int, ...] | None:
    """A grid as a tuple.

    Args:
        grid: Its sizes.
        channels_first: Whether the network has the width before it.
        network: What lies on the grid at one end of it, if it is known.
        at_end: Whether these are its outputs.

    Raises:
        ValueError: If a size is below 1, or channels are first of no grid, or on the other side of
            the network's layer there, which sizes do not tell where all of them are equal.
    """
    if grid is None:
        if channels_first:
            raise ValueError("`channels_first` is of a grid; give `grid` too, as in grid=(8, 8).")
        return None
    if not are_sizes(grid):
        raise ValueError(f"`grid` must be sizes of at least 1, as (8, 8); got {grid}.")
    layer = _layer_at(network, at_end)
    if _kind_of(layer) in _CONVOLUTIONS and channels_first is not _HAS_CHANNELS_FIRST:
        raise ValueError(
            f"channels_first={channels_first}, but {'outputs' if at_end else 'inputs'} of the "
            f"network's {type(layer).__name__} have channels "
            f"{'before' if _HAS_CHANNELS_FIRST else 'behind'} the grid. Pass "
            f"channels_first={_HAS_CHANNELS_FIRST}."
        )
    return tuple(grid)


def _layer_at(network: Any, at_end: bool) -> Any:
    """The last or first layer that is no function of each number alone."""
    layers = [network]
    while layers:
        layer = layers.pop()
        if _kind_of(layer) == "Sequential":
            layers += layer.layers if at_end else reversed(layer.layers)
        elif _kind_of(layer) != "Dropout" and not any(layer is each for each in _ELEMENTWISE):
            return layer
    return None


def _kind_of(layer: Any) -> str:
    """The name of a layer of flax, be it of linen or of nnx (slow to import), or of ours."""
    kind = type(layer)
    return kind.__name__ if kind.__module__.partition(".")[0] in ("flax", "numpyro_dvae") else ""


def are_sizes(grid: Any) -> bool:
    """Whether a grid is one or more whole numbers of at least 1."""
    if not isinstance(grid, Sequence) or not grid:
        return False
    return all(is_count(each) and each >= 1 for each in grid)


def from_grid(
    array: Shaped[Array, "..."], grid: tuple[int, ...] | None, channels_first: bool, name: str
) -> Shaped[Array, "*batch L width"]:
    """What lies on a grid, in a row: ``(*batch, *grid, width)``, or with the width before the grid.

    Args:
        array: What a network has made; without a grid it is returned as it is.
        grid: Sizes of the grid.
        channels_first: Whether the width is before the grid.
        name: Of the network, for the error.

    Raises:
        ValueError: If the grid is another.
    """
    if grid is None:
        return array
    ends = 1 + len(grid)
    shape = tuple(array.shape[array.ndim - ends :]) if array.ndim > ends - 1 else ()
    if not shape or (shape[1:] if channels_first else shape[:-1]) != grid:
        wanted = ("width", *grid) if channels_first else (*grid, "width")
        raise ValueError(
            f"`{name}` must return (*batch, {', '.join(map(str, wanted))}) with grid={grid} and "
            f"channels_first={channels_first}; got {tuple(array.shape)}. Is the grid another, or "
            "are the channels of the data, or of the network's outputs, on the other side?"
        )
    array = jnp.moveaxis(array, -1 - len(grid), -1) if channels_first else array
    return array.reshape(*array.shape[: array.ndim - ends], math.prod(grid), array.shape[-1])


def to_grid(
    array: Shaped[Array, "*batch L width"], grid: tuple[int, ...], channels_first: bool
) -> Shaped[Array, "..."]:
    """What is in a row, on its grid: the inverse of `from_grid`.

    Raises:
        ValueError: If there are not as many latents as places.
    """
    if array.shape[-2] != math.prod(grid):
        raise ValueError(
            f"`grid` {grid} has {math.prod(grid)} places, but a datum has {array.shape[-2]} "
            "latents. Give prior, guide and decoder the same number of latents."
        )
    array = array.reshape(*array.shape[:-2], *grid, array.shape[-1])
    return jnp.moveaxis(array, -1, -1 - len(grid)) if channels_first else array
