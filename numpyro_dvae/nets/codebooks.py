"""Codebooks: what a vector-quantised guide and its model share.

A codebook turns vectors ``(*batch, D)`` into codes ``(*batch,)`` by `quantize`, and codes into
vectors when called. Guide and decoder hold the same one. The model is thereby an ordinary one with
integer codes, which any algorithm can train.

The table lives outside, as everywhere in NumPyro: as the parameter "codebook$table", or in the
mutable state "codebook$state"; of several codebooks in one program, each has its own
(`nets.registration.own_name`). With trained ones, substitute both:
``numpyro.handlers.substitute(program, data={**params, **mutable_state})``. A table that is a
parameter has there how often its codes are chosen, and how far those that restarted were moved:
`infer.SVI` adds that to the parameter at each step, NumPyro's own leaves it to the state.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS, 2017.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization. ICLR, 2024.
    [3] Yu et al. Vector-quantized image modeling with improved VQGAN. ICLR, 2022. Cosine codes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Bool, Float, Shaped
from numpyro.primitives import mutable

from numpyro_dvae.distributions import precise
from numpyro_dvae.nets.inputs import check_codebook, check_levels, nan_beyond, of_sizes
from numpyro_dvae.nets.quantizers import Quantized, Quantizer
from numpyro_dvae.nets.registration import declare, find_state, own_name
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.clustering import k_means
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
from numpyro_dvae.ops.signs import on_sphere

__all__ = ["Codebook", "FiniteScalars"]

_USAGE_DECAY = 0.99  # of the counts by which a table that is a parameter knows its dead codes


class Codebook(Quantizer):
    """A table of vectors, learnt by gradient or as moving averages of its inputs [1].

    Moving averages, and the counts of dead codes, advance as batch normalisation does: in the
    mutable state that a guide leaves, which `SVI.update` keeps.

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

    @checked
    def __init__(
        self,
        num_codes: int,
        embed_dim: int,
        *,
        decay: float | None = None,
        min_count: float | None = 0.1,
        table: Float[Array, "V D"] | None = None,
        start: str | None = None,
        cosine: bool = False,
    ) -> None:
        check_codebook(num_codes, embed_dim, decay, min_count, table, start)
        self.num_codes, self.embed_dim = num_codes, embed_dim
        self.decay, self.min_count, self.cosine = decay, min_count, cosine
        self.start = start or "uniform"
        self.name: str | None = None
        self._given, self._begun = table, table is not None or self.start == "uniform"
        self._at_data = table is None and start != "uniform"
        # How often a code counts as chosen where it begins, in inputs per batch.
        self._credit = max(min_count or 1.0, 1.0 if decay is None else 0.0)
        self._begins_anew = decay is not None and table is None
        self._learns = decay is not None or min_count is not None or not self._begun

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes, within a program that has them."""
        name = f"{own_name(self, 'codebook')}$state"
        if self.decay is not None:
            held = mutable(name, self._first_state())
            return of_sizes(name, held["table"], (self.num_codes, self.embed_dim))
        state = find_state(name)
        table = self._declare() if state is None else self._declare() + state["moved"]
        return on_sphere(table) if self.cosine else table

    def rows(self) -> Float[Array, "V D"]:
        """The table."""
        return self.table

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The nearest codes of vectors; if `learn`, the state then takes the vectors in.

        It does so in training mode alone, after `eval` it stays as it is; and it leaves out the
        vectors where `mask` is False.
        """
        inputs = on_sphere(inputs) if self.cosine else inputs
        held, key = None, None
        if learn and self.training and self._learns:
            held, key = self._state_to_learn(), numpyro.prng_key()
        if held is None or key is None:
            return _nearest(inputs, self.table)
        keys = jax.random.split(key)
        # Moving averages have no parameter: their table is all moved from 0.
        fixed = self._declare() if self.decay is None else jnp.zeros_like(held["table"])
        moved = held["moved" if self.decay is None else "table"]
        at = jax.lax.stop_gradient(fixed)
        state = CodebookState(at + moved, held["counts"], held.get("sums", at + moved))
        candidates = self._candidates(keys[0], inputs, mask, state.table)
        state = self._begin(keys[1], inputs, candidates, mask, state)
        table = fixed + jax.lax.stop_gradient(state.table - at)
        quantized = _nearest(inputs, on_sphere(table) if self.cosine else table)
        state = self._follow(state, quantized, candidates, mask)
        if self.decay is None:
            held.update(moved=state.table - at, counts=state.counts)
        else:
            held.update(state._asdict())
        return quantized

    def begin(
        self, inputs: Float[Array, "*batch D"], mask: Bool[Array, "*#batch"] | None = None
    ) -> None:
        """Start at inputs, unless a table or the start "uniform" was asked for."""

        def first(rng_key: Array) -> Array:
            uniform = self._first(rng_key)
            table = self._candidates(rng_key, inputs, mask, uniform)
            if self.start == "k_means":
                table, _ = self._clusters(rng_key, inputs, mask)
                table = table if mask is None else jnp.where(jnp.any(mask), table, uniform)
            return on_sphere(table) if self.cosine else table

        if self._at_data:
            declare(f"{own_name(self, 'codebook')}$table", first)

    def _begin(
        self,
        rng_key: Array,
        inputs: Array,
        candidates: Array,
        mask: Array | None,
        state: CodebookState,
    ) -> CodebookState:
        """Start at the first batch, where the start is one of data."""
        if self._begun:
            return state
        fresh = state.counts.sum() == 0
        if mask is not None:
            fresh = fresh & jnp.any(mask)
        counts = jnp.full_like(state.counts, self._credit)
        if self.start == "k_means":
            known = candidates, counts
            candidates, chosen = jax.lax.cond(
                fresh, lambda: _like(self._clusters(rng_key, inputs, mask), known), lambda: known
            )
            counts = jnp.maximum(counts, chosen) if self.decay is not None else counts
        first = on_sphere(candidates) if self.cosine else candidates
        begun = CodebookState(first, counts, (first * counts[:, None]).astype(state.sums.dtype))
        return CodebookState(*(jnp.where(fresh, *both) for both in zip(begun, state, strict=True)))

    def _clusters(self, rng_key: Array, inputs: Array, mask: Array | None) -> tuple[Array, Array]:
        """Centres of the batch, and how many inputs chose each."""
        flat, share = jax.lax.stop_gradient(inputs).reshape(-1, self.embed_dim), jnp.ones(())
        if mask is not None:  # as many as before: those left out become others again
            mask = jnp.broadcast_to(mask, inputs.shape[:-1]).reshape(-1)
            spread = (jnp.arange(len(flat)) + 0.5) / len(flat)
            flat = jnp.where(mask[:, None], flat, flat[rows_of_mask(mask, spread)])
            share = mask.mean()
        found = k_means(flat, jax.random.uniform(rng_key, (self.num_codes,)))
        return found.table, found.counts * share

    def _follow(
        self, state: CodebookState, quantized: Quantized, candidates: Array, mask: Array | None
    ) -> CodebookState:
        """The state, advanced by one batch; one that is masked whole is none."""
        inputs, codes, _ = quantized
        counts = code_counts(codes, self.num_codes, mask)
        if self.decay is None:
            kept = _USAGE_DECAY * state.counts + (1 - _USAGE_DECAY) * counts
            new = state._replace(counts=kept.astype(state.counts.dtype))
        else:
            sums = code_sums(inputs, codes, self.num_codes, mask)
            new = update_codebook(state, counts, sums, decay=self.decay)
        if self.min_count is not None:
            kept, num_inputs = new.counts, counts.sum() if self._begins_anew else None
            new = restart_codes(new, candidates, self.min_count, num_inputs)
            if self.decay is None:
                new = new._replace(counts=jnp.where(kept < self.min_count, self._credit, kept))
        if self.cosine:
            new = new._replace(table=on_sphere(new.table))
        found = counts.sum() > 0
        return CodebookState(*(jnp.where(found, *both) for both in zip(new, state, strict=True)))

    def _candidates(self, rng_key: Array, inputs: Array, mask: Array | None, table: Array) -> Array:
        """One input of the batch for each code, drawn at random."""
        flat = jax.lax.stop_gradient(inputs).reshape(-1, self.embed_dim)
        if mask is None:
            return flat[jax.random.randint(rng_key, (self.num_codes,), 0, len(flat))]
        mask = jnp.broadcast_to(mask, inputs.shape[:-1]).reshape(-1)
        rows = flat[rows_of_mask(mask, jax.random.uniform(rng_key, (self.num_codes,)))]
        return jnp.where(mask.any(), rows, table)

    def _declare(self) -> Array:
        """The table that is a parameter, as it stands there."""
        name = f"{own_name(self, 'codebook')}$table"
        table = declare(name, self._first, needs_key=self._given is None)
        return of_sizes(name, table, (self.num_codes, self.embed_dim))

    def _first(self, rng_key: Array | None) -> Array:
        """The table before the first batch."""
        shape = self.num_codes, self.embed_dim
        if self._given is not None:
            table = jnp.asarray(self._given)
        elif rng_key is None:
            return jnp.zeros(shape)
        else:
            table = jax.random.uniform(rng_key, shape, minval=-1.0, maxval=1.0) / self.num_codes
        return on_sphere(table) if self.cosine else table

    def _state_to_learn(self) -> dict[str, Any] | None:
        """The program's state; None where it makes its first one, which is no step of training."""
        first = self._first_state()
        name = f"{own_name(self, 'codebook')}$state"
        state = mutable(name, first)
        if state is first:
            return None
        table = state["moved" if self.decay is None else "table"]
        of_sizes(name, table, (self.num_codes, self.embed_dim))
        return state

    def _first_state(self) -> dict[str, Any]:
        """What is known before the first batch."""
        shape = self.num_codes, self.embed_dim
        counts = jnp.full(shape[:1], self._credit if self._begun else 0.0)
        if self.decay is None:
            return {"counts": counts, "moved": jnp.zeros(shape)}
        key = numpyro.prng_key() if self._given is None and self.start == "uniform" else None
        first = self._first(key)
        counts = counts.astype(precise(first).dtype)
        return CodebookState(first, counts, precise(first) * counts[:, None])._asdict()


