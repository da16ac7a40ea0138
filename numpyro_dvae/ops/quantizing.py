"""Quantise vectors: nearest codes of a codebook, its moving averages, and scalar levels.

A codebook is a table ``(V, D)`` of V vectors. Vector quantisation [1] replaces a vector by the
nearest row; the row follows the vectors that chose it, by a gradient or as their moving average:

    N_v <- γ N_v + (1 - γ) n_v,    m_v <- γ m_v + (1 - γ) Σ z,    e_v = m_v / N_v,

with n_v the number and Σ z the sum of a batch's vectors of code v, and N_v smoothed as by Laplace.
One step with γ = 0 is one of k-means. Finite scalar quantisation [2] needs no table: each of C
channels is bounded and rounded to one of a few levels, and their product is the code.

Shapes: codes are the trailing batch, vectors have one axis more. Counts and sums are of one batch:
add them up over processes before an update.

References:
    [1] van den Oord, Vinyals & Kavukcuoglu. Neural discrete representation learning. NeurIPS,
        2017. Equation 3 and appendix A.1.
    [2] Mentzer, Minnen, Agustsson & Tschannen. Finite scalar quantization: VQ-VAE made simple.
        ICLR, 2024.
    [3] Arthur & Vassilvitskii. k-means++: the advantages of careful seeding. SODA, 2007.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.dtypes import precise
from numpyro_dvae.ops.relaxing import with_slope

__all__ = [
    "CodebookState",
    "check_codes_fit",
    "code_counts",
    "code_sums",
    "codes_to_levels",
    "level_vectors",
    "levels_to_codes",
    "nearest_codes",
    "quantize_levels",
    "restart_codes",
    "rows_of_mask",
    "spread_codes",
    "squared_distances",
    "update_codebook",
]

_REACH = 1.001  # tanh times the half-range; without it the outermost levels are never reached


class CodebookState(NamedTuple):
    """A codebook that follows moving averages."""

    table: Float[Array, "V D"]
    counts: Float[Array, "V"]  # N, vectors per batch
    sums: Float[Array, "V D"]  # m


def squared_distances(
    inputs: Float[Array, "*batch D"], table: Float[Array, "V width"]
) -> Float[Array, "*batch V"]:
    """``|z|² - 2 z·e + |e|²`` to every row, by one product of matrices; never below 0.

    In float32 at least, and about the middle of the table: far from the origin the three terms
    would cancel.
    """
    if table.shape[0] < 2 or inputs.shape[-1] != table.shape[1]:
        raise ValueError(
            f"`table` must hold at least 2 vectors of the inputs' width, (V, {inputs.shape[-1]}); "
            f"got {table.shape}."
        )
    inputs, table = precise(inputs), precise(table)
    middle = jax.lax.stop_gradient(table).mean(0)
    inputs, table = inputs - middle, table - middle
    norms = jnp.sum(inputs**2, -1, keepdims=True)
    products = jnp.matmul(inputs, table.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(norms - 2 * products + jnp.sum(table**2, -1), 0)


def nearest_codes(
    inputs: Float[Array, "*batch D"], table: Float[Array, "V width"]
) -> Integer[Array, "*batch"]:
    """The row of `table` nearest to each input, the first of several; no gradient.

    Example:
        >>> nearest_codes(jnp.array([[0.9, 0.1]]), jnp.array([[0.0, 0.0], [1.0, 0.0]]))
        Array([1], dtype=int32)
    """
    inputs, table = jax.lax.stop_gradient((inputs, table))
    return jnp.argmin(squared_distances(inputs, table), -1)


@checked
def code_counts(
    codes: Integer[Array, "*batch"],
    num_codes: int,
    mask: Bool[Array, "*#batch"] | None = None,
) -> Float[Array, "V"]:
    """How often each code occurs, where `mask` is True."""
    flat = codes.reshape(-1)
    ones = 1 if mask is None else jnp.broadcast_to(mask, codes.shape).reshape(-1).astype(int)
    return jnp.zeros(num_codes, int).at[flat].add(ones).astype(float)


@checked
def code_sums(
    inputs: Float[Array, "*batch D"],
    codes: Integer[Array, "*batch"],
    num_codes: int,
    mask: Bool[Array, "*#batch"] | None = None,
) -> Float[Array, "V D"]:
    """Sum of the inputs of each code where `mask` is True, in float32 at least; no gradient."""
    if mask is not None:
        inputs = jnp.where(mask[..., None], inputs, 0.0)
    flat = precise(jax.lax.stop_gradient(inputs)).reshape(-1, inputs.shape[-1])
    return jnp.zeros((num_codes, flat.shape[1]), flat.dtype).at[codes.reshape(-1)].add(flat)


@checked
def update_codebook(
    state: CodebookState,
    counts: Float[Array, "V"],
    sums: Float[Array, "V D"],
    *,
    decay: float = 0.99,
    smoothing: float = 1e-5,
) -> CodebookState:
    """One step of the moving averages [1].

    Args:
        state: The codebook.
        counts: Inputs of each code in the batch, of all processes.
        sums: Their sums.
        decay: γ, in [0, 1); 0 makes the table the means of the batch.
        smoothing: Laplace's, in inputs per code; it keeps rare codes from jumping.

    Returns:
        The new state, counts and sums in float32 at least; a code that was never chosen keeps its
        vector.

    Raises:
        ValueError: If `decay` or `smoothing` is out of range.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay` must be in [0, 1); got {decay}.")
    if not 0.0 <= smoothing < math.inf:
        raise ValueError(f"`smoothing` must be finite and not negative; got {smoothing}.")
    old, dtype = precise(state.counts), state.table.dtype
    counts = decay * old + (1.0 - decay) * counts.astype(old.dtype)
    old = precise(state.sums)
    sums = decay * old + (1.0 - decay) * sums.astype(old.dtype)
    total = counts.sum()
    smooth = (counts + smoothing) * (total / (total + len(counts) * smoothing))
    chosen = counts > 0
    means = sums / jnp.where(chosen, smooth, 1.0)[:, None]
    table = jnp.where(chosen[:, None], means.astype(dtype), state.table)
    return CodebookState(table, counts, sums)


@checked
def restart_codes(
    state: CodebookState,
    candidates: Float[Array, "V D"],
    min_count: float,
    num_inputs: Float[Array, ""] | None = None,
) -> CodebookState:
    """Move each code chosen less often than `min_count` to its candidate, as if chosen so often.

    Args:
        state: The codebook.
        candidates: Where each code would move to: inputs of the batch, drawn at random.
        min_count: In inputs per batch, of the moving average.
        num_inputs: Of the batch. Where the counts are of fewer in all, as those of averages that
            have just begun, `min_count` is as much less; None takes it as it is.
    """
    least: Any = min_count
    if num_inputs is not None:
        seen = state.counts.sum() / jnp.maximum(num_inputs, 1)
        least = min_count * jnp.minimum(seen, 1)
    dead = state.counts < least
    candidates = jax.lax.stop_gradient(candidates).astype(state.table.dtype)
    return CodebookState(
        jnp.where(dead[:, None], candidates, state.table),
        jnp.where(dead, least, state.counts),
        jnp.where(dead[:, None], least * candidates, state.sums),
    )


def rows_of_mask(mask: Bool[Array, "N"], uniforms: Float[Array, "V"]) -> Integer[Array, "V"]:
    """Rows where `mask` is True, drawn with replacement by one uniform each; 0 if it has none."""
    count = mask.sum()
    places = jnp.maximum(jnp.minimum((uniforms * count).astype(int), count - 1), 0)
    return jnp.argsort(~mask, stable=True)[places]


def spread_codes(inputs: Float[Array, "N D"], uniforms: Float[Array, "V"]) -> Float[Array, "V D"]:
    """Choose V inputs far from one another, to begin a codebook with (k-means++ [3]).

    Each is drawn with probability in proportion to its squared distance from those before it.

    Args:
        inputs: At least V of them.
        uniforms: One number in [0, 1) for each draw.

    Raises:
        ValueError: If there are fewer inputs than codes.
    """
    if len(inputs) < len(uniforms):
        raise ValueError(
            f"`inputs` must be at least as many as the codes, {len(uniforms)}; got {len(inputs)}. "
            "Pass more data, or use a smaller codebook."
        )
    inputs = jax.lax.stop_gradient(inputs)

    def choose(state: tuple[Array, Array], uniform: Array) -> tuple[tuple[Array, Array], Array]:
        distances, nearest = state
        row = inputs[_draw(distances, uniform)]
        nearest = jnp.minimum(nearest, jnp.sum((inputs - row) ** 2, -1))
        # All equal to a chosen one: draw evenly.
        return (jnp.where(nearest.sum() > 0, nearest, 1.0), nearest), row

    evenly = jnp.ones_like(inputs[:, 0])
    start = evenly, jnp.full_like(evenly, jnp.inf)
    (_, nearest), found = jax.lax.scan(choose, start, uniforms)
    return jnp.where(jnp.isnan(nearest.sum()), jnp.nan, found)  # some input is NaN


def _draw(weights: Float[Array, "N"], uniform: Float[Array, ""]) -> Integer[Array, ""]:
    """An index, by inverting the cumulative sum; never one of no weight."""
    mass = jnp.cumsum(weights)
    below = jnp.nextafter(mass[-1], jnp.zeros_like(mass[-1]))
    target = jnp.minimum(uniform.astype(mass.dtype) * mass[-1], below)
    return jnp.searchsorted(mass, target, side="right")


def quantize_levels(
    inputs: Float[Array, "*batch C"], levels: Sequence[int]
) -> tuple[Float[Array, "*batch C"], Integer[Array, "*batch"]]:
    """Bound each channel by tanh and round it to one of its levels [2].

    An input of 0 is the middle of a level, but for a channel of two levels, which is split there:
    the published formula would split it at -3.8, where tanh is flat. An input is bounded to its
    levels whatever their number; the published half-range rounds beyond them from 1002 on.

    Returns:
        The vectors, in [-1, 1] and with the gradient of the bounded inputs, and their codes.

    Raises:
        ValueError: If a number of levels is below 2, the channels are not as many, or an integer
            does not hold all codes.
    """
    dtype, inputs = inputs.dtype, precise(inputs)
    _check_levels(inputs, levels)
    half, shift, centre, middle, last = jnp.array(_steps_of(levels), inputs.dtype)
    bounded = jnp.tanh(inputs + centre) * half - shift
    places = jnp.clip(jnp.round(jax.lax.stop_gradient(bounded)) + middle, 0, last)
    vectors = with_slope((places - middle) / middle, bounded / middle)
    return vectors.astype(dtype), levels_to_codes(places.astype(int), levels)


def levels_to_codes(
    places: Integer[Array, "*batch C"], levels: Sequence[int]
) -> Integer[Array, "*batch"]:
    """The code of each row of level indices; the first channel changes fastest.

    Raises:
        ValueError: If the levels are not one for each channel, or an integer does not hold all
            codes.
    """
    _check_levels(places, levels)
    check_codes_fit(levels)
    return jnp.sum(places * jnp.array(_strides(levels), places.dtype), -1)


def codes_to_levels(
    codes: Integer[Array, "*batch"], levels: Sequence[int]
) -> Integer[Array, "*batch C"]:
    """The inverse of `levels_to_codes`."""
    check_codes_fit(levels)
    strides, sizes = jnp.array(_strides(levels), codes.dtype), jnp.array(tuple(levels), codes.dtype)
    return codes[..., None] // strides % sizes


def level_vectors(
    levels: Sequence[int], codes: Integer[Array, "*batch"] | None = None
) -> Float[Array, "*batch C"]:
    """The vectors of codes, in [-1, 1]; without `codes` of every code: what a table would hold."""
    codes = jnp.arange(math.prod(levels)) if codes is None else codes
    middle = jnp.array(tuple(levels)) // 2
    return (codes_to_levels(codes, levels) - middle) / middle.astype(float)


def _steps_of(levels: Sequence[int]) -> list[list[float]]:
    """Of each channel: half-range, shift, centre of the inputs, middle level and last one."""
    half = [_REACH * (size - 1) / 2 for size in levels]
    shift = [0.0 if size % 2 else 0.5 for size in levels]
    triples = zip(levels, half, shift, strict=True)
    centre = [math.atanh(s / h) if size > 2 else 0.0 for size, h, s in triples]
    middle, last = [float(size // 2) for size in levels], [size - 1.0 for size in levels]
    return [half, shift, centre, middle, last]


def _check_levels(array: Array, levels: Sequence[int]) -> None:
    if not levels or min(levels) < 2 or array.shape[-1:] != (len(levels),):
        raise ValueError(
            f"`levels` must be one number of at least 2 for each of {array.shape[-1]} channels; "
            f"got {tuple(levels)}."
        )


def check_codes_fit(levels: Sequence[int]) -> None:
    """Check that an integer holds every code.

    Raises:
        ValueError: If it does not.
    """
    most = jnp.iinfo(jnp.zeros((), int).dtype).max
    if math.prod(levels) - 1 > most:
        raise ValueError(
            f"`levels` make {math.prod(levels)} codes, but an integer holds no more than {most}. "
            "Split the channels into several latents of fewer levels each, or set "
            'jax.config.update("jax_enable_x64", True) at the start.'
        )


def _strides(levels: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(levels[:channel]) for channel in range(len(levels)))
