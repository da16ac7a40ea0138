"""Blocks of a transformer: pre-norm, without biases in attention, with a ReLU feed-forward layer.

Tokens are ``(K, B, L, D)``: K particles of each of B data, L tokens of width D. In self-attention
each of the ``N = K * B`` sequences is apart. In cross-attention all particles of a datum look at
its context ``(B, P, D)``: they are folded into the query axis, so that the context's keys and
values are computed and held once per datum.

A sampler goes token by token; a `Cache`, allocated once for all L of them, holds what earlier
tokens left behind.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Block", "Cache", "KeysValues"]


class KeysValues(NamedTuple):
    """The keys and values of one layer, each ``(sequences, heads, length, D / heads)``."""

    keys: Tensor
    values: Tensor


class Cache(NamedTuple):
    """What one layer remembers while a sampler goes token by token."""

    past: KeysValues  # of the tokens so far; filled in place
    context: KeysValues | None  # of the context, if there is one


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and feed-forward: each ``x + f(norm(x))``.

    Args:
        embed_dim: Width of a token, D.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Width of the feed-forward layer, in units of D.
        causal: Whether a token sees only itself and those before it.
        cross_attention: Whether there is a context to look at.

    Raises:
        ValueError: If `num_heads` does not divide D.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        mlp_ratio: int,
        causal: bool = False,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"`num_heads` must divide `embed_dim`; got {num_heads} heads for {embed_dim}."
            )
        self.num_heads, self.causal = num_heads, causal
        self.self_norm = nn.LayerNorm(embed_dim)
        self.self_qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.self_out = nn.Linear(embed_dim, embed_dim, bias=False)
        if cross_attention:
            self.cross_norm = nn.LayerNorm(embed_dim)
            self.cross_q = nn.Linear(embed_dim, embed_dim, bias=False)
            self.cross_kv = nn.Linear(embed_dim, 2 * embed_dim, bias=False)
            self.cross_out = nn.Linear(embed_dim, embed_dim, bias=False)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp_in = nn.Linear(embed_dim, mlp_ratio * embed_dim)
        self.mlp_out = nn.Linear(mlp_ratio * embed_dim, embed_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """All tokens at once: x ``(K, B, L, D)``, context ``(B, P, D)``."""
        projected = self._project(x.flatten(0, 1))
        attended = functional.scaled_dot_product_attention(*projected, is_causal=self.causal)
        x = x + self.self_out(_merge(attended)).view_as(x)
        if context is not None:
            x = x + self._cross(x, self.context_keys_values(context))
        return x + self._mlp(x)

    def step(self, x: Tensor, cache: Cache, position: int) -> Tensor:
        """One token per sequence, x ``(K, B, 1, D)``; writes its key and value to the cache."""
        queries, keys, values = self._project(x.flatten(0, 1))
        past_keys, past_values = cache.past
        past_keys[:, :, position], past_values[:, :, position] = keys[:, :, 0], values[:, :, 0]
        attended = functional.scaled_dot_product_attention(
            queries, past_keys[:, :, : position + 1], past_values[:, :, : position + 1]
        )
        x = x + self.self_out(_merge(attended)).view_as(x)
        if cache.context is not None:
            x = x + self._cross(x, cache.context)
        return x + self._mlp(x)

    def context_keys_values(self, context: Tensor) -> KeysValues:
        """The keys and values of a context ``(B, P, D)``, once per datum."""
        keys, values = self.cross_kv(context).chunk(2, dim=-1)
        return KeysValues(self._split(keys), self._split(values))

    def empty_cache(self, num_sequences: int, length: int, context: Tensor | None) -> Cache:
        """Room for `length` tokens of each sequence, and the context's keys and values."""
        weight = self.self_out.weight
        shape = (2, num_sequences, length, self.num_heads, weight.shape[0] // self.num_heads)
        kind = weight.device.type
        mixed = torch.is_autocast_enabled(kind)  # then keys and values come in its dtype
        dtype = torch.get_autocast_dtype(kind) if mixed else weight.dtype
        keys, values = weight.new_empty(shape, dtype=dtype).transpose(2, 3)
        past = KeysValues(keys, values)
        return Cache(past, None if context is None else self.context_keys_values(context))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.self_qkv(self.self_norm(x)).chunk(3, dim=-1)
        return self._split(queries), self._split(keys), self._split(values)

    def _cross(self, x: Tensor, context: KeysValues) -> Tensor:
        """Attend to the context; the particles of a datum are more queries of its own."""
        particles, batch, length, width = x.shape
        queries = self.cross_q(self.cross_norm(x)).transpose(0, 1)
        queries = self._split(queries.reshape(batch, particles * length, width))
        attended = _merge(functional.scaled_dot_product_attention(queries, *context))
        return self.cross_out(attended.view(batch, particles, length, width).transpose(0, 1))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(functional.relu(self.mlp_in(self.mlp_norm(x)), inplace=True))

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, heads, L, D / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """(N, heads, L, D / heads) -> (N, L, D)."""
    return x.transpose(1, 2).flatten(start_dim=2)
