"""k-means: vectors that a codebook starts at.

Centres begin far from one another (k-means++, `quantizing.spread_codes`). Each step moves a centre
to the mean of the inputs that are nearest to it, which is `quantizing.update_codebook` that forgets
all; one that has no inputs stays.

References:
    [1] Lloyd. Least squares quantization in PCM. IEEE Transactions on Information Theory, 1982.
    [2] Arthur & Vassilvitskii. k-means++: the advantages of careful seeding. SODA, 2007.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.quantizing import (
    CodebookState,
    code_counts,
    code_sums,
    nearest_codes,
    spread_codes,
    update_codebook,
)

__all__ = ["k_means"]


@checked
def k_means(
    inputs: Float[Array, "N D"], uniforms: Float[Array, "V"], *, num_steps: int = 10
) -> CodebookState:
    """Cluster inputs around V centres.

    Args:
        inputs: At least V of them; no gradient.
        uniforms: One number in [0, 1) for each centre, see `spread_codes`.
        num_steps: Moves of all centres, at least 1.

    Returns:
        The centres, and the number and the sum of the inputs of each.

    Raises:
        ValueError: If there are fewer inputs than centres, or no steps.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    inputs = jax.lax.stop_gradient(inputs)
    centres = spread_codes(inputs, uniforms)
    state = CodebookState(centres, jnp.zeros_like(centres[:, 0]), jnp.zeros_like(centres))

    def step(_: Any, state: CodebookState) -> CodebookState:
        codes = nearest_codes(inputs, state.table)
        counts = code_counts(codes, len(centres))
        sums = code_sums(inputs, codes, len(centres))
        return update_codebook(state, counts, sums, decay=0.0, smoothing=0.0)

    return jax.lax.fori_loop(0, num_steps, step, state)
