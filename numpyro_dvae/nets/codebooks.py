"""Codebooks: what a vector-quantised guide and its model share.

A codebook turns vectors ``(*batch, D)`` into codes ``(*batch,)`` by `quantize`, and codes into
vectors when called. Guide and decoder hold the same one. The model is thereby an ordinary one with
integer codes, which any algorithm can train.

The table lives outside, as everywhere in NumPyro: as the parameter "codebook$table", or in the
mutable state "codebook$state"; of several codebooks in one program, each has its own
(`nets.registration.own_name`). With trained ones, substitute both:
``numpyro.handlers.substitute(program, data={**params, **mutable_state})``.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Bool, Float, Integer, Shaped
from numpyro.primitives import mutable

from numpyro_dvae.nets.registration import declare, own_name
from numpyro_dvae.ops.quantizing import (
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

    inputs: Float[Array, "*batch D"]  # they take the gradient of the loss
    codes: Integer[Array, "*batch"]
    vectors: Float[Array, "*batch D"]  # of the codes; their gradient goes to the codebook


class Codebook:
    """A table of vectors, learnt by gradient or as moving averages of its inputs [1].

    Moving averages advance as those of batch normalisation do: in the mutable state that
    a guide leaves, which `SVI.update` keeps.

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

    def __init__(
        self,
        num_codes: int,
        embed_dim: int,
        *,
        decay: float | None = None,
        min_count: float = 0.1,
        table: Float[Array, "V D"] | None = None,
    ) -> None:
        _check_codebook(num_codes, embed_dim, decay, min_count, table)
        self.num_codes, self.embed_dim = num_codes, embed_dim
        self.name: str | None = None
        self.training = True
        self.decay, self.min_count, self.start = decay, min_count, table

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes, within a program that has them."""
        if self.decay is None:
            return self._declare()
        return mutable(f"{own_name(self, 'codebook')}$state", self._first_state())["table"]

    def __call__(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes, from the table."""
        return self.table[codes.astype(int)]

    def train(self, mode: bool = True) -> "Codebook":
        """Let moving averages learn where programs run from now on, as they do at first."""
        self.training = mode
        return self

    def eval(self) -> "Codebook":
        """Freeze moving averages where programs run from now on; compiled ones stay as they are."""
        return self.train(False)

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The nearest codes of vectors; if `learn`, moving averages then take the vectors in.

        They do so in training mode alone, after `eval` they stay as they are; and they leave out
        the vectors where `mask` is False.
        """
        held, key = None, None
        if learn and self.training and self.decay is not None:
            held, key = self._state_to_learn(), numpyro.prng_key()
        if held is None or key is None:
            table = self.table
            codes = nearest_codes(inputs, table)
            return Quantized(inputs, codes, table[codes])
        state, candidates = CodebookState(**held), self._candidates(key, inputs, mask, held)
        fresh = state.counts.sum() == 0
        state = state._replace(table=jnp.where(fresh, candidates, state.table))
        codes = nearest_codes(inputs, state.table)
        quantized = Quantized(inputs, codes, state.table[codes])
        held.update(self._follow(state, quantized, candidates, mask)._asdict())
        return quantized

    def _follow(
        self, state: CodebookState, quantized: Quantized, candidates: Array, mask: Array | None
    ) -> CodebookState:
        """The moving averages, advanced by one batch; one that is masked whole is none."""
        inputs, codes, _ = quantized
        counts = code_counts(codes, self.num_codes, mask)
        sums = code_sums(inputs, codes, self.num_codes, mask)
        new = update_codebook(state, counts, sums, decay=self.decay or 0.0)
        new, found = restart_codes(new, candidates, self.min_count), counts.sum() > 0
        return CodebookState(*(jnp.where(found, *both) for both in zip(new, state, strict=True)))

    def _candidates(
        self, rng_key: Array, inputs: Array, mask: Array | None, held: dict[str, Any]
    ) -> Array:
        """One input of the batch for each code, drawn at random."""
        flat = jax.lax.stop_gradient(inputs).reshape(-1, self.embed_dim)
        if mask is None:
            return flat[jax.random.randint(rng_key, (self.num_codes,), 0, len(flat))]
        mask = jnp.broadcast_to(mask, inputs.shape[:-1]).reshape(-1)
        rows = flat[rows_of_mask(mask, jax.random.uniform(rng_key, (self.num_codes,)))]
        return jnp.where(mask.any(), rows, held["table"])

    def _declare(self) -> Array:
        """The table that is a parameter."""
        name = f"{own_name(self, 'codebook')}$table"
        table = declare(name, self._create, needs_key=self.start is None)
        if jnp.shape(table) != (self.num_codes, self.embed_dim):
            raise ValueError(
                f"`{name}` must have shape ({self.num_codes}, {self.embed_dim}); got "
                f"{jnp.shape(table)}. Build the codebook with the sizes it was trained with."
            )
        return table

    def _create(self, rng_key: Any) -> Array:
        """The table that a parameter starts at."""
        if self.start is not None:
            return jnp.asarray(self.start)
        shape = self.num_codes, self.embed_dim
        return jax.random.uniform(rng_key, shape, minval=-1.0, maxval=1.0) / self.num_codes

    def _state_to_learn(self) -> dict[str, Any] | None:
        """The program's state; None where it makes its first one, which is no step of training."""
        first = self._first_state()
        state = mutable(f"{own_name(self, 'codebook')}$state", first)
        return None if state is first else state

    def _first_state(self) -> dict[str, Any]:
        """The `CodebookState` that moving averages start at, as a dictionary."""
        start = jnp.zeros((self.num_codes, self.embed_dim)) if self.start is None else self.start
        start = jnp.asarray(start)
        counts = jnp.full_like(start[:, 0], 0.0 if self.start is None else self.min_count)
        return CodebookState(start, counts, start * counts[:, None])._asdict()


class FiniteScalars:
    """A codebook without parameters: each channel is bounded and rounded to a few levels [2].

    Args:
        levels: Levels of each channel, at least 2. The number of channels is D, the product of
            their levels V. Published: (8, 5, 5, 5) for some 2**10 codes, (7, 5, 5, 5, 5) for 2**12.

    Raises:
        ValueError: If there are no channels, or one has fewer than 2 levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"`levels` must be numbers of at least 2; got {self.levels}.")
        self.num_codes, self.embed_dim = math.prod(self.levels), len(self.levels)

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes, made anew at each use: nothing else needs all of them."""
        return level_vectors(self.levels)

    def __call__(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes, in [-1, 1]."""
        return level_vectors(self.levels, codes.astype(int))

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The vectors that `inputs` are rounded to; there is nothing to learn or to commit to."""
        vectors, codes = quantize_levels(inputs, self.levels)
        return Quantized(vectors, codes, jax.lax.stop_gradient(vectors))


def _check_codebook(
    num_codes: int, embed_dim: int, decay: float | None, min_count: float, table: Any
) -> None:
    if num_codes < 2:
        raise ValueError(f"`num_codes` must be at least 2; got {num_codes}.")
    if decay is not None and not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay` must be in [0, 1), or None; got {decay}.")
    if not min_count > 0.0:
        raise ValueError(f"`min_count` must be positive, in inputs per batch; got {min_count}.")
    if table is not None and table.shape != (num_codes, embed_dim):
        raise ValueError(f"`table` must have shape ({num_codes}, {embed_dim}); got {table.shape}.")
