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
from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from numpyro_dvae.nets.attention import Block
from numpyro_dvae.nets.halving import resampling, split_shape
from numpyro_dvae.nets.inputs import batch_shape_of, codes_or_beyond, flat_start
from numpyro_dvae.nets.latents import latents_batch
from numpyro_dvae.nets.layers import (
    LayerNorm,
    check_dtype,
    dense,
    sinusoids,
    widened,
    xavier_dense,
)
from numpyro_dvae.nets.mlp import Constant
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["SequenceDecoder", "SequenceEncoder"]

_WITH_CODEBOOK = "SequenceDecoder(num_latents, None, ..., embed_dim=embed_dim)"
_OUTPUT_SCALE = 0.1  # of a decoder's first outputs, as in `MLPDecoder`


@checked
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
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If a shape or a size does not fit.
    """

    input_shape: Sequence[int]
    num_latents: int
    num_codes: int | None = None
    _: KW_ONLY
    embed_dim: int = 64
    num_layers: int = 1
    num_heads: int = 4
    mlp_ratio: int = 4
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        check_counts(embed_dim=self.embed_dim, num_layers=self.num_layers)
        check_counts(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        check_dtype(self.dtype)
        (length,), _ = split_shape(self.input_shape, 1, "input_shape")
        resampling(length, self.num_latents)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        self.resample = _Resampling(self.embed_dim, self.num_latents, self.dtype)
        sizes = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dtype": self.dtype}
        block = nn.remat(Block) if self.recompute else Block
        self.blocks = [block(self.embed_dim, **sizes) for _ in range(self.num_layers)]
        self.norm = LayerNorm()
        if self.num_codes is not None:
            self.head = xavier_dense(self.num_codes, dtype=self.dtype)

    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch L width"]:
        """Vectors or logits of every latent of every datum."""
        batch = batch_shape_of(x, self.input_shape)
        (length,), channels = split_shape(self.input_shape, 1, "input_shape")
        x = widened(self.resample(x.reshape(-1, length, channels)), self.dtype)
        x = (x + sinusoids(self.num_latents, self.embed_dim, x.dtype))[None]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[0])
        x = x if self.num_codes is None else widened(self.head(x), self.dtype)
        return x.reshape(*batch, *x.shape[1:])


@checked
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
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If a shape or a size does not fit.
    """

    num_latents: int
    num_codes: int | None
    output_shape: Sequence[int]
    _: KW_ONLY
    embed_dim: int = 64
    width: int = 64
    num_layers: int = 1
    num_heads: int = 4
    mlp_ratio: int = 4
    start: Float[Array | np.ndarray, "..."] | Constant | None = None
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_shape", tuple(self.output_shape))
        if self.start is not None and not isinstance(self.start, Constant):
            object.__setattr__(self, "start", Constant(flat_start(self.start, self.output_shape)))
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        check_counts(embed_dim=self.embed_dim, width=self.width, num_layers=self.num_layers)
        check_counts(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        check_dtype(self.dtype)
        (length,), _ = split_shape(self.output_shape, 1, "output_shape")
        resampling(self.num_latents, length)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        (length,), channels = split_shape(self.output_shape, 1, "output_shape")
        if self.num_codes is not None:
            start = nn.initializers.normal(1.0)
            self.embedding = nn.Embed(self.num_codes, self.embed_dim, embedding_init=start)
        if self.embed_dim != self.width:
            self.dense = xavier_dense(self.width, dtype=self.dtype)
        sizes = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dtype": self.dtype}
        block = nn.remat(Block) if self.recompute else Block
        self.blocks = [block(self.width, **sizes) for _ in range(self.num_layers)]
        self.norm = LayerNorm()
        self.resample = _Resampling(self.width, length, self.dtype)
        start = nn.initializers.variance_scaling(_OUTPUT_SCALE**2, "fan_avg", "uniform")
        self.head = dense(channels, kernel_init=start, dtype=self.dtype)

    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch_output"]:
        """Logits or means, as the likelihood reads them."""
        batch = self.batch_shape(z)
        if self.num_codes is not None:
            is_relaxed = len(batch) == z.ndim - 2
            z = (
                z @ self.embedding.embedding
                if is_relaxed
                else self.embedding(codes_or_beyond(z, self.num_codes))
            )
        x = z.reshape(-1, self.num_latents, self.embed_dim)
        x = x if self.embed_dim == self.width else widened(self.dense(x), self.dtype)
        x = (x + sinusoids(self.num_latents, self.width, x.dtype))[None]
        for block in self.blocks:
            x = block(x)
        outputs = widened(self.head(self.resample(self.norm(x[0]))), self.dtype)
        outputs = outputs.reshape(*batch, *self.output_shape)
        if not isinstance(self.start, Constant):
            return outputs
        return outputs + self.start.value.reshape(self.output_shape).astype(outputs.dtype)

    @nn.nowrap
    def batch_shape(self, z: Shaped[Array, "*batch_latents"]) -> Sequence[int]:
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

    width: int
    num_latents: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        is_up, stride = resampling(x.shape[1], self.num_latents)
        before, window = stride // 2, 2 * stride if stride > 1 else 1
        features = window * self.width if is_up else self.width
        layer = xavier_dense(features, use_bias=False, dtype=self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        if stride == 1:
            x = layer(x)
        elif is_up:  # each token has a window; halves of two windows lie on each other
            size = stride * x.shape[1]
            windows = layer(x).reshape(len(x), -1, 2, stride, self.width)
            over = jnp.pad(windows[:, :, 0], ((0, 0), (0, 1), (0, 0), (0, 0)))
            over = over + jnp.pad(windows[:, :, 1], ((0, 0), (1, 0), (0, 0), (0, 0)))
            x = over.reshape(len(x), -1, self.width)[:, before : before + size]
        else:
            x = jnp.pad(x, ((0, 0), (before, stride - before), (0, 0)))
            halves = x.reshape(len(x), -1, stride * x.shape[-1])
            x = layer(jnp.concatenate([halves[:, :-1], halves[:, 1:]], -1))
        return x + bias.astype(x.dtype)
