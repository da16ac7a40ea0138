"""Residual convolutions between data on a fine grid and latents on a coarse one, in 1 or 2 dims.

Each halving of the grid is a convolution of kernel 4 and stride 2, each doubling its transpose;
the widest layers and the residual blocks lie on the coarse grid, where they cost least:

    data -> [halve, norm, ReLU] ... -> 3-convolution -> residual blocks -> 1-convolution -> latents
    latents -> 3-convolution -> residual blocks -> [double, norm, ReLU] ... -> double -> outputs

Norms are of groups of channels of one datum: no datum, and no particle, sees another.

References:
    van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    Wu & He. Group normalization. ECCV, 2018.
    Drolet et al. Discrete variational autoencoding via policy search. ICLR, 2026 (the widths).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from functools import partial
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from numpyro_dvae.nets.halving import coarse_grid, split_shape, widths_between
from numpyro_dvae.nets.inputs import batch_shape_of, codes_or_beyond, flat_start
from numpyro_dvae.nets.latents import latents_batch
from numpyro_dvae.nets.layers import check_dtype, widened
from numpyro_dvae.nets.mlp import Constant
from numpyro_dvae.nets.upsampling import Upsampling
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["ConvDecoder", "ConvEncoder"]

_WITH_CODEBOOK = "ConvDecoder(num_latents, None, ..., embed_dim=embed_dim)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs, as in `MLPDecoder`


@checked
class ConvEncoder(nn.Module):
    """Residual convolutions from a datum to logits of latents on a grid, or to their vectors.

    Data ``(*batch, *input_shape)`` give ``(*batch, L, V)``, the L latents line by line.

    Args:
        input_shape: Shape of one datum, channels last: ``(H, W)``, ``(H, W, C)``, or with
            ``spatial_dims=1`` ``(T,)``, ``(T, C)``.
        num_latents: Latents per datum, L; they lie on the grid that halving each side some number
            of times leaves. 64 of an image of 32 x 32 lie on 8 x 8.
        num_codes: Numbers for each latent, V: logits of its values, or the width of the vector that
            a codebook quantises; None for one Bernoulli latent at each place, ``(*batch, L)``.
        width: Channels on the coarse grid; half as many on each finer one.
        num_blocks: Residual blocks.
        num_groups: Groups of channels that are normalised together, or the largest number of them
            that divides both; 1 normalises a layer, and None nothing.
        spatial_dims: 2 for images, 1 for sequences.
        output_scale: Of the first outputs, as in `MLPEncoder`.
        per_place: Latents at each place of the grid, one after the other: 640 of an image of
            32 x 32 lie 10 by 10 on 8 x 8.
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Attributes:
        grid: Sizes of the grid of the latents.

    Raises:
        ValueError: If no number of halvings leaves places for L, or a shape has other dims.
    """

    input_shape: Sequence[int]
    num_latents: int
    num_codes: int | None = None
    _: KW_ONLY
    width: int = 64
    num_blocks: int = 2
    num_groups: int | None = 8
    spatial_dims: int = 2
    output_scale: float = 1.0
    per_place: int = 1
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes, width=self.width)
        check_counts(num_groups=self.num_groups, per_place=self.per_place)
        check_counts(num_blocks=self.num_blocks, least=0)
        check_dtype(self.dtype)
        self._resolution()
        super().__post_init__()

    def _resolution(self) -> tuple[tuple[int, ...], int, int]:
        """The grid of the latents, how many halvings lead to it, and the channels of the data."""
        sides, channels = split_shape(self.input_shape, self.spatial_dims, "input_shape")
        return *coarse_grid(sides, self.num_latents, self.per_place), channels

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the grid of the latents."""
        return self._resolution()[0]

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch_output"]:
        """Logits or vectors of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        grid, halvings, channels = self._resolution()
        x = x.reshape(-1, *self.input_shape[: len(grid)], channels)
        for width in widths_between(self.width, halvings, channels):
            x = _stage(self, partial(_Halving, width, self.dtype), x)
        x = _convolution(self.width, 3, len(grid), dtype=self.dtype)(x)
        x = _residuals(self, x)
        outputs = self.per_place * (self.num_codes or 1)
        head = _convolution(outputs, 1, len(grid), self.output_scale, dtype=self.dtype)
        x = widened(head(nn.relu(x)), self.dtype)
        last = () if self.num_codes is None else (self.num_codes,)
        return x.reshape(*batch, self.num_latents, *last)


@checked
class ConvDecoder(nn.Module):
    """Residual convolutions from latents on a grid to what a likelihood reads.

    Codes ``(*batch, L)``, relaxed codes ``(*batch, L, V)``, or with `num_codes` None real numbers
    ``(*batch, L * D)``, as `CodebookDecoder` hands them on, give outputs
    ``(*batch, *output_shape)``.

    Args:
        num_latents: Latents per datum, L, line by line on the grid that halving each side of the
            output some number of times leaves.
        num_codes: Values of a latent, V; None feeds D real numbers at each place to the first layer
            directly: vectors of a codebook, or D Bernoulli latents.
        output_shape: Shape of the outputs of one datum, channels last: ``(H, W)``, ``(H, W, C)``,
            or with ``spatial_dims=1`` ``(T,)``, ``(T, C)``. A likelihood with two numbers for each
            entry of a datum (`models.GaussianHeads`) wants twice the channels.
        embed_dim: Width of a code's embedding, D.
        width: Channels on the coarse grid; half as many on each finer one.
        num_blocks: Residual blocks.
        num_groups: Groups of channels that are normalised together, or the largest number of them
            that divides both; 1 normalises a layer, and None nothing.
        spatial_dims: 2 for images, 1 for sequences.
        start: Outputs of shape `output_shape` at which all codes start, as in `MLPDecoder`.
        per_place: Latents at each place of the grid, one after the other.
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Attributes:
        grid: Sizes of the grid of the latents.

    Raises:
        ValueError: If no number of halvings leaves places for L, or a shape has other dims.
    """

    num_latents: int
    num_codes: int | None
    output_shape: Sequence[int]
    _: KW_ONLY
    embed_dim: int = 64
    width: int = 64
    num_blocks: int = 2
    num_groups: int | None = 8
    spatial_dims: int = 2
    start: Float[Array | np.ndarray, "..."] | Constant | None = None
    per_place: int = 1
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_shape", tuple(self.output_shape))
        if self.start is not None and not isinstance(self.start, Constant):
            object.__setattr__(self, "start", Constant(flat_start(self.start, self.output_shape)))
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        check_counts(embed_dim=self.embed_dim, width=self.width)
        check_counts(num_groups=self.num_groups, per_place=self.per_place)
        check_counts(num_blocks=self.num_blocks, least=0)
        check_dtype(self.dtype)
        self._resolution()
        super().__post_init__()

    def _resolution(self) -> tuple[tuple[int, ...], int, int]:
        """The grid of the latents, how many doublings lead from it, and the output's channels."""
        sides, channels = split_shape(self.output_shape, self.spatial_dims, "output_shape")
        return *coarse_grid(sides, self.num_latents, self.per_place), channels

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the grid of the latents."""
        return self._resolution()[0]

    @nn.compact
    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        grid, doublings, channels = self._resolution()
        if self.num_codes is not None:
            z = self._vectors(z, self.num_codes, len(batch) == z.ndim - 2)
        x = z.reshape(-1, *grid, self.per_place * self.embed_dim)
        dims, dtype = len(grid), self.dtype
        x = _convolution(self.width, 3, dims, dtype=dtype)(x)
        x = nn.relu(_residuals(self, x))
        for width in widths_between(self.width, doublings, channels)[:0:-1]:
            x = _stage(self, partial(_doubling, width, dims, dtype), x)
        if doublings:
            x = _doubling(channels, dims, dtype, _OUTPUT_SCALE)(x)
        else:
            x = _convolution(channels, 1, dims, _OUTPUT_SCALE, dtype=dtype)(x)
        outputs = widened(x, dtype).reshape(*batch, *self.output_shape)
        if not isinstance(self.start, Constant):
            return outputs
        return outputs + self.start.value.reshape(self.output_shape).astype(outputs.dtype)

    def _vectors(self, z: Array, num_codes: int, is_relaxed: bool) -> Array:
        """The vectors of codes, or their mixtures."""
        start = nn.initializers.normal(1.0)
        embedding = nn.Embed(num_codes, self.embed_dim, embedding_init=start)
        if not is_relaxed:
            return embedding(codes_or_beyond(z, num_codes))
        table = embedding.embedding
        return z.astype(table.dtype) @ table

    def batch_shape(self, z: Shaped[Array, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

        Raises:
            ValueError: If `z` does not hold L latents, or holds vectors of another's table.
        """
        per_latent = self.embed_dim if self.num_codes is None else 1
        return latents_batch(z, self.num_latents * per_latent, self.num_codes, _WITH_CODEBOOK)


