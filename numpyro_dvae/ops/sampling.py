"""Draw codes by inverting their cumulative distribution: one uniform each.

Shapes: particles lead, as in ``(K, *batch)``; the V values of a code come last in the logits.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from numpyro_dvae.ops.dtypes import precise

__all__ = ["sample_codes"]


@jax.jit
def sample_codes(
    logits: Float[Array, "*batch V"], uniforms: Float[Array, "K *batch"]
) -> Integer[Array, "K *batch"]:
    """Turn one uniform in [0, 1) per code into draws from ``softmax(logits)``.

    Inverts the cumulative distribution in two levels, blocks of codes and codes of a block, so
    K draws cost one pass over `logits` and some 2 sqrt(V) steps each. A code of zero
    probability is never drawn: a step of zero height is not the first above any target. NaN
    logits give the last code; their log-probability is NaN and shows.

    Example:
        >>> sample_codes(jnp.array([0.0, 0.0]), jnp.array([0.1, 0.9]))
        Array([0, 1], dtype=int32)
    """
    logits = precise(jax.lax.stop_gradient(logits))
    num_codes = logits.shape[-1]
    width = math.isqrt(num_codes - 1) + 1  # of a block: V rounded up to a square's side
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -num_codes % width)]
    mass = jnp.pad(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), padding)
    blocks = mass.reshape(-1, mass.shape[-1] // width, width)
    totals = jnp.sum(blocks, axis=-1)
    targets = uniforms.reshape(len(uniforms), -1).astype(mass.dtype) * jnp.sum(totals, axis=-1)
    block, below = _invert(totals, targets)
    chosen = blocks[jnp.arange(len(blocks)), block]
    code, _ = _invert(chosen, targets - below)
    return (block * width + code).reshape(uniforms.shape).astype(int)


def _invert(
    mass: Float[Array, "*#sample N n"], targets: Float[Array, "*sample N"]
) -> tuple[Integer[Array, "*sample N"], Float[Array, "*sample N"]]:
    """First entry at which the running sum of `mass` exceeds the target, and the sum before it.

    Added one after the other, since a parallel sum may rise where an entry is zero, or fall.
    Where rounding leaves the whole sum below the target, the last entry that is not zero.
    """
    total = below = below_last = jnp.zeros_like(targets)
    passed = last = jnp.zeros(targets.shape, jnp.int32)
    for position in range(mass.shape[-1]):
        entry = mass[..., position]
        possible = entry != 0
        last = jnp.where(possible, position, last)
        below_last = jnp.where(possible, total, below_last)
        total = total + entry
        too_low = ~(total > targets)  # NaN passes them all
        passed = passed + too_low
        below = jnp.where(too_low, total, below)
    return jnp.minimum(passed, last), jnp.where(passed > last, below_last, below)
