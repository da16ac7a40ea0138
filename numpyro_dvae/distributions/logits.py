"""What every distribution over codes does with its logits: normalise, pick, share.

Logits are unnormalised log-probabilities ``(*batch, V)`` in nats, over the V values of a code; -inf
rules a value out. Networks may compute them in half precision, but log-densities are float32 or
better: summed over the latents of a datum, half precision would lose whole nats.

Particles lead, ``(K, *batch)``, and share one copy of the logits. To broadcast these to
``(K, *batch, V)`` would cost K passes over them; here particles are folded into the trailing axis
of one gather instead. The same holds for particles under `jax.vmap`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped
from numpyro.distributions import constraints

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.dtypes import precise, precise_dtype

__all__ = ["log_softmax", "pick_codes", "precise", "precise_dtype", "split_shared"]


class _NotNaN(constraints.ParameterFreeConstraint):
    """Any number but NaN, as torch's `real`; NumPyro's leaves out -inf, which rules a code out."""

    event_dim = 0

    def __call__(self, x: Any) -> Any:
        return x == x

    def feasible_like(self, prototype: Any) -> Any:
        """Zeros, which are numbers."""
        return jnp.zeros_like(prototype)


LOGIT = _NotNaN()
LOGITS = constraints.independent(LOGIT, 1)


def log_softmax(logits: Shaped[Array, "*batch V"]) -> Float[Array, "*batch V"]:
    """Log-probabilities of the V values of each code, in float32 or better."""
    return jax.nn.log_softmax(precise(logits))


def pick_codes(
    log_probs: Float[Array, "*batch V"], codes: Integer[Array, "*sample_batch"]
) -> Float[Array, "*sample_batch"]:
    """The log-probabilities of codes ``(*sample, *batch)``, in one pass over `log_probs`.

    The batch dims of both must agree; `split_shared` brings that about. That of what is no code is
    -inf.
    """
    batch = log_probs.shape[:-1]
    index = jnp.moveaxis(codes.reshape(-1, *batch), 0, -1)
    index = jnp.where(index < 0, log_probs.shape[-1], index)  # not from the end
    picked = jnp.take_along_axis(log_probs, index, axis=-1, mode="fill", fill_value=-jnp.inf)
    return jnp.moveaxis(picked, -1, 0).reshape(codes.shape)


@checked
def split_shared(
    array: Array, shape: Sequence[int], num_inner: int
) -> tuple[Array, tuple[int, ...]]:
    """Split a batch `shape` into leading dims that share `array` and the dims that `array` has.

    It copies only where a dim of size one to the right of a larger one must grow.

    Args:
        array: Shape ``(*batch, *inner)``, where ``batch`` broadcasts to `shape`.
        shape: The batch shape of the draws.
        num_inner: How many inner dims `array` has.

    Returns:
        `array` without batch dims of size one on its left, the others grown to those of `shape`;
        and the part of `shape` that is left of these.
    """
    num_batch = array.ndim - num_inner
    batch, inner = array.shape[:num_batch], array.shape[num_batch:]
    while batch and batch[0] == 1:
        batch = batch[1:]
    num_lead = len(shape) - len(batch)
    shared = jnp.broadcast_to(array.reshape(batch + inner), (*shape[num_lead:], *inner))
    return shared, tuple(shape[:num_lead])