def settle_tables(
    params: Mapping[str, Any], mutable_state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add to tables that are parameters what the state says they have moved by."""
    params, state = dict(params), dict(mutable_state)
    for name, held in mutable_state.items():
        table = f"{name.removesuffix('$state')}$table"
        if name.endswith("$state") and table in params and "moved" in held:
            params[table] = params[table] + held["moved"]
            state[name] = {**held, "moved": jnp.zeros_like(held["moved"])}
    return params, state


def _like(arrays: tuple[Array, ...], others: tuple[Array, ...]) -> tuple[Array, ...]:
    """Arrays in the types of others, one for one."""
    return tuple(x.astype(y.dtype) for x, y in zip(arrays, others, strict=True))


def _nearest(inputs: Array, rows: Array) -> Quantized:
    codes = nearest_codes(inputs, rows)
    return Quantized(inputs, codes, rows[codes])


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
        self.levels, self.scale = check_levels(levels), scale
        if not 0.0 < scale < math.inf:
            raise ValueError(f"`scale` must be positive and finite; got {scale}.")
        self.num_codes, self.embed_dim = math.prod(self.levels), len(self.levels)

    @property
    def table(self) -> Float[Array, "V D"]:
        """The vectors of all codes, made anew at each use: nothing else needs all of them."""
        return level_vectors(self.levels) * self.scale

    def rows(self) -> Float[Array, "V D"]:
        """The table."""
        return self.table

    def look_up(self, codes: Shaped[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of codes, in [-scale, scale]."""
        codes = codes.astype(int)
        vectors = level_vectors(self.levels, codes) * self.scale
        return nan_beyond(vectors, codes, self.num_codes)

    def quantize(
        self,
        inputs: Float[Array, "*batch D"],
        *,
        learn: bool = False,
        mask: Bool[Array, "*#batch"] | None = None,
    ) -> Quantized:
        """The vectors that `inputs` are rounded to; there is nothing to learn or to commit to."""
        vectors, codes = quantize_levels(inputs / self.scale, self.levels)
        vectors = vectors * self.scale
        return Quantized(vectors, codes, jax.lax.stop_gradient(vectors))
