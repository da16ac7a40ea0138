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
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Integer, Shaped

from numpyro_dvae.distributions import precise_dtype, sample_codes, split_shared
from numpyro_dvae.nets.attention import Block, Cache
from numpyro_dvae.nets.inputs import batch_shape_of
from numpyro_dvae.nets.layers import LayerNorm, check_dtype, sinusoids, widened, xavier_dense
from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["CausalTransformer", "PatchEncoder"]


@checked
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
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If `input_shape` is not that of an image, or `num_heads` does not divide D.
    """

    input_shape: Sequence[int]
    num_patches: int
    _: KW_ONLY
    embed_dim: int = 64
    num_layers: int = 1
    num_heads: int = 4
    mlp_ratio: int = 4
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if len(self.input_shape) not in (2, 3):
            raise ValueError(
                f"`input_shape` must be (H, W) or (H, W, C); got {self.input_shape}. Use "
                "`MLPEncoder` for other data."
            )
        check_counts(num_patches=self.num_patches)
        check_counts(embed_dim=self.embed_dim, num_layers=self.num_layers)
        check_counts(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        check_dtype(self.dtype)
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return _patch_grid(self.input_shape, self.num_patches)[0]

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of one patch."""
        return _patch_grid(self.input_shape, self.num_patches)[1]

    def setup(self) -> None:
        """Make the layers."""
        self.dense = xavier_dense(self.embed_dim, dtype=self.dtype)
        sizes = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dtype": self.dtype}
        block = nn.remat(Block) if self.recompute else Block
        self.blocks = [block(self.embed_dim, **sizes) for _ in range(self.num_layers)]
        self.norm = LayerNorm()

    def __call__(self, x: Shaped[Array, "*batch_input"]) -> Float[Array, "*batch P D"]:
        """One vector per patch."""
        batch = batch_shape_of(x, self.input_shape)
        x = widened(self.dense(self.patches(x.reshape(-1, *self.input_shape))), self.dtype)
        x = (x + sinusoids(self.num_patches, self.embed_dim, x.dtype))[None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x).reshape(*batch, *x.shape[2:])

    def patches(self, x: Shaped[Array, "N *input"]) -> Float[Array, "N P width"]:
        """Flat patches, row by row, zero-padded at the bottom and right if need be."""
        (rows, columns), (height, width) = self.grid, self.patch_shape
        channels = math.prod(x.shape[3:])
        x = x.reshape(*x.shape[:3], channels)
        pad = [(0, 0), (0, rows * height - x.shape[1]), (0, columns * width - x.shape[2]), (0, 0)]
        x = jnp.pad(x, pad).reshape(len(x), rows, height, columns, width, channels)
        return x.swapaxes(2, 3).reshape(len(x), rows * columns, height * width * channels)


