"""Ranks of a truth among draws, and whether they are uniform: simulation-based calibration.

If z* and x come from the model and the draws from its posterior given x, then z* is one more draw,
and the rank of any function of it among the draws is uniform on 0 ... K [1]. Discrete values tie;
breaking ties at random keeps the ranks uniform [2]. A statistic that depends on x, as log p(x, z),
finds guides that ignore the data, which ranks of z alone cannot [2].

Shapes: draws lead, as in ``(K, *batch)``; the truth and the uniforms have the batch.

References:
    [1] Talts, Betancourt, Simpson, Vehtari & Gelman. Validating Bayesian inference algorithms with
        simulation-based calibration. arXiv 1804.06788, 2018.
    [2] Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari. Simulation-based
        calibration checking for Bayesian computation. Bayesian Analysis, 2023.
"""

import jax.numpy as jnp
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float, Int, Real

from numpyro_dvae.ops.arguments import checked

__all__ = ["chi_square", "random_ranks"]


@checked
def random_ranks(
    truth: Real[Array, "*batch"],
    draws: Real[Array, "K *batch"],
    uniforms: Float[Array, "*batch"],
    tolerance: float = 0.0,
) -> Int[Array, "*batch"]:
    """Rank of the truth among K draws, in 0 ... K, at random among its ties.

    Args:
        truth: The value whose rank is asked for.
        draws: What it is compared with.
        uniforms: Random numbers in [0, 1), which break ties.
        tolerance: Values nearer than this are tied, as a part of ``1 + |truth|``: log-densities
            of equal states may differ by rounding.
    """
    slack = tolerance * (1.0 + jnp.abs(truth))
    below = jnp.sum(draws < truth - slack, axis=0)
    tied = jnp.sum(jnp.abs(draws - truth) <= slack, axis=0)
    return below + (uniforms * (tied + 1)).astype(int)


def chi_square(
    counts: Real[Array, "*batch bins"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Pearson's statistic of counts against equal ones, and its p-value."""
    counts = counts.astype(float)
    expected = jnp.mean(counts, axis=-1, keepdims=True)
    statistic = jnp.sum((counts - expected) ** 2 / expected, axis=-1)
    return statistic, gammaincc((counts.shape[-1] - 1) / 2, statistic / 2)
