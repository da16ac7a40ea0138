"""Pre-norm transformer blocks without biases in attention, ReLU feed-forward.

Sequences are ``(N, L, D)``. Cross-attention takes K particles per datum, ``(K, B, L, D)``,
and folds them into the query axis, so keys and values are computed and kept once per datum.
A `Cache` holds what earlier codes left behind, allocated once for all L of them.
"""

import math
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from numpyro_dvae.nets.mlp import dense

__all__ = ["Block", "Cache", "KeysValues"]


class KeysValues(NamedTuple):
    """Keys and values of one layer, each ``(N, heads, length, D / heads)``."""

    keys: Array
    values: Array


class Cache(NamedTuple):
    """One layer's state in sampling: its own past and the context's keys and values."""

    past: KeysValues
    context: KeysValues | None


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward: each ``x + f(norm(x))``.

    Args:
        embed_dim: Width D of a token.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layer over D.
        causal: Whether a token sees only itself and those before it.
        cross_attention: Whether there is a context to look at.
    """

    embed_dim: int
    _: KW_ONLY
    num_heads: int
    mlp_ratio: int
    causal: bool = False
    cross_attention: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `embed_dim`; got {self.num_heads} heads for "
                f"{self.embed_dim}."
            )
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        width = self.embed_dim
        self.self_norm = layer_norm()
        self.self_qkv = xavier_dense(3 * width, use_bias=False)
        self.self_out = xavier_dense(width, use_bias=False)
        if self.cross_attention:
            self.cross_norm = layer_norm()
            self.cross_q = xavier_dense(width, use_bias=False)
            self.cross_kv = xavier_dense(2 * width, use_bias=False)
            self.cross_out = xavier_dense(width, use_bias=False)
        self.mlp_norm = layer_norm()
        self.mlp_in = xavier_dense(self.mlp_ratio * width)
        self.mlp_out = xavier_dense(width)

    def __call__(
        self, x: Float[Array, "K B L D"], context: Float[Array, "B P D"] | None = None
    ) -> Float[Array, "K B L D"]:
        """All tokens at once."""
        queries, keys, values = self._project(x.reshape(-1, *x.shape[2:]))
        length = x.shape[2]
        seen = jnp.tril(jnp.ones((length, length), bool)) if self.causal else None
        attended = _attend(queries[None], _heads_first(keys, values), seen)
        x = x + self.self_out(attended.reshape(-1, self.embed_dim)).reshape(x.shape)
        if context is not None:
            x = x + self._cross(x, self.context_keys_values(context))
        return x + self._mlp(x)

    def step(
        self, x: Float[Array, "K B 1 D"], cache: Cache, position: Any
    ) -> tuple[Float[Array, "K B 1 D"], Cache]:
        """One token per sequence; returns the cache with its key and value written to it."""
        queries, *new = self._project(x.reshape(-1, *x.shape[2:]))
        past = KeysValues(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, entry, position, axis=2)
                for old, entry in zip(cache.past, _heads_first(*new), strict=True)
            )
        )
        seen = jnp.arange(past.keys.shape[2]) <= position
        x = x + self.self_out(_attend(queries[None], past, seen).reshape(x.shape))
        if cache.context is not None:
            x = x + self._cross(x, cache.context)
        return x + self._mlp(x), cache._replace(past=past)

    def context_keys_values(self, context: Float[Array, "B P D"]) -> KeysValues:
        """Keys and values of the context, once per datum."""
        keys, values = jnp.split(self.cross_kv(context), 2, axis=-1)
        return _heads_first(self._split(keys), self._split(values))

    def empty_cache(self, num_sequences: int, length: int, context: Array | None) -> Cache:
        """Room for `length` tokens of each sequence, and the context's keys and values."""
        dtype = self.self_qkv.variables["params"]["kernel"].dtype
        shape = (num_sequences, self.num_heads, length, self.embed_dim // self.num_heads)
        past = KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        return Cache(past, None if context is None else self.context_keys_values(context))

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        projected = self.self_qkv(self.self_norm(x.reshape(-1, self.embed_dim)))
        projected = projected.reshape(*x.shape[:-1], 3 * self.embed_dim)
        queries, keys, values = jnp.split(projected, 3, axis=-1)
        return self._split(queries), self._split(keys), self._split(values)

    def _cross(self, x: Array, context: KeysValues) -> Array:
        """Attend to the context; the particles of a datum are more queries of its own."""
        queries = self.cross_q(self.cross_norm(x.reshape(-1, self.embed_dim)))
        attended = _attend(self._split(queries.reshape(x.shape)), context)
        return self.cross_out(attended.reshape(-1, self.embed_dim)).reshape(x.shape)

    def _mlp(self, x: Array) -> Array:
        """On flat tokens, whose gradient costs half of that of the same product in four dims."""
        tokens = x.reshape(-1, self.embed_dim)
        return self.mlp_out(nn.relu(self.mlp_in(self.mlp_norm(tokens)))).reshape(x.shape)

    def _split(self, x: Array) -> Array:
        """(..., D) -> (..., heads, D / heads)."""
        return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)


def _heads_first(keys: Array, values: Array) -> KeysValues:
    """From (N, length, heads, D / heads), as they are projected."""
    return KeysValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))


def _attend(
    queries: Float[Array, "K N L heads width"],
    context: KeysValues,
    seen: Array | None = None,
) -> Float[Array, "K N L heads width"]:
    """Scaled dot-product attention; K particles of a sequence share its keys and values."""
    scale = 1.0 / math.sqrt(queries.shape[-1])
    scores = jnp.einsum("knlhd,nhpd->nhklp", queries * scale, context.keys)
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
    return jnp.einsum("nhklp,nhpd->knlhd", jax.nn.softmax(scores), context.values)


def xavier_dense(features: int, *, use_bias: bool = True) -> nn.Dense:
    """A layer with Xavier-uniform weights and zero biases, as is usual for transformers."""
    return dense(features, use_bias=use_bias, kernel_init=nn.initializers.xavier_uniform())


def layer_norm() -> nn.LayerNorm:
    """Layer normalisation as torch defines it."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


def sinusoids(length: int, width: int, dtype: Any) -> Array:
    """Fixed position codes ``(length, width)``: sines, then cosines, of periods 2π to 2π·10⁴."""
    num_sines = (width + 1) // 2
    frequencies = 10_000.0 ** -np.linspace(0, 1, num_sines)
    angles = np.arange(length)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
    return jnp.asarray(table, dtype)
