"""A transformer encoder over image patches and a causal transformer over codes.

Together they are the encoder of Drolet et al. [1]: patches of an image, one dense layer, pre-norm
blocks, and a causal transformer over the codes with cross-attention to all patches.

Codes are ``(*sample, *batch, L)``; all samples of a datum share its context ``(*batch, P, D)``.
What comes before the first code has an embedding of its own (number V), and nothing is padded: were
code 0 to double as padding, the teacher-forced logits would differ from the sampler's.

References:
    [1] Drolet, Al-Hafez, Bhatt, Peters & Arenz. Discrete variational autoencoding via
        policy search. ICLR, 2026.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn
from torch.nn import functional

from pyro_dvae.distributions import precise_dtype, sample_codes, split_shared
from pyro_dvae.nets.attention import Block, Cache
from pyro_dvae.nets.inputs import batch_shape_of
from pyro_dvae.nets.layers import (
    check_dtype,
    computing_in,
    run_stages,
    sinusoids,
    start_at_xavier,
)
from pyro_dvae.ops.arguments import check_counts, checked

__all__ = ["CausalTransformer", "PatchEncoder"]


class PatchEncoder(nn.Module):
    """Cut images into a grid of patches and encode these, as context for a `CausalTransformer`.

    Images ``(*batch, *input_shape)`` give one vector per patch, ``(*batch, P, D)``.

    Args:
        input_shape: Shape of an image, (H, W) or (H, W, C).
        num_patches: Patches per image, P. The grid is the one of P cells whose patches pad the
            image least and, among these, are nearest to squares.
        embed_dim: Width of a patch's vector, D.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layers, in units of D.
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If `input_shape` is not that of an image, or `num_heads` does not divide D.
    """

    positions: Tensor

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        num_patches: int,
        *,
        embed_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        mlp_ratio: int = 4,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_patches=num_patches)
        check_counts(embed_dim=embed_dim, num_layers=num_layers)
        check_counts(num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_dtype(dtype)
        self.dtype, self.recompute = dtype, recompute
        if len(input_shape) not in (2, 3):
            raise ValueError(
                f"`input_shape` must be (H, W) or (H, W, C); got {tuple(input_shape)}. Use "
                "`MLPEncoder` for other data."
            )
        self.input_shape, self.num_patches = tuple(input_shape), num_patches
        self.grid, self.patch_shape = _patch_grid(self.input_shape, num_patches)
        num_inputs = math.prod(self.patch_shape) * math.prod(self.input_shape[2:])
        self.dense = nn.Linear(num_inputs, embed_dim)
        positions = sinusoids(num_patches, embed_dim, torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        start_at_xavier(self)

    def forward(self, x: Shaped[Tensor, "*batch_input"]) -> Float[Tensor, "*batch P D"]:
        """One vector per patch."""
        batch = batch_shape_of(x, self.input_shape)
        with computing_in(self.dtype, x.device):
            x = self.dense(self.patches(x.reshape(-1, *self.input_shape))) + self.positions
            x = self.norm(run_stages(self.blocks, x[None], recompute=self.recompute))
        return x.to(self.positions.dtype).reshape(*batch, *x.shape[2:])

    def patches(self, x: Shaped[Tensor, "N *input"]) -> Float[Tensor, "N P width"]:
        """Flat patches, row by row, zero-padded at the bottom and right if need be."""
        (rows, columns), (height, width) = self.grid, self.patch_shape
        x = x.reshape(*x.shape[:3], math.prod(x.shape[3:]))
        pad = (0, 0, 0, columns * width - x.shape[2], 0, rows * height - x.shape[1])
        x = functional.pad(x, pad).unflatten(2, (columns, width)).unflatten(1, (rows, height))
        return x.transpose(2, 3).flatten(start_dim=3).flatten(1, 2)


class CausalTransformer(nn.Module):
    """Logits of each code given those before it, and a sampler with a key-value cache.

    Codes ``(*sample, *batch, L)`` give teacher-forced logits ``(*sample, *batch, L, V)``.

    Args:
        num_latents: Codes per datum, L.
        num_codes: Values of a code, V.
        embed_dim: Width of an embedding, D; that of the context too.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layers, in units of D.
        cross_attention: Whether codes depend on a context; False makes a prior.
        dtype: What layers compute in: torch.bfloat16, torch.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If `num_heads` does not divide D.
    """

    positions: Tensor

    @checked
    def __init__(
        self,
        num_latents: int,
        num_codes: int,
        *,
        embed_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        mlp_ratio: int = 4,
        cross_attention: bool = True,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_latents=num_latents, num_codes=num_codes)
        check_counts(embed_dim=embed_dim, num_layers=num_layers)
        check_counts(num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_dtype(dtype)
        self.dtype, self.recompute = dtype, recompute
        self.num_latents, self.num_codes = num_latents, num_codes
        self.embed_dim, self.cross_attention = embed_dim, cross_attention
        self.embedding = nn.Embedding(num_codes + 1, embed_dim)  # the last row begins a sequence
        positions = sinusoids(num_latents, embed_dim, torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                causal=True,
                cross_attention=cross_attention,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_codes)
        start_at_xavier(self)

    def forward(
        self,
        codes: Integer[Tensor, "*sample_batch L"],
        context: Float[Tensor, "*batch P D"] | None = None,
    ) -> Float[Tensor, "*joint L V"]:
        """Teacher-forced logits: those at l depend on the codes before l only."""
        self._check(codes, context)
        shape = codes.shape[:-1]
        batch = torch.Size() if context is None else context.shape[:-2]
        codes, context = _fold(codes, context)
        begin = torch.full_like(codes[..., :1], self.num_codes)
        with computing_in(self.dtype, codes.device):
            x = self.embedding(torch.cat([begin, codes[..., :-1]], dim=-1)) + self.positions
            x = run_stages(self.blocks, x, context, recompute=self.recompute)
            logits = self.head(self.norm(x)).to(self.positions.dtype)
        shape = torch.broadcast_shapes(shape, batch)
        return logits.reshape(*shape, self.num_latents, self.num_codes)

    def sample(
        self,
        context: Float[Tensor, "*batch P D"] | None = None,
        sample_shape: Sequence[int] = (),
    ) -> Integer[Tensor, "*joint L"]:
        """Draw codes, `sample_shape` of them for each context; one uniform per code."""
        batch = () if context is None else context.shape[:-2]
        weight = self.head.weight
        shape = (*sample_shape, *batch, self.num_latents)
        uniforms = torch.rand(shape, dtype=precise_dtype(weight.dtype), device=weight.device)
        return self.invert_cdf(uniforms, context)

    @torch.no_grad()
    def invert_cdf(
        self,
        uniforms: Float[Tensor, "*sample_batch L"],
        context: Float[Tensor, "*batch P D"] | None = None,
    ) -> Integer[Tensor, "*joint L"]:
        """Turn one uniform in [0, 1) per code into codes, by inverting each conditional CDF."""
        self._check(uniforms, context)
        batch = torch.Size() if context is None else context.shape[:-2]
        shape = (*torch.broadcast_shapes(uniforms.shape[:-1], batch), self.num_latents)
        uniforms, context = _fold(uniforms, context)
        codes = torch.empty(uniforms.shape, dtype=torch.long, device=uniforms.device)
        previous = torch.full_like(codes[..., 0], self.num_codes)
        with computing_in(self.dtype, codes.device):
            caches = self._empty_caches(uniforms.shape[0] * uniforms.shape[1], context)
            for position in range(self.num_latents):
                logits = self._next_logits(previous, caches, position)
                previous = sample_codes(logits, uniforms[None, ..., position])[0]
                codes[..., position] = previous
        return codes.reshape(shape)

    def _empty_caches(self, num_sequences: int, context: Tensor | None) -> list[Cache]:
        blocks = cast("list[Block]", list(self.blocks))
        return [b.empty_cache(num_sequences, self.num_latents, context) for b in blocks]

    def _next_logits(
        self, previous: Integer[Tensor, "K B"], caches: list[Cache], position: int
    ) -> Float[Tensor, "K B V"]:
        """Logits of the code at `position`, given the one before it and the caches."""
        x = self.embedding(previous[..., None]) + self.positions[position]
        blocks = cast("list[Block]", list(self.blocks))
        for block, cache in zip(blocks, caches, strict=True):
            x = block.step(x, cache, position)
        return self.head(self.norm(x))[..., 0, :]

    def _check(self, codes: Tensor, context: Tensor | None) -> None:
        if codes.shape[-1:] != (self.num_latents,):
            raise ValueError(
                f"`codes` must end in {self.num_latents} latents; got shape {tuple(codes.shape)}."
            )
        if (context is not None) != self.cross_attention:
            raise ValueError(
                f"`context` must be {'given' if self.cross_attention else 'None'} for a "
                f"transformer built with cross_attention={self.cross_attention}."
            )
        if context is not None and context.shape[-1] != self.embed_dim:
            raise ValueError(
                f"`context` must have shape (*batch, patches, {self.embed_dim}); got "
                f"{tuple(context.shape)}. Give both networks the same `embed_dim`."
            )


def _fold(codes: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Reshape to codes (K, B, L) and context (B, P, D): all K share their datum's context."""
    if context is None:
        return codes.reshape(-1, 1, codes.shape[-1]), None
    shape = torch.broadcast_shapes(codes.shape[:-1], context.shape[:-2])
    context = split_shared(context, shape, 2)[0].reshape(-1, *context.shape[-2:])
    codes = codes.expand(*shape, codes.shape[-1])
    particles = math.prod(shape) // max(context.shape[0], 1)
    return codes.reshape(particles, context.shape[0], codes.shape[-1]), context


def _patch_grid(
    input_shape: Sequence[int], num_patches: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the grid, and the height and width of one patch."""
    height, width = input_shape[:2]

    def cost(rows: int) -> tuple[int, int]:
        patch = -(-height // rows), -(-width * rows // num_patches)  # rounded up
        return num_patches * patch[0] * patch[1] - height * width, abs(patch[0] - patch[1])

    rows = min((r for r in range(1, num_patches + 1) if num_patches % r == 0), key=cost)
    columns = num_patches // rows
    return (rows, columns), (-(-height // rows), -(-width // columns))
