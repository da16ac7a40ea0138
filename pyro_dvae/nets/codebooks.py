"""Codebooks: what a vector-quantised guide and its model share.

A codebook turns vectors ``(*batch, D)`` into codes ``(*batch,)`` by `quantize`, and codes into
vectors when called. Guide and decoder hold the same one. The model is thereby an ordinary one with
integer codes, which any algorithm can train.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
    [3] Yu et al. Vector-quantized image modeling with improved VQGAN. ICLR, 2022. Cosine codes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from pyro_dvae.distributions import precise
from pyro_dvae.nets.inputs import check_codebook, check_levels, nan_beyond
from pyro_dvae.nets.quantizers import Quantized, Quantizer
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.clustering import k_means
from pyro_dvae.ops.processes import all_lengths, as_first, process_rank, ragged_rows, total
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
from pyro_dvae.ops.signs import on_sphere

__all__ = ["Codebook", "FiniteScalars"]

_USAGE_DECAY = 0.99  # of the counts by which a table that is a parameter knows its dead codes


class Codebook(Quantizer):
    """A table of vectors, learnt by gradient or as moving averages of its inputs [1].

    Moving averages, and the counts of dead codes, advance as batch normalisation does: whenever a
    guide runs in training mode with gradients enabled. A parameter that is frozen, as by
    ``codebook.requires_grad_(False)``, stays as it is: dead codes do not restart.

    Args:
        num_codes: Vectors in the table, V, at least 2.
        embed_dim: Width of a vector, D.
        decay: What a moving average keeps of itself at each step, in [0, 1); None makes the table
            a parameter instead.
        min_count: Restart a code that is chosen less often than this, in inputs per batch (of all
            processes), at an input of the batch drawn with replacement; None never does. Vectors
            that learn by gradient need time: theirs counts as one per batch where it begins anew.
            For averages without a `table` this is less until all counts are those of a batch.
        table: Vectors to start at, ``(V, D)``, as from `ops.quantizing.spread_codes`, as if each
            had been chosen `min_count` times.
        start: Without a table: "uniform" within 1 / V; "data", inputs of the first batch; or
            "k_means" of that batch. None is "uniform" for codes that are the nearest ones, which
            measured best, and "data" under a `CodebookEncoder`, whose scale is that of the data.
        cosine: Whether inputs and codes are on the unit sphere, so that the nearest code is that of
            the most similar direction [3].

    Raises:
        ValueError: If an argument is out of its range, or `table` has another shape; on the first
            batch, if it has fewer inputs than there are codes to start by k-means.
    """

    table: Tensor
    counts: Tensor
    sums: Tensor

    @checked
    def __init__(
        self,
        num_codes: int,
        embed_dim: int,
        *,
        decay: float | None = None,
        min_count: float | None = 0.1,
        table: Float[Tensor, "V D"] | None = None,
        start: str | None = None,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        check_codebook(num_codes, embed_dim, decay, min_count, table, start)
        self.num_codes, self.embed_dim = num_codes, embed_dim
        self.decay, self.min_count, self.cosine = decay, min_count, cosine
        self.start, self._has_begun = start or "uniform", False
        self._at_data = table is None and start != "uniform"
        begun = table is not None or self.start == "uniform"
        self._learns = decay is not None or min_count is not None or not begun
        # How often a code counts as chosen where it begins, in inputs per batch.
        self._credit = max(min_count or 1.0, 1.0 if decay is None else 0.0)
        self._begins_anew = decay is not None and table is None
        first = self._first(table)
        counts = torch.full_like(first[:, 0], self._credit if begun else 0.0)
        self.register_buffer("counts", counts)
        if decay is None:
            self.register_parameter("table", nn.Parameter(first))
        else:
            self.register_buffer("table", first)
            self.register_buffer("sums", first * counts[:, None])

    def _first(self, table: Tensor | None) -> Tensor:
        """The table before the first batch."""
        if table is None:
            shape = self.num_codes, self.embed_dim
            if self.start != "uniform" and self.decay is not None:
                return torch.zeros(shape)
            table = (2 * torch.rand(shape) - 1) / self.num_codes
        return on_sphere(table) if self.cosine else table.clone()

    def rows(self) -> Float[Tensor, "V D"]:
        """The vectors of all codes."""
        # A copy: the table may be written to while a gradient to it is still to come.
        return on_sphere(self.table.clone()) if self.cosine else self.table

    def quantize(
        self,
        inputs: Float[Tensor, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
    ) -> Quantized:
        """The nearest codes of vectors; if `learn`, the state then takes the vectors in.

        It does so in training mode alone, after `eval` it stays as it is; and it leaves out the
        vectors where `mask` is False.
        """
        inputs = on_sphere(inputs) if self.cosine else inputs
        learn = learn and self._may_move and self._learns
        if learn:
            candidates = self._candidates(inputs, mask)
            self._begin(inputs, candidates, mask)
        rows = self.rows()
        codes = nearest_codes(inputs, rows)
        quantized = Quantized(inputs, codes, nn.functional.embedding(codes, rows))
        if learn:
            self._follow(quantized, candidates, mask)
        return quantized

    @property
    def _may_move(self) -> bool:
        return self.training and (self.decay is not None or self.table.requires_grad)

    def begin(
        self, inputs: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*#batch"] | None = None
    ) -> None:
        """Start at inputs, unless a table or the start "uniform" was asked for; in training."""
        if self._may_move and self._at_data:
            self._start_at(inputs, self._candidates(inputs, mask), mask)
            self._has_begun = True

    @torch.no_grad()
    def _begin(self, inputs: Tensor, candidates: Tensor, mask: Tensor | None) -> None:
        """Start at the first batch, where the start is one of data."""
        if self._has_begun:  # known without asking the device
            return
        self._has_begun = bool(self.counts.sum() > 0)
        if self._has_begun or (mask is not None and not total(mask.sum())):
            return
        self._start_at(inputs, candidates, mask)

    @torch.no_grad()
    def _start_at(self, inputs: Tensor, candidates: Tensor, mask: Tensor | None) -> None:
        counts = torch.full_like(self.counts, self._credit)
        if self.start == "k_means":
            candidates, chosen = self._clusters(inputs, mask)
            counts = counts.maximum(chosen) if self.decay is not None else counts
        self.table.copy_(on_sphere(candidates) if self.cosine else candidates)
        self.counts.copy_(counts)
        if self.decay is not None:
            self.sums.copy_(self.table * counts[:, None])

    def _clusters(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Centres of the batch, of all processes, and how many inputs chose each."""
        flat = inputs.reshape(-1, self.embed_dim)
        if mask is not None:
            flat = flat[mask.expand(inputs.shape[:-1]).reshape(-1)]
        uniforms = as_first(torch.rand(self.num_codes, device=flat.device))
        found = k_means(ragged_rows(flat), uniforms)
        return as_first(found.table), as_first(found.counts)

    @torch.no_grad()
    def _follow(self, quantized: Quantized, candidates: Tensor, mask: Tensor | None) -> None:
        """Advance the state by one batch; one that is masked whole is none."""
        inputs, codes, _ = quantized
        counts = total(code_counts(codes, self.num_codes, mask))
        found = counts.sum() > 0
        if self.decay is None:
            kept = _USAGE_DECAY * self.counts + (1 - _USAGE_DECAY) * counts
            new = CodebookState(self.table, kept, self.table)
        else:
            sums = total(code_sums(inputs, codes, self.num_codes, mask))
            state = CodebookState(self.table, self.counts, self.sums)
            new = update_codebook(state, counts, sums, decay=self.decay)
        if self.min_count is not None:
            kept, num_inputs = new.counts, counts.sum() if self._begins_anew else None
            new = restart_codes(new, candidates, self.min_count, num_inputs)
            if self.decay is None:
                new = new._replace(counts=torch.where(kept < self.min_count, self._credit, kept))
        table = on_sphere(new.table) if self.cosine else new.table
        self.counts.copy_(torch.where(found, new.counts, self.counts))
        if self.decay is not None or self.min_count is not None:
            self.table.copy_(torch.where(found, table, self.table))
        if self.decay is not None:
            self.sums.copy_(torch.where(found, new.sums, self.sums))

    @torch.no_grad()
    def _candidates(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """One input of the batch, of all processes, for each code, drawn at random."""
        flat = inputs.reshape(-1, self.embed_dim)
        if mask is None:
            num_inputs = sum(all_lengths(flat))
            places = torch.randint(num_inputs, (self.num_codes,), device=flat.device)
            return _taken(flat, as_first(places)).to(self.table.dtype)
        mask = ragged_rows(mask.expand(inputs.shape[:-1]).reshape(-1))
        places = rows_of_mask(mask, torch.rand(self.num_codes, device=flat.device))
        rows = _taken(flat, as_first(places))
        return torch.where(mask.any(), rows, self.table.to(rows.dtype)).to(self.table.dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> "Codebook":
        """Where a module is moved to another type, counts and sums stay in float32 at least."""
        super()._apply(*args, **kwargs)
        self.counts = precise(self.counts)
        if self.decay is not None:
            self.sums = precise(self.sums)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._has_begun = False
        super()._load_from_state_dict(*args, **kwargs)


class FiniteScalars(Quantizer):
    """A codebook without parameters: each channel is bounded and rounded to a few levels [2].

    Args:
        levels: Levels of each channel, at least 2. The number of channels is D, the product of
            their levels V. Published: (8, 5, 5, 5) for some 2**10 codes, (7, 5, 5, 5, 5) for 2**12.
        scale: The vectors are in [-scale, scale]; below 1 for the later ones of a residual.

    Raises:
        ValueError: If there are no channels, or one has fewer than 2 levels, or `scale` is not
            positive.
    """

    by_rule = True

    @checked
    def __init__(self, levels: Sequence[int], *, scale: float = 1.0) -> None:
        super().__init__()
        self.levels, self.scale = check_levels(levels), scale
        if not 0.0 < scale < math.inf:
            raise ValueError(f"`scale` must be positive and finite; got {scale}.")
        self.num_codes, self.embed_dim = math.prod(self.levels), len(self.levels)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The vectors of all codes, made anew at each use: nothing else needs all of them."""
        return level_vectors(self.levels) * self.scale

    def rows(self) -> Float[Tensor, "V D"]:
        """The table."""
        return self.table

    def look_up(self, codes: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The vectors of codes, in [-scale, scale]."""
        codes = codes.long()
        vectors = level_vectors(self.levels, codes) * self.scale
        return nan_beyond(vectors, codes, self.num_codes)

    def quantize(
        self,
        inputs: Float[Tensor, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Tensor, "*#batch"] | None = None,
    ) -> Quantized:
        """The vectors that `inputs` are rounded to; there is nothing to learn or to commit to."""
        if self.scale == 1.0:
            vectors, codes = quantize_levels(inputs, self.levels)
        else:
            vectors, codes = quantize_levels(inputs / self.scale, self.levels)
            vectors = vectors * self.scale
        return Quantized(vectors, codes, vectors.detach())


def _taken(flat: Float[Tensor, "N D"], places: Tensor) -> Float[Tensor, "V D"]:
    """The vectors at some places among those of all processes, each of which gives its own."""
    lengths = all_lengths(flat)
    if len(lengths) == 1:
        return flat[places]
    places = places - sum(lengths[: process_rank()])
    is_own = (places >= 0) & (places < len(flat))
    rows = flat[places.clamp(0, len(flat) - 1)]
    return total(torch.where(is_own[:, None], rows, 0.0))
