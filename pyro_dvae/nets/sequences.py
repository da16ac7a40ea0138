"""Transformers between sequences and latents in a row, as for motion capture.

One convolution brings T frames to L places, or L places to T frames, one of which divides the
other; blocks of a transformer do the rest:

    frames -> resample -> blocks -> norm -> [dense] -> vectors or logits of L latents
    L codes -> embedding -> blocks -> norm -> resample -> dense -> outputs of T frames

References:
    Drolet et al. Discrete variational autoencoding via policy search. ICLR, 2026 (its networks
    for motion capture: 32 frames, 64 latents).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from pyro_dvae.nets.attention import Block
from pyro_dvae.nets.halving import resampling, split_shape
from pyro_dvae.nets.inputs import batch_shape_of, flat_start
from pyro_dvae.nets.latents import latents_batch
from pyro_dvae.nets.layers import (
    check_dtype,
    computing_in,
    run_stages,
    sinusoids,
    start_at_xavier,
)
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["SequenceDecoder", "SequenceEncoder"]

_WITH_CODEBOOK = "SequenceDecoder(num_latents, None, ..., embed_dim=embed_dim)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs, as in `MLPDecoder`


class SequenceEncoder(nn.Module):
    """A transformer from a sequence to vectors or logits of latents in a row.

    Data ``(*batch, *input_shape)`` give ``(*batch, L, D)``, or ``(*batch, L, V)`` with `num_codes`.

    Args:
        input_shape: Shape of one datum: ``(T, C)``, or ``(T,)`` of one channel.
        num_latents: Places that the frames are brought to, L; it divides T, or T divides it.
        num_codes: Numbers for each latent, V: logits of its values, or the width of the vector that
            a codebook quantises; None for vectors of width D, the context of a
            `CausalTransformer`.
        embed_dim: Width of a token, D.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layers, in units of D.
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If a shape or a size does not fit.
    """

    positions: Tensor

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        num_latents: int,
        num_codes: int | None = None,
        *,
        embed_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        mlp_ratio: int = 4,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        check_counts(embed_dim=embed_dim, num_layers=num_layers)
        check_counts(num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_dtype(dtype)
        self.dtype, self.recompute = dtype, recompute
        self.input_shape = tuple(input_shape)
        self.num_latents, self.num_codes = num_latents, num_codes
        (length,), self.channels = split_shape(self.input_shape, 1, "input_shape")
        self.resample = _Resampling(self.channels, embed_dim, length, num_latents)
        self.register_buffer("positions", _positions(num_latents, embed_dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = None if num_codes is None else nn.Linear(embed_dim, num_codes)
        start_at_xavier(self)

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch L width"]:
        """Vectors or logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        x = x.reshape(-1, self.input_shape[0], self.channels).to(self.norm.weight.dtype)
        with computing_in(self.dtype, x.device):
            x = (self.resample(x) + self.positions)[None]
            x = self.norm(run_stages(self.blocks, x, recompute=self.recompute)[0])
            x = x if self.head is None else self.head(x)
        return x.to(self.positions.dtype).reshape(*batch, *x.shape[1:])


