"""The most likely codes of an autoregressive distribution: greedy decoding and beam search.

This is no network but a search that runs one; it is in this room as the counterpart of the
transformer's sampler. A beam holds the W best beginnings of a datum's codes and extends each by
every value of the next code. W = 1 is greedy; with W = V**L nothing is dropped, and the best codes
are the exact mode. For draws in place of modes, call the distribution's own `sample`.

Each of the L steps runs the network on whole sequences, without a cache: decoding is for a look at
a few data, not for training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from numpyro.distributions import Distribution

from numpyro_dvae.distributions import AutoregressiveCategorical, log_softmax, precise_dtype
from numpyro_dvae.ops.arguments import checked

__all__ = ["DecodedCodes", "decode_codes"]


class DecodedCodes(NamedTuple):
    """The W best codes of each datum, best first."""

    codes: Integer[Array, "W *batch L"]
    log_probs: Float[Array, "W *batch"]  # in nats; -inf where there are fewer than W codes


@checked
def decode_codes(distribution: Distribution, *, beam_width: int = 1) -> DecodedCodes:
    """Search for the most likely codes of each datum, without gradient.

    Args:
        distribution: `AutoregressiveCategorical`, as from ``guide.posterior(x)``, or a prior.
        beam_width: Beginnings that a beam holds, W; 1 is greedy.

    Raises:
        ValueError: If `beam_width` is below 1, or `distribution` is of another kind.
    """
    if beam_width < 1:
        raise ValueError(f"`beam_width` must be at least 1; got {beam_width}.")
    if not isinstance(distribution, AutoregressiveCategorical):
        raise ValueError(
            "`distribution` must be an AutoregressiveCategorical; got "
            f"{type(distribution).__name__}. Of independent codes, take the argmax of each."
        )
    transformer, batch = distribution.transformer, distribution.batch_shape
    codes = jnp.zeros((beam_width, *batch, transformer.num_latents), int)
    logits = jax.eval_shape(transformer, codes, distribution.context)
    log_probs = jnp.full((beam_width, *batch), -jnp.inf, precise_dtype(logits.dtype))
    log_probs = log_probs.at[0].set(0.0)  # there is one empty beginning

    def step(position: Any, beams: DecodedCodes) -> DecodedCodes:
        logits = transformer(beams.codes, distribution.context)[..., position, :]
        return DecodedCodes(*_extend(*beams, jax.lax.stop_gradient(logits), position))

    return jax.lax.fori_loop(0, transformer.num_latents, step, DecodedCodes(codes, log_probs))


def _extend(
    codes: Integer[Array, "W *batch L"],
    log_probs: Float[Array, "W *batch"],
    logits: Float[Array, "W *batch V"],
    position: Any,
) -> tuple[Integer[Array, "W *batch L"], Float[Array, "W *batch"]]:
    """Every beginning with every next code, and the best W of these."""
    totals = log_probs[..., None] + log_softmax(logits)
    flat = jnp.moveaxis(totals, 0, -2)
    flat = flat.reshape(*flat.shape[:-2], -1)  # (*batch, W * V)
    best, index = jax.lax.top_k(flat, len(codes))
    index = jnp.moveaxis(index, -1, 0)
    codes = jnp.take_along_axis(codes, (index // logits.shape[-1])[..., None], axis=0)
    codes = codes.at[..., position].set(index % logits.shape[-1])
    return codes, jnp.moveaxis(best, -1, 0)
