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

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_dvae.nets.halving import coarse_grid, split_shape, widths_between
from pyro_dvae.nets.inputs import batch_shape_of, flat_start
from pyro_dvae.nets.latents import latents_batch
from pyro_dvae.nets.layers import check_dtype, computing_in, run_stages
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["ConvDecoder", "ConvEncoder"]

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSES: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_WITH_CODEBOOK = "ConvDecoder(num_latents, None, ..., embed_dim=embed_dim)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs, as in `MLPDecoder`


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
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Attributes:
        grid: Sizes of the grid of the latents.

    Raises:
        ValueError: If no number of halvings leaves places for L, or a shape has other dims.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        num_latents: int,
        num_codes: int | None = None,
        *,
        width: int = 64,
        num_blocks: int = 2,
        num_groups: int | None = 8,
        spatial_dims: int = 2,
        output_scale: float = 1.0,
        per_place: int = 1,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes, width=width)
        check_counts(num_groups=num_groups, per_place=per_place)
        check_counts(num_blocks=num_blocks, least=0)
        check_dtype(dtype)
        self.dtype, self.recompute = dtype, recompute
        self.input_shape = tuple(input_shape)
        self.num_latents, self.num_codes = num_latents, num_codes
        sides, channels = split_shape(self.input_shape, spatial_dims, "input_shape")
        self.grid, halvings = coarse_grid(sides, num_latents, per_place)
        self.channels = channels
        convolution = _CONVOLUTIONS[spatial_dims]
        widths = [channels, *widths_between(width, halvings, channels)]
        self.layers = nn.Sequential(
            *_resized(convolution, widths, num_groups),
            *_blocks(convolution, widths[-1], width, num_blocks, num_groups),
        )
        self.head = convolution(width, per_place * (num_codes or 1), 1)
        _start(self.layers)
        _start(self.head, output_scale)

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch_output"]:
        """Logits or vectors of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        x = x.reshape(-1, *self.input_shape[: len(self.grid)], self.channels).movedim(-1, 1)
        x = x.to(self.head.get_parameter("weight").dtype)
        with computing_in(self.dtype, x.device):
            x = self.head(run_stages(_stages(self.layers), x, recompute=self.recompute))
        x = x.to(self.head.get_parameter("weight").dtype).movedim(1, -1)
        last = () if self.num_codes is None else (self.num_codes,)
        return x.reshape(*batch, self.num_latents, *last)


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
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Attributes:
        grid: Sizes of the grid of the latents.

    Raises:
        ValueError: If no number of halvings leaves places for L, or a shape has other dims.
    """

    @checked
    def __init__(
        self,
        num_latents: int,
        num_codes: int | None,
        output_shape: Sequence[int],
        *,
        embed_dim: int = 64,
        width: int = 64,
        num_blocks: int = 2,
        num_groups: int | None = 8,
        spatial_dims: int = 2,
        start: Float[Tensor, "..."] | None = None,
        per_place: int = 1,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        check_counts(embed_dim=embed_dim, width=width, num_groups=num_groups, per_place=per_place)
        check_counts(num_blocks=num_blocks, least=0)
        check_dtype(dtype)
        self.dtype, self.recompute, self.per_place = dtype, recompute, per_place
        self.num_latents, self.num_codes, self.embed_dim = num_latents, num_codes, embed_dim
        self.output_shape = tuple(output_shape)
        sides, channels = split_shape(self.output_shape, spatial_dims, "output_shape")
        self.grid, doublings = coarse_grid(sides, num_latents, per_place)
        self.embedding = None if num_codes is None else nn.Embedding(num_codes, embed_dim)
        convolution, transpose = _CONVOLUTIONS[spatial_dims], _TRANSPOSES[spatial_dims]
        widths = [width, *widths_between(width, doublings, channels)[:0:-1]]
        self.layers = nn.Sequential(
            *_blocks(convolution, per_place * embed_dim, width, num_blocks, num_groups),
            *_resized(transpose, widths, num_groups),
        )
        taps = (4, 2, 1) if doublings else (1,)
        self.head = (transpose if doublings else convolution)(widths[-1], channels, *taps)
        _start(self.layers)
        _start(self.head, _OUTPUT_SCALE)
        center = None if start is None else flat_start(start, self.output_shape)
        self.register_buffer("start", None if center is None else center.reshape(self.output_shape))

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.embedding is not None:
            table = self.embedding.weight
            is_relaxed = len(batch) == z.dim() - 2
            z = z.to(table.dtype) @ table if is_relaxed else self.embedding(z.long())
        x = z.reshape(-1, *self.grid, self.per_place * self.embed_dim).movedim(-1, 1)
        x = x.to(self.head.get_parameter("weight").dtype)
        with computing_in(self.dtype, x.device):
            x = self.head(run_stages(_stages(self.layers), x, recompute=self.recompute))
        outputs = (
            x.to(self.head.get_parameter("weight").dtype)
            .movedim(1, -1)
            .reshape(*batch, *self.output_shape)
        )
        return outputs if self.start is None else outputs + self.start

    def batch_shape(self, z: Shaped[Tensor, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

        Raises:
            ValueError: If `z` does not hold L latents, or holds vectors of another's table.
        """
        per_latent = self.embed_dim if self.num_codes is None else 1
        return latents_batch(z, self.num_latents * per_latent, self.num_codes, _WITH_CODEBOOK)


def _resized(
    convolution: type[nn.Module], widths: Sequence[int], num_groups: int | None
) -> Iterator[nn.Module]:
    """Layers that halve each side of a picture, or double it, from width to width."""
    for before, after in itertools.pairwise(widths):
        yield convolution(before, after, 4, 2, 1)
        yield from (*_norm(after, num_groups), nn.ReLU())


def _blocks(
    convolution: type[nn.Module], before: int, width: int, num_blocks: int, num_groups: int | None
) -> Iterator[nn.Module]:
    """Layers that keep the sides, residual blocks among them."""
    yield convolution(before, width, 3, 1, 1)
    yield from (_Residual(convolution, width, num_groups) for _ in range(num_blocks))
    yield nn.ReLU()


class _Residual(nn.Module):
    """``x + norm(conv1(relu(norm(conv3(relu(x))))))``."""

    def __init__(self, convolution: type[nn.Module], width: int, num_groups: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.ReLU(), convolution(width, width, 3, 1, 1), *_norm(width, num_groups)),
            *(nn.ReLU(), convolution(width, width, 1), *_norm(width, num_groups)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _stages(layers: nn.Sequential) -> list[nn.Sequential]:
    """Layers from one convolution or residual block to the next."""
    begins = [0] + [i for i, layer in enumerate(layers) if i and not _follows(layer)]
    ends = [*begins[1:], len(layers)]
    return [layers[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _follows(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GroupNorm | nn.ReLU)


def _norm(width: int, num_groups: int | None) -> list[nn.Module]:
    return [] if num_groups is None else [nn.GroupNorm(math.gcd(width, num_groups), width)]


def _start(net: nn.Module, scale: float = 1.0) -> None:
    """Weights normal with variance ``scale² / fan-in``, biases zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
            fan_in = layer.in_channels * (
                taps if layer.transposed else math.prod(layer.kernel_size)
            )
            nn.init.normal_(layer.weight, std=scale / math.sqrt(fan_in))
            nn.init.zeros_(layer.get_parameter("bias"))