class SequenceDecoder(nn.Module):
    """A transformer from latents in a row to what a likelihood reads of a sequence.

    Codes ``(*batch, L)``, relaxed codes ``(*batch, L, V)``, or with `num_codes` None real numbers
    ``(*batch, L * E)``, as `CodebookDecoder` hands them on, give outputs
    ``(*batch, *output_shape)``.

    Args:
        num_latents: Latents per datum, L, which divides T, or which T divides.
        num_codes: Values of a latent, V; None feeds vectors of width E to the network directly.
        output_shape: Shape of the outputs of one datum: ``(T, C)``, or ``(T,)``. A likelihood with
            two numbers for each entry (`models.GaussianHeads`) wants twice the channels.
        embed_dim: Width of a code's vector, E.
        width: Width of a token, D; where it is not E, a dense layer leads from one to the other.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layers, in units of D.
        start: Outputs of shape `output_shape` at which all codes start, as in `MLPDecoder`.
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If a shape or a size does not fit.
    """

    positions: Tensor

    @checked
    def __init__(
        self,
        num_latents: int,
        num_codes: int | None,
        output_shape: Sequence[int],
        *,
        embed_dim: int = 64,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        mlp_ratio: int = 4,
        start: Float[Tensor, "..."] | None = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes, embed_dim=embed_dim)
        check_counts(width=width, num_layers=num_layers)
        check_counts(num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_dtype(dtype)
        self.dtype, self.recompute = dtype, recompute
        self.num_latents, self.num_codes, self.embed_dim = num_latents, num_codes, embed_dim
        self.output_shape = tuple(output_shape)
        (length,), channels = split_shape(self.output_shape, 1, "output_shape")
        self.embedding = None if num_codes is None else nn.Embedding(num_codes, embed_dim)
        self.dense = None if embed_dim == width else nn.Linear(embed_dim, width)
        self.register_buffer("positions", _positions(num_latents, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, num_heads=num_heads, mlp_ratio=mlp_ratio) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.resample = _Resampling(width, width, num_latents, length)
        self.head = nn.Linear(width, channels)
        start_at_xavier(self)
        with torch.no_grad():
            self.head.weight.mul_(_OUTPUT_SCALE)
        center = None if start is None else flat_start(start, self.output_shape)
        self.register_buffer("start", None if center is None else center.reshape(self.output_shape))

    def forward(self, z: Shaped[Tensor, "*batch_latents"]) -> Float[Tensor, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.embedding is not None:
            table = self.embedding.weight
            is_relaxed = len(batch) == z.dim() - 2
            z = z.to(table.dtype) @ table if is_relaxed else self.embedding(z.long())
        x = z.reshape(-1, self.num_latents, self.embed_dim).to(self.head.weight.dtype)
        with computing_in(self.dtype, x.device):
            x = ((x if self.dense is None else self.dense(x)) + self.positions)[None]
            x = run_stages(self.blocks, x, recompute=self.recompute)[0]
            outputs = self.head(self.resample(self.norm(x))).to(self.positions.dtype)
        outputs = outputs.reshape(*batch, *self.output_shape)
        return outputs if self.start is None else outputs + self.start

    def batch_shape(self, z: Shaped[Tensor, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes ``(*batch, L)``, or of relaxed codes ``(*batch, L, V)``.

        Raises:
            ValueError: If `z` does not hold L latents, or holds vectors of another's table.
        """
        per_latent = self.embed_dim if self.num_codes is None else 1
        return latents_batch(z, self.num_latents * per_latent, self.num_codes, _WITH_CODEBOOK)


class _Resampling(nn.Module):
    """Tokens ``(N, T, C)`` to ``(N, L, D)``: a convolution, or its transpose.

    Its stride is s, its kernel 2 s, written as one matrix product; a dense layer where T = L.
    """

    def __init__(self, channels: int, width: int, length: int, num_latents: int) -> None:
        super().__init__()
        self.is_up, self.stride = resampling(length, num_latents)
        window = 2 * self.stride if self.stride > 1 else 1
        inputs, outputs = (channels, window * width) if self.is_up else (window * channels, width)
        self.dense = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        stride, before = self.stride, self.stride // 2
        if stride == 1:
            return self.dense(x) + self.bias
        if self.is_up:  # each token has a window; halves of two windows lie on each other
            first, second = self.dense(x).unflatten(-1, (2, stride, -1)).unbind(2)
            over = functional.pad(first, (0, 0, 0, 0, 0, 1))
            over = over + functional.pad(second, (0, 0, 0, 0, 1, 0))
            return over.flatten(1, 2)[:, before : before + stride * x.shape[1]] + self.bias
        x = functional.pad(x, (0, 0, before, stride - before))
        halves = x.reshape(len(x), -1, stride * x.shape[-1])
        return self.dense(torch.cat([halves[:, :-1], halves[:, 1:]], -1)) + self.bias


def _positions(length: int, width: int) -> Tensor:
    return sinusoids(length, width, torch.get_default_dtype())