@checked
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
        dtype: What layers compute in: jnp.bfloat16, jnp.float16, or None for the weights' own.
            Weights, what blocks add to, and outputs keep that dtype.
        recompute: Whether activations are computed again for the gradient instead of kept
            (activation checkpointing): less memory, for a third more time.

    Raises:
        ValueError: If `num_heads` does not divide D.
    """

    num_latents: int
    num_codes: int
    _: KW_ONLY
    embed_dim: int = 64
    num_layers: int = 1
    num_heads: int = 4
    mlp_ratio: int = 4
    cross_attention: bool = True
    dtype: Any = None
    recompute: bool = False

    def __post_init__(self) -> None:
        check_counts(num_latents=self.num_latents, num_codes=self.num_codes)
        check_counts(embed_dim=self.embed_dim, num_layers=self.num_layers)
        check_counts(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio)
        check_dtype(self.dtype)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        start = nn.initializers.normal(1.0)
        # The last row begins a sequence.
        self.embedding = nn.Embed(self.num_codes + 1, self.embed_dim, embedding_init=start)
        sizes = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dtype": self.dtype}
        sizes |= {"causal": True, "cross_attention": self.cross_attention}
        block = nn.remat(Block) if self.recompute else Block
        self.blocks = [block(self.embed_dim, **sizes) for _ in range(self.num_layers)]
        self.norm = LayerNorm()
        self.head = xavier_dense(self.num_codes, dtype=self.dtype)

    def __call__(
        self,
        codes: Integer[Array, "*sample_batch L"],
        context: Float[Array, "*batch P D"] | None = None,
    ) -> Float[Array, "*joint L V"]:
        """Teacher-forced logits: those at l depend on the codes before l only."""
        self._check(codes, context)
        shape = codes.shape[:-1]
        batch = () if context is None else context.shape[:-2]
        codes, context = _fold(codes, context)
        begin = jnp.full_like(codes[..., :1], self.num_codes)
        x = self.embedding(jnp.concatenate([begin, codes[..., :-1]], axis=-1))
        x = x + sinusoids(self.num_latents, self.embed_dim, x.dtype)
        for block in self.blocks:
            x = block(x, context)
        shape = jnp.broadcast_shapes(shape, batch)
        logits = self.head(self.norm(x.reshape(-1, self.embed_dim)))
        return widened(logits, self.dtype).reshape(*shape, self.num_latents, self.num_codes)

    def sample(
        self,
        rng_key: Array,
        context: Float[Array, "*batch P D"] | None = None,
        sample_shape: Sequence[int] = (),
    ) -> Integer[Array, "*joint L"]:
        """Draw codes, `sample_shape` of them for each context; one uniform per code."""
        batch = () if context is None else context.shape[:-2]
        shape = (*sample_shape, *batch, self.num_latents)
        dtype = self.variables["params"]["head"]["kernel"].dtype
        uniforms = jax.random.uniform(rng_key, shape, precise_dtype(dtype))
        return self.invert_cdf(uniforms, context)

    def invert_cdf(
        self,
        uniforms: Float[Array, "*sample_batch L"],
        context: Float[Array, "*batch P D"] | None = None,
    ) -> Integer[Array, "*joint L"]:
        """Turn one uniform in [0, 1) per code into codes, by inverting each conditional CDF."""
        self._check(uniforms, context)
        batch = () if context is None else context.shape[:-2]
        shape = (*jnp.broadcast_shapes(uniforms.shape[:-1], batch), self.num_latents)
        uniforms, context = _fold(uniforms, context)
        # No gradient, or JAX would carry tangents through the loop. The loop is of the unbound
        # module: flax forbids JAX's transformations around the bound one.
        module, variables = self.unbind()
        variables, context = jax.lax.stop_gradient((variables, context))
        num_sequences = uniforms.shape[0] * uniforms.shape[1]
        caches = module.apply(variables, num_sequences, context, method="_empty_caches")

        def step(position: Any, state: tuple) -> tuple:
            codes, previous, caches = state
            logits, caches = module.apply(
                variables, previous, caches, position, method="_next_logits"
            )
            drawn = sample_codes(logits, uniforms[None, ..., position])[0]
            codes = jax.lax.dynamic_update_index_in_dim(codes, drawn, position, axis=-1)
            return codes, drawn, caches

        codes = jnp.zeros(uniforms.shape, int)
        begin = jnp.full(uniforms.shape[:-1], self.num_codes)
        codes, _, _ = jax.lax.fori_loop(0, self.num_latents, step, (codes, begin, caches))
        return codes.reshape(shape)

    def _empty_caches(self, num_sequences: int, context: Array | None) -> list[Cache]:
        return [b.empty_cache(num_sequences, self.num_latents, context) for b in self.blocks]

    def _next_logits(
        self, previous: Integer[Array, "K B"], caches: list[Cache], position: Any
    ) -> tuple[Float[Array, "K B V"], list[Cache]]:
        """Logits of the code at `position`, given the one before it and the caches."""
        x = self.embedding(previous[..., None])
        x = x + sinusoids(self.num_latents, self.embed_dim, x.dtype)[position]
        new = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.step(x, cache, position)
            new.append(cache)
        return self.head(self.norm(x))[..., 0, :], new

    def _check(self, codes: Array, context: Array | None) -> None:
        if codes.shape[-1:] != (self.num_latents,):
            raise ValueError(
                f"`codes` must end in {self.num_latents} latents; got shape {codes.shape}."
            )
        if (context is not None) != self.cross_attention:
            raise ValueError(
                f"`context` must be {'given' if self.cross_attention else 'None'} for a "
                f"transformer built with cross_attention={self.cross_attention}."
            )
        if context is not None and context.shape[-1] != self.embed_dim:
            raise ValueError(
                f"`context` must have shape (*batch, patches, {self.embed_dim}); got "
                f"{context.shape}. Give both networks the same `embed_dim`."
            )


def _fold(codes: Array, context: Array | None) -> tuple[Array, Array | None]:
    """Reshape to codes (K, B, L) and context (B, P, D): all K share their datum's context."""
    if context is None:
        return codes.reshape(-1, 1, codes.shape[-1]), None
    shape = jnp.broadcast_shapes(codes.shape[:-1], context.shape[:-2])
    context = split_shared(context, shape, 2)[0]
    context = context.reshape(-1, *context.shape[-2:])
    codes = jnp.broadcast_to(codes, (*shape, codes.shape[-1]))
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
