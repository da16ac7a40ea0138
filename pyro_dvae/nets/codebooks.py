"""Codebooks: what a vector-quantised guide and its model share.

A codebook turns vectors ``(*batch, D)`` into codes ``(*batch,)`` by `quantize`, and codes into
vectors when called. Guide and decoder hold the same one. The model is thereby an ordinary one with
integer codes, which any algorithm can train.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, distributed, nn

from pyro_dvae.ops.quantizing import (
    CodebookState,
    code_counts,
    code_sums,
    level_vectors,
    nearest_codes,
    quantize_levels,
    restart_codes,
    rows_of_mask,
    update_codebook,
)

__all__ = ["Codebook", "FiniteScalars", "Quantized"]


class Quantized(NamedTuple):
    """Vectors before and after quantisation, ``(*batch, D)``, and their codes ``(*batch,)``."""

    inputs: Float[Tensor, "*batch D"]  # they take the gradient of the loss
    codes: Integer[Tensor, "*batch"]
    vectors: Float[Tensor, "*batch D"]  # of the codes; their gradient goes to the codebook


class Codebook(nn.Module):
    """A table of vectors, learnt by gradient or as moving averages of its inputs [1].

    Moving averages advance as those of batch normalisation do: whenever a guide runs in training
    mode with gradients enabled.

    Args:
        num_codes: Vectors in the table, V, at least 2.
        embed_dim: Width of a vector, D.
        decay: What a moving average keeps of itself at each step, in [0, 1); None makes the table
            a parameter instead.
        min_count: Restart a code that is chosen less often than this, in inputs per batch (of all
            processes), at an input of the batch drawn with replacement; for moving averages alone.
        table: Vectors to start at, ``(V, D)``, as from `ops.quantizing.spread_codes`; a moving
            average starts as if each of them had been chosen `min_count` times. Left out, a
            parameter starts uniform within 1 / V, a moving average at inputs of the first batch.

    Raises:
        ValueError: If an argument is out of its range, or `table` has another shape.
    """

    table: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: int,
        embed_dim: int,
        *,
        decay: float | None = None,
        min_count: float = 0.1,
        table: Float[Tensor, "V D"] | None = None,
    ) -> None:
        super().__init__()
        _check_codebook(num_codes, embed_dim, decay, min_count, table)
        self.num_codes, self.embed_dim = num_codes, embed_dim
        self.decay, self.min_count = decay, min_count
        if decay is None:
            start = (2 * torch.rand(num_codes, embed_dim) - 1) / num_codes
            self.register_parameter(
                "table", nn.Parameter(start if table is None else table.clone())
            )
            return
        start = torch.zeros(num_codes, embed_dim) if table is None else table.clone()
        counts = torch.full_like(start[:, 0], 0.0 if table is None else min_count)
        self.register_buffer("table", start)
        self.register_buffer("counts", counts)
        self.register_buffer("sums", start * counts[:, None])

    def forward(self, codes: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The vectors of codes, from the table."""
        return nn.functional.embedding(codes.long(), self.table)

    def quantize(
        self,
        inputs: Float[Tensor, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
    ) -> Quantized:
        """The nearest codes of vectors; if `learn`, moving averages then take the vectors in.

        They do so in training mode alone, after `eval` they stay as they are; and they leave out
        the vectors where `mask` is False.
        """
        learn = learn and self.training and self.decay is not None
        if learn:
            candidates = self._candidates(inputs, mask)
            fresh = self.counts.sum() == 0
            self.table.copy_(torch.where(fresh, candidates, self.table))
        codes = nearest_codes(inputs, self.table)
        quantized = Quantized(inputs, codes, self(codes))
        if learn:
            self._follow(quantized, candidates, mask)
        return quantized

    @torch.no_grad()
    def _follow(self, quantized: Quantized, candidates: Tensor, mask: Tensor | None) -> None:
        """Advance the moving averages by one batch; one that is masked whole is none."""
        inputs, codes, _ = quantized
        counts = _over_processes(code_counts(codes, self.num_codes, mask))
        sums = _over_processes(code_sums(inputs, codes, self.num_codes, mask))
        state = CodebookState(self.table, self.counts, self.sums)
        state = update_codebook(state, counts, sums, decay=self.decay or 0.0)
        found, held = counts.sum() > 0, (self.table, self.counts, self.sums)
        for old, new in zip(held, restart_codes(state, candidates, self.min_count), strict=True):
            old.copy_(torch.where(found, new, old))

    @torch.no_grad()
    def _candidates(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """One input of the batch for each code, drawn at random; the same in all processes."""
        flat = inputs.reshape(-1, self.embed_dim)
        if mask is None:
            rows = flat[torch.randint(len(flat), (self.num_codes,), device=flat.device)]
        else:
            mask = mask.expand(inputs.shape[:-1]).reshape(-1)
            rows = flat[rows_of_mask(mask, torch.rand(self.num_codes, device=flat.device))]
            rows = torch.where(mask.any(), rows, self.table.to(rows.dtype))
        if _are_several_processes():
            distributed.broadcast(rows, 0)
        return rows.to(self.table.dtype)


class FiniteScalars(nn.Module):
    """A codebook without parameters: each channel is bounded and rounded to a few levels [2].

    Args:
        levels: Levels of each channel, at least 2. The number of channels is D, the product of
            their levels V. Published: (8, 5, 5, 5) for some 2**10 codes, (7, 5, 5, 5, 5) for 2**12.

    Raises:
        ValueError: If there are no channels, or one has fewer than 2 levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"`levels` must be numbers of at least 2; got {self.levels}.")
        self.num_codes, self.embed_dim = math.prod(self.levels), len(self.levels)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The vectors of all codes, made anew at each use: nothing else needs all of them."""
        return level_vectors(self.levels)

    def forward(self, codes: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The vectors of codes, in [-1, 1]."""
        return level_vectors(self.levels, codes.long())

    def quantize(
        self,
        inputs: Float[Tensor, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
    ) -> Quantized:
        """The vectors that `inputs` are rounded to; there is nothing to learn or to commit to."""
        vectors, codes = quantize_levels(inputs, self.levels)
        return Quantized(vectors, codes, vectors.detach())


def _check_codebook(
    num_codes: int, embed_dim: int, decay: float | None, min_count: float, table: Tensor | None
) -> None:
    if num_codes < 2:
        raise ValueError(f"`num_codes` must be at least 2; got {num_codes}.")
    if decay is not None and not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay` must be in [0, 1), or None; got {decay}.")
    if not min_count > 0.0:
        raise ValueError(f"`min_count` must be positive, in inputs per batch; got {min_count}.")
    if table is not None and tuple(table.shape) != (num_codes, embed_dim):
        raise ValueError(
            f"`table` must have shape ({num_codes}, {embed_dim}); got {tuple(table.shape)}."
        )


def _over_processes(total: Tensor) -> Tensor:
    """The sum of the totals of all processes."""
    if _are_several_processes():
        distributed.all_reduce(total)
    return total


def _are_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
