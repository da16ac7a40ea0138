"""Bounds of several particles at once: learning signals (VIMCO) and antithetic pairs (DisARM).

With log weights l the bound of K particles is ``L = log (1/K) Σ exp l_k``. VIMCO [1] credits a
particle with what the bound owes to it: L less the bound with ``exp l_k`` replaced by a mean of
the other weights, which does not depend on particle k.

DisARM [2], [3] draws binary latents in pairs from one uniform u, ``z = 1[u < p]`` and
``z' = 1[1 - u <= p]``, so that they differ as often as they can. The expectation over u given the
pair leaves, for f the score of a draw,

    ½ (f(z) - f(z')) (z - z') max(p, 1 - p) = ½ (f(z) - f(z')) max(p, 1 - p) d(log q(z) - log q(z'))

as the gradient to a logit, where d is the derivative by that logit.

Shapes: particles lead, as in ``(K, *batch)``; log weights and scores are in nats.

References:
    [1] Mnih & Rezende. Variational inference for Monte Carlo objectives. ICML, 2016.
    [2] Dong, Mnih & Tucker. DisARM: an antithetic gradient estimator for binary latent
        variables. NeurIPS, 2020.
    [3] Yin, Ho, Yan, Qian & Zhou. Probabilistic best subset selection by gradient-based
        optimization (U2G). arXiv 2006.06448, 2020.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_dvae.ops.arguments import checked

__all__ = [
    "BASELINES",
    "antithetic_advantages",
    "antithetic_draw",
    "antithetic_factor",
    "log_sum_of_others",
    "multisample_signal",
]

BASELINES = ("geometric", "arithmetic")


@checked
def multisample_signal(
    log_weights: Float[Tensor, "K *batch"], baseline: str = "geometric"
) -> Float[Tensor, "K *batch"]:
    """What the bound ``log (1/K) Σ w`` owes to each particle, in nats (Mnih & Rezende [1]).

    Args:
        log_weights: Log weights of K >= 2 particles; -inf gives a particle no weight.
        baseline: What stands in for a particle's weight: the "geometric" or the "arithmetic"
            mean of the others'.

    Returns:
        The bound less the bound without the particle; no gradient. +inf for a particle that
        alone has weight, NaN where none has.

    Raises:
        ValueError: If `baseline` is another word, or K < 2.

    Example:
        >>> multisample_signal(torch.tensor([0.0, 2.0]))
        tensor([-0.5662,  1.4338])
    """
    if baseline not in BASELINES:
        raise ValueError(f"`baseline` must be one of {BASELINES}; got {baseline!r}.")
    log_weights = log_weights.detach()
    others = log_sum_of_others(log_weights)
    if baseline == "arithmetic":
        stand_in = others - math.log(log_weights.shape[0] - 1)
    else:
        stand_in = _mean_of_others(log_weights)
    return torch.logsumexp(log_weights, dim=0) - torch.logaddexp(others, stand_in)


def log_sum_of_others(log_values: Float[Tensor, "K *batch"]) -> Float[Tensor, "K *batch"]:
    """``log Σ_{j≠k} exp l_j`` for each k, at the cost of two sums.

    The others of the largest are summed by themselves; for any other k the largest stays in
    the sum, so that taking ``exp l_k`` from it cancels nothing.
    """
    num_particles = log_values.shape[0]
    if num_particles < 2:
        raise ValueError(
            f"Each particle needs another one: K >= 2 on axis 0; got {tuple(log_values.shape)}."
        )
    top, first = log_values.max(dim=0)
    places = torch.arange(num_particles, device=log_values.device)
    is_top = places.reshape(-1, *[1] * first.dim()) == first
    of_top = torch.logsumexp(log_values.masked_fill(is_top, -math.inf), dim=0)
    scaled = torch.exp(log_values - torch.where(torch.isneginf(top), 0.0, top))
    rest = torch.where(is_top, 1.0, scaled.sum(dim=0) - scaled)
    return torch.where(is_top, of_top, top + torch.log(rest))


def _mean_of_others(log_values: Float[Tensor, "K *batch"]) -> Float[Tensor, "K *batch"]:
    """Mean of the other entries; -inf if one of them is."""
    lost = torch.isneginf(log_values)
    finite = log_values.masked_fill(lost, 0.0)
    means = (finite.sum(dim=0) - finite) / (log_values.shape[0] - 1)
    return means.masked_fill(lost.sum(dim=0) > lost.long(), -math.inf)


@checked
def antithetic_draw(
    probs: Float[Tensor, "*#shape"], uniforms: Float[Tensor, "*#shape"], mirrored: bool
) -> Bool[Tensor, "*shape"]:
    """One half of a pair of Bernoulli draws: from u in [0, 1), or from 1 - u if `mirrored`.

    A probability of 0 never gives a 1, and one of 1 never a 0, at any u.
    """
    return uniforms >= 1.0 - probs if mirrored else uniforms < probs


def antithetic_factor(probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``max(p, 1 - p)``, what a logit's share of the score is multiplied by; no gradient.

    Example:
        >>> antithetic_factor(torch.tensor([0.2, 0.5, 0.9]))
        tensor([0.8000, 0.5000, 0.9000])
    """
    probs = probs.detach()
    return torch.maximum(probs, 1.0 - probs)


def antithetic_advantages(scores: Float[Tensor, "K *batch"]) -> Float[Tensor, "K *batch"]:
    """Each score less its partner's, which is K/2 places further; no gradient."""
    scores = scores.detach()
    return scores - scores.roll(scores.shape[0] // 2, dims=0)
