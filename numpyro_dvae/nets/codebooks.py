"""Codebooks: what a vector-quantised guide and its model share.

A codebook turns vectors ``(*batch, D)`` into codes ``(*batch,)`` by `quantize`, and codes into
vectors when called. Guide and decoder hold the same one, so the model is an ordinary one with
integer codes, which any algorithm can train.

The table lives outside, as everywhere in NumPyro: as the parameter "codebook$table", or in the
mutable state "codebook$state". With trained ones, substitute both:
``numpyro.handlers.substitute(program, data={**params, **mutable_state})``.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float, Integer, Shaped

from numpyro_dvae.nets.registration import register
from numpyro_dvae.ops.quantizing import (
    CodebookState,
    code_counts,
    code_sums,
    level_vectors,
    nearest_codes,
    quantize_levels,
    restart_codes,
    update_codebook,
)

__all__ = ["Codebook", "CodebookDecoder", "FiniteScalars", "Quantized"]


class Quantized(NamedTuple):
    """Vectors before and after quantisation."""

    inputs: Float[Array, "*batch D"]  # where the gradient goes
    codes: Integer[Array, "*batch"]
    vectors: Float[Array, "*batch D"]  # of the codes; their gradient is the codebook's


class Codebook:
    """A table of vectors, learnt by gradient or as moving averages of its inputs [1].

    Args:
        num_codes: Vectors, V, at least 2.
        embed_dim: Their width, D.
        decay: Of the moving averages, in [0, 1); None makes the table a parameter instead.
        min_count: A code that a moving average follows restarts at an input of the batch, drawn
            with replacement, when it is chosen less often, in inputs per batch (of all processes).
        table: Where it starts, ``(V, D)``, as from `ops.quantizing.spread_codes`; a moving average
            as if each code had been chosen `min_count` times. Left out, a parameter starts uniform
            within 1 / V, a moving average at inputs of the first batch.

    Moving averages advance as those of batch normalisation do: in the mutable state that a guide
    leaves, which `SVI.update` keeps.
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
        self.decay, self.min_count, self.start = decay, min_count, table

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors, within a program that has them."""
        if self.decay is None:
            if not numpyro.primitives._PYRO_STACK:  # then `numpyro.param` only asserts
                raise _missing()
            return numpyro.param("codebook$table", self._create)
        return self._state()["table"]

    def __call__(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes."""
        return self.table[codes.astype(int)]

    def quantize(self, inputs: Float[Array, "*batch D"], *, learn: bool = False) -> Quantized:
        """Nearest codes; with `learn`, moving averages take these inputs in."""
        mutable, key = None, None
        if learn and self.decay is not None:
            mutable, key = self._given_state(), numpyro.prng_key()
        if mutable is None or key is None:
            table = self.table
            codes = nearest_codes(inputs, table)
            return Quantized(inputs, codes, table[codes])
        state, candidates = CodebookState(**mutable), self._candidates(key, inputs)
        fresh = state.counts.sum() == 0
        state = state._replace(table=jnp.where(fresh, candidates, state.table))
        codes = nearest_codes(inputs, state.table)
        mutable.update(self._follow(state, inputs, codes, candidates)._asdict())
        return Quantized(inputs, codes, state.table[codes])

    def _follow(
        self, state: CodebookState, inputs: Array, codes: Array, candidates: Array
    ) -> CodebookState:
        counts = code_counts(codes, self.num_codes)
        sums = code_sums(inputs, codes, self.num_codes)
        state = update_codebook(state, counts, sums, decay=self.decay or 0.0)
        return restart_codes(state, candidates, self.min_count)

    def _candidates(self, rng_key: Array, inputs: Array) -> Array:
        """One input of the batch for each code, drawn at random."""
        flat = jax.lax.stop_gradient(inputs).reshape(-1, self.embed_dim)
        return flat[jax.random.randint(rng_key, (self.num_codes,), 0, len(flat))]

    def _create(self, rng_key: Array | None) -> Array:
        if self.start is not None:
            return jnp.asarray(self.start)
        if rng_key is None:
            raise _missing()
        shape = self.num_codes, self.embed_dim
        return jax.random.uniform(rng_key, shape, minval=-1.0, maxval=1.0) / self.num_codes

    def _state(self) -> dict[str, Any]:
        return numpyro.primitives.mutable("codebook$state", self._first_state())

    def _given_state(self) -> dict[str, Any] | None:
        """None where the program makes its first state: that is no step of training."""
        first = self._first_state()
        state = numpyro.primitives.mutable("codebook$state", first)
        return None if state is first else state

    def _first_state(self) -> dict[str, Any]:
        start = jnp.zeros((self.num_codes, self.embed_dim)) if self.start is None else self.start
        start = jnp.asarray(start)
        counts = jnp.full_like(start[:, 0], 0.0 if self.start is None else self.min_count)
        return CodebookState(start, counts, start * counts[:, None])._asdict()


class FiniteScalars:
    """A codebook without parameters: each channel is bounded and rounded to a few levels [2].

    Args:
        levels: Levels of each channel, at least 2; V is their product, D their number. Published:
            (8, 5, 5, 5) for some 2**10 codes, (7, 5, 5, 5, 5) for 2**12.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"`levels` must be numbers of at least 2; got {self.levels}.")
        self.num_codes, self.embed_dim = math.prod(self.levels), len(self.levels)

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes."""
        return level_vectors(self.levels)

    def __call__(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes, in [-1, 1]."""
        return self.table[codes.astype(int)]

    def quantize(self, inputs: Float[Array, "*batch D"], *, learn: bool = False) -> Quantized:
        """Rounded inputs; there is nothing to learn and nothing to commit to."""
        vectors, codes = quantize_levels(inputs, self.levels)
        return Quantized(vectors, codes, jax.lax.stop_gradient(vectors))


class CodebookDecoder:
    """A decoder of codes: their vectors, side by side, through a network.

    Args:
        codebook: `Codebook` or `FiniteScalars`, that of the guide.
        network: From vectors ``(*batch, L * D)`` to outputs, as `MLPDecoder` with L * D latents
            and `num_codes` None.
    """

    def __init__(self, codebook: Any, network: Callable) -> None:
        self.codebook, self.network = codebook, network

    def __call__(self, z: Shaped[Array, "*batch_latents"]) -> Float[Array, "*batch_output"]:
        """Outputs for integer codes ``(*batch, L)``, or for real vectors ``(*batch, L, D)``."""
        vectors = z if _are_vectors(z) else self.codebook(z)
        flat = vectors.reshape(*vectors.shape[:-2], -1)
        return register("model.decoder", self.network, flat)(flat)

    def batch_shape(self, z: Shaped[Array, "*batch_latents"]) -> Sequence[int]:
        """The leading dims of codes or vectors."""
        return z.shape[:-2] if _are_vectors(z) else z.shape[:-1]


def _are_vectors(z: Array) -> bool:
    return jnp.issubdtype(z.dtype, jnp.floating)


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


def _missing() -> ValueError:
    return ValueError(
        "The program needs the parameter `codebook$table`, or a key to make it from. Run it with "
        "SVI, as numpyro.handlers.substitute(program, data=params) with trained parameters, or as "
        "numpyro.handlers.seed(program, rng_key) with fresh ones."
    )