def _residuals(net: nn.Module, x: Array) -> Array:
    """The residual blocks of a network, whose activations are kept, or computed again."""
    block = nn.remat(_Residual) if net.recompute else _Residual
    for i in range(net.num_blocks):
        x = block(net.width, net.num_groups, net.dtype, name=f"_Residual_{i}")(x)
    return x


def _stage(net: nn.Module, layer: Callable[[], nn.Module], x: Array) -> Array:
    """A layer between two grids, its norm and a ReLU."""

    def run(net: nn.Module, x: Array) -> Array:
        return nn.relu(_normed(layer()(x), net.num_groups))

    return nn.remat(run)(net, x) if net.recompute else run(net, x)


class _Residual(nn.Module):
    """``x + norm(conv1(relu(norm(conv3(relu(x))))))``."""

    width: int
    num_groups: int | None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = x
        for kernel in (3, 1):
            layer = _convolution(self.width, kernel, x.ndim - 2, dtype=self.dtype)
            hidden = layer(nn.relu(hidden))
            hidden = _normed(hidden, self.num_groups)
        return x + hidden


class _Halving(nn.Module):
    """A convolution of kernel 4 and stride 2."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _convolution(self.width, 4, x.ndim - 2, strides=2, dtype=self.dtype)(x)


def _doubling(
    width: int, dims: int, dtype: Any, scale: float = 1.0, name: str | None = None
) -> Upsampling:
    """A transposed convolution of kernel 4 and stride 2; each output has 2 of 4 taps a side."""
    start = nn.initializers.variance_scaling(scale**2 * 2**dims, "fan_in", "normal")
    return Upsampling(width, spatial_dims=dims, kernel_init=start, dtype=dtype, name=name)


def _convolution(
    width: int,
    kernel: int,
    dims: int,
    scale: float = 1.0,
    *,
    strides: int = 1,
    dtype: Any = None,
) -> nn.Conv:
    """Weights normal with variance ``scale² / fan-in``, biases zero."""
    around = [((kernel - 1) // 2, (kernel - 1) // 2)] * dims
    return nn.Conv(
        width,
        (kernel,) * dims,
        strides,
        around,
        kernel_init=nn.initializers.variance_scaling(scale**2, "fan_in", "normal"),
        dtype=dtype,
    )


def _normed(x: Array, num_groups: int | None) -> Array:
    if num_groups is None:
        return x
    groups = math.gcd(x.shape[-1], num_groups)
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)(x)
