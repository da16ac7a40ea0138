"""The most likely codes of an autoregressive distribution: greedy decoding and beam search.

This is no network but a search that runs one; it is in this room as the counterpart of the
transformer's sampler. A beam holds the W best beginnings of a datum's codes and extends each by
every value of the next code. W = 1 is greedy; with W = V**L nothing is dropped, and the best codes
are the exact mode. For draws in place of modes, call the distribution's own `sample`.

Each of the L steps runs the network on whole sequences, without a cache: decoding is for a look at
a few data, not for training.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.distributions import AutoregressiveCategorical, log_softmax
from pyro_dvae.ops.arguments import checked

__all__ = ["DecodedCodes", "decode_codes"]


class DecodedCodes(NamedTuple):
    """The W best codes of each datum, best first."""

    codes: Integer[Tensor, "W *batch L"]
    log_probs: Float[Tensor, "W *batch"]  # in nats; -inf where there are fewer than W codes


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
    anywhere = distribution.sample()  # codes of the right device, all of which are replaced
    codes = torch.zeros_like(anywhere).expand(beam_width, *batch, transformer.num_latents)
    log_probs = torch.full((beam_width, *batch), -torch.inf, device=codes.device)
    log_probs[0] = 0.0  # there is one empty beginning
    for position in range(transformer.num_latents):
        with torch.no_grad():
            logits = transformer(codes, distribution.context)[..., position, :]
        codes, log_probs = _extend(codes, log_probs, logits, position)
    return DecodedCodes(codes, log_probs)


def _extend(
    codes: Integer[Tensor, "W *batch L"],
    log_probs: Float[Tensor, "W *batch"],
    logits: Float[Tensor, "W *batch V"],
    position: int,
) -> tuple[Integer[Tensor, "W *batch L"], Float[Tensor, "W *batch"]]:
    """Every beginning with every next code, and the best W of these."""
    totals = log_probs[..., None] + log_softmax(logits)
    flat = totals.movedim(0, -2).flatten(start_dim=-2)  # (*batch, W * V)
    best, index = flat.topk(len(codes), dim=-1)
    index = index.movedim(-1, 0)
    parents = (index // logits.shape[-1])[..., None].expand(codes.shape)
    codes = codes.gather(0, parents)
    codes[..., position] = index % logits.shape[-1]
    return codes, best.movedim(-1, 0)
