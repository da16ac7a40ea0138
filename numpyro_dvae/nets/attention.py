"""Blocks of a transformer: pre-norm, without biases in attention, with a ReLU feed-forward layer.

Tokens are ``(K, B, L, D)``: K particles of each of B data, L tokens of width D. In self-attention
each of the ``N = K * B`` sequences is apart. In cross-attention all particles of a datum look at
its context ``(B, P, D)``: they are folded into the query axis, so that the context's keys and
values are computed and held once per datum.

A sampler goes token by token; a `Cache`, allocated once for all L of them, holds what earlier
tokens left behind.
"""

import math
from dataclasses import KW_ONLY
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from numpyro_dvae.distributions import precise, precise_dtype
from numpyro_dvae.nets.layers import LayerNorm, xavier_dense

__all__ = ["Block", "Cache", "KeysValues"]


class KeysValues(NamedTuple):
    """The keys and values of one layer, each ``(sequences, heads, length, D / heads)``."""

    keys: Array
    values: Array


class Cache(NamedTuple):
    """What one layer remembers while a sampler goes token by token."""

    past: KeysValues  # of the tokens so far
    context: KeysValues | None  # of the context, if there is one


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and feed-forward: each ``x + f(norm(x))``.

    Args:
        embed_dim: Width of a token, D.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layer, in units of D.
        causal: Whether a token sees only itself and those before it.
        cross_attention: Whether there is a context to look at.
        dtype: What dense layers and attention compute in; None for the dtype of the weights.

    Raises:
        ValueError: If `num_heads` does not divide D.
    """

    embed_dim: int
    _: KW_ONLY
    num_heads: int
    mlp_ratio: int
    causal: bool = False
    cross_attention: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `embed_dim`; got {self.num_heads} heads for "
                f"{self.embed_dim}."
            )
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        width, dense = self.embed_dim, partial(xavier_dense, dtype=self.dtype)
        self.self_norm = LayerNorm()
        self.self_qkv = dense(3 * width, use_bias=False)
        self.self_out = dense(width, use_bias=False)
        if self.cross_attention:
            self.cross_norm = LayerNorm()
            self.cross_q = dense(width, use_bias=False)
            self.cross_kv = dense(2 * width, use_bias=False)
            self.cross_out = dense(width, use_bias=False)
        self.mlp_norm = LayerNorm()
        self.mlp_in = dense(self.mlp_ratio * width)
        self.mlp_out = dense(width)

    def __call__(
        self, x: Float[Array, "K B L D"], context: Float[Array, "B P D"] | None = None
    ) -> Float[Array, "K B L D"]:
        """All tokens at once."""
        queries, *context_of_itself = self._project(x.reshape(-1, *x.shape[2:]))
        length = x.shape[2]
        visible = jnp.tril(jnp.ones((length, length), bool)) if self.causal else None
        attended = _attend(queries, KeysValues(*context_of_itself), visible)
        x = x + self.self_out(self._merge(attended)).reshape(x.shape)
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
                for old, entry in zip(cache.past, new, strict=True)
            )
        )
        visible = jnp.arange(past.keys.shape[2]) <= position
        attended = _attend(queries, past, visible)
        x = x + self.self_out(self._merge(attended)).reshape(x.shape)
        if cache.context is not None:
            x = x + self._cross(x, cache.context)
        return x + self._mlp(x), cache._replace(past=past)

    def context_keys_values(self, context: Float[Array, "B P D"]) -> KeysValues:
        """The keys and values of a context ``(B, P, D)``, once per datum."""
        keys, values = jnp.split(self.cross_kv(context), 2, axis=-1)
        return KeysValues(self._split(keys), self._split(values))

    def empty_cache(self, num_sequences: int, length: int, context: Array | None) -> Cache:
        """Room for `length` tokens of each sequence, and the context's keys and values."""
        weights = self.self_qkv.variables["params"]["kernel"]
        dtype = self.dtype or precise_dtype(weights.dtype)  # that of the norms before these
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
        particles, batch, length, width = x.shape
        queries = self.cross_q(self.cross_norm(x.reshape(-1, width)))
        queries = queries.reshape(x.shape).swapaxes(0, 1).reshape(batch, particles * length, width)
        attended = self._merge(_attend(self._split(queries), context))
        found = self.cross_out(attended).reshape(batch, particles, length, width)
        return found.swapaxes(0, 1)

    def _mlp(self, x: Array) -> Array:
        """On flat tokens, whose gradient costs half of that of the same product in four dims."""
        tokens = x.reshape(-1, self.embed_dim)
        return self.mlp_out(nn.relu(self.mlp_in(self.mlp_norm(tokens)))).reshape(x.shape)

    def _split(self, x: Float[Array, "N L D"]) -> Float[Array, "N heads L width"]:
        return x.reshape(*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads).swapaxes(1, 2)

    def _merge(self, x: Float[Array, "N heads L width"]) -> Float[Array, "tokens D"]:
        return x.swapaxes(1, 2).reshape(-1, self.embed_dim)


def _attend(
    queries: Float[Array, "N heads L width"],
    context: KeysValues,
    visible: Array | None = None,
) -> Float[Array, "N heads L width"]:
    """Scaled dot-product attention."""
    scale = 1.0 / math.sqrt(queries.shape[-1])
    scores = queries * scale @ context.keys.swapaxes(-1, -2)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    return _softmax(precise(scores)).astype(context.values.dtype) @ context.values


@jax.custom_vjp
def _softmax(scores: Array) -> Array:
    """Along the last axis; for its gradient, it keeps what it returns and no more."""
    return jax.nn.softmax(scores)


def _softmax_forward(scores: Array) -> tuple[Array, Array]:
    weights = jax.nn.softmax(scores)
    return weights, weights


def _softmax_backward(weights: Array, slope: Array) -> tuple[Array]:
    mean = (weights * slope).sum(-1, keepdims=True)
    return (weights * (slope - mean),)


_softmax.defvjp(_softmax_forward, _softmax_backward)
