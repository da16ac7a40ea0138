"""Soft assignments of vectors to the codes of a table, and whether they are sure and varied.

An encoder's vector z chooses code k with probability

    q(k | z) ∝ exp(-|z - e_k|² / 2 s²),

that of the codes' Gaussians of width s, all as likely [1]. As s falls the nearest code is chosen
with certainty. Two entropies in nats tell of such choices [2]: that of a single one, which falls as
inputs near their codes, and that of the mean of all, which rises as codes are used alike. Their
difference, ``E H[q] - γ H[E q]``, is a penalty that keeps codes in use. Where a code is that of
independent bits, q is the product of theirs: H[q] is the sum of their entropies, and E q of all
codes is one product of matrices, of the codes that either half of the bits makes.

Shapes: vectors are ``(*batch, D)``, tables ``(V, D)``.

References:
    [1] Takida et al. SQ-VAE: variational Bayes on discrete representation with self-annealed
        stochastic quantization. ICML, 2022.
    [2] Yu et al. Language model beats diffusion: tokenizer is key to visual generation. ICLR, 2024.
        Equation 5.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_dvae.ops.bounds import categorical_entropy
from pyro_dvae.ops.dtypes import precise
from pyro_dvae.ops.processes import coupled_rows
from pyro_dvae.ops.quantizing import squared_distances

__all__ = ["assignment_logits", "mean_entropy", "mean_entropy_of_bits", "own_entropies"]


def assignment_logits(
    inputs: Float[Tensor, "*batch D"],
    table: Float[Tensor, "V width"],
    scale: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch V"]:
    """``-|z - e_k|² / 2 s²`` for every code, up to which q(k | z) is normalised.

    Args:
        inputs: z.
        table: The vectors of the codes.
        scale: s, in the units of the vectors.
    """
    return squared_distances(inputs, table) / (-2.0 * scale**2)


def own_entropies(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """``H[q(k | z)]`` of each input, in nats."""
    return categorical_entropy(logits)


def mean_entropy(
    logits: Float[Tensor, "*batch V"], mask: Bool[Tensor, "*#batch"] | None = None
) -> Float[Tensor, ""]:
    """``H[mean of q(k | z)]`` over all inputs, or those of a mask, in nats; 0 of none."""
    log_probs = coupled_rows(torch.log_softmax(logits, -1).reshape(-1, logits.shape[-1]))
    if mask is None:
        log_mean = log_probs.logsumexp(0) - math.log(len(log_probs))
    else:
        kept = coupled_rows(mask.expand(logits.shape[:-1]).reshape(-1))
        count = kept.sum().clamp(min=1).to(log_probs.dtype)
        log_mean = torch.where(kept[:, None], log_probs, -math.inf).logsumexp(0) - count.log()
    mean = log_mean.exp()
    return -(mean * torch.where(mean > 0, log_mean, 0.0)).sum()


def mean_entropy_of_bits(
    logits: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*#batch"] | None = None
) -> Float[Tensor, ""]:
    """`mean_entropy` of codes of D independent bits, from the log-odds that each bit is 1."""
    flat = coupled_rows(precise(logits).reshape(-1, logits.shape[-1]))
    kept = torch.ones_like(flat[:, 0])
    if mask is not None:
        kept = coupled_rows(mask.expand(logits.shape[:-1]).reshape(-1).to(kept.dtype))
        flat = torch.where(kept[:, None] > 0, flat, 0.0)
    one, other = (_codes_of_bits(half) for half in flat.tensor_split(2, -1))
    with torch.autocast(flat.device.type, enabled=False):
        mean = (kept[:, None] * one).T @ other / kept.sum().clamp(min=1)
    return -(mean * torch.where(mean == 0, 1.0, mean).log()).sum()


def _codes_of_bits(logits: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """The probability of every code."""
    probs = logits.new_ones(len(logits), 1)
    for bit in logits.T[..., None]:
        probs = torch.cat([probs * torch.sigmoid(-bit), probs * torch.sigmoid(bit)], -1)
    return probs
