"""What every distribution over codes does with its logits: normalise, pick, share.

Logits are unnormalised log-probabilities ``(*batch, V)`` in nats, over the V values of a code; -inf
rules a value out. Networks may compute them in half precision, but log-densities are float32 or
better: summed over the latents of a datum, half precision would lose whole nats.

Particles lead, ``(K, *batch)``, and share one copy of the logits. To broadcast these to
``(K, *batch, V)`` would cost K passes over them; here particles are folded into the trailing axis
of one gather instead.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer, Shaped
from pyro.distributions import constraints
from torch import Tensor

from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.dtypes import precise, precise_dtype

__all__ = ["log_softmax", "pick_codes", "precise", "precise_dtype", "split_shared"]

LOGIT = constraints.real  # to torch, all but NaN are real: -inf too
LOGITS = constraints.independent(LOGIT, 1)


def log_softmax(logits: Shaped[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Log-probabilities of the V values of each code, in float32 or better."""
    return torch.log_softmax(logits, dim=-1, dtype=precise_dtype(logits.dtype))


def pick_codes(
    log_probs: Float[Tensor, "*batch V"], codes: Integer[Tensor, "*sample_batch"]
) -> Float[Tensor, "*sample_batch"]:
    """The log-probabilities of codes ``(*sample, *batch)``, in one pass over `log_probs`.

    The batch dims of both must agree; `split_shared` brings that about.
    """
    batch = log_probs.shape[:-1]
    index = codes.reshape(-1, *batch).movedim(0, -1)
    return log_probs.gather(-1, index).movedim(-1, 0).reshape(codes.shape)


@checked
def split_shared(array: Tensor, shape: Sequence[int], num_inner: int) -> tuple[Tensor, torch.Size]:
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
    num_batch = array.dim() - num_inner
    batch, inner = array.shape[:num_batch], array.shape[num_batch:]
    while batch and batch[0] == 1:
        batch = batch[1:]
    num_lead = len(shape) - len(batch)
    shared = array.reshape(batch + inner).expand(*shape[num_lead:], *inner)
    return shared, torch.Size(shape[:num_lead])
