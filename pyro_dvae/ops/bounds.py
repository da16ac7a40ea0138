"""Bounds on the log evidence, and entropies and KL divergences in closed form.

With K particles z_k from a guide q, ``log w_k = log p(x, z_k) - log q(z_k)``: the mean of
log w estimates the ELBO, the log of the mean of w the tighter importance-weighted bound
(IWAE) [1]. Entropies and KLs come from logits and are exact where a probability is 0
(0 · log 0 = 0), with the true gradients there, so a saturated network trains on.

Shapes: particles lead, as in ``(K, *batch)``; the codes of a categorical come last; a
Bernoulli's functions work elementwise. All values are in nats, of which a bit is `NATS_PER_BIT`.

References:
    [1] Burda, Grosse & Salakhutdinov. Importance weighted autoencoders. ICLR, 2016.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "NATS_PER_BIT",
    "bernoulli_entropy",
    "bernoulli_kl",
    "categorical_entropy",
    "categorical_kl",
    "importance_weighted_bound",
]

NATS_PER_BIT = math.log(2)  # a number of bits times this is one of nats


def importance_weighted_bound(
    log_weights: Float[Tensor, "K *batch"],
) -> Float[Tensor, "*batch"]:
    """Log of the mean weight of K particles; in expectation between the ELBO and log p(x).

    Example:
        >>> importance_weighted_bound(torch.tensor([1.0, 1.0, 1.0]))
        tensor(1.)
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def categorical_entropy(logits: Float[Tensor, "*batch codes"]) -> Float[Tensor, "*batch"]:
    """Entropy of categoricals, in [0, log codes]; a logit of -inf is a code of no mass.

    Example:
        >>> categorical_entropy(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor(0.6931)
    """
    return _entropy_terms(torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def bernoulli_entropy(logits: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Entropy of Bernoullis, in [0, log 2]; 0 at logits of ±inf."""
    return _entropy_terms(logsigmoid(logits)) + _entropy_terms(logsigmoid(-logits))


def categorical_kl(
    q_logits: Float[Tensor, "*batch codes"], p_logits: Float[Tensor, "*#batch codes"]
) -> Float[Tensor, "*batch"]:
    """KL(q ‖ p) of categoricals; +inf where q has mass and p has none."""
    log_q, log_p = torch.log_softmax(q_logits, dim=-1), torch.log_softmax(p_logits, dim=-1)
    return _kl_terms(log_q, log_p).sum(dim=-1)


def bernoulli_kl(
    q_logits: Float[Tensor, "*batch"], p_logits: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """KL(q ‖ p) of Bernoullis; +inf where q has mass and p has none.

    Example:
        >>> bernoulli_kl(torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([0.1109])
    """
    ones = _kl_terms(logsigmoid(q_logits), logsigmoid(p_logits))
    return ones + _kl_terms(logsigmoid(-q_logits), logsigmoid(-p_logits))


def _entropy_terms(log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-p log p, 0 where p = 0, and with a gradient of 0 there to log p."""
    return -torch.exp(log_probs) * torch.where(torch.isneginf(log_probs), 0.0, log_probs)


def _kl_terms(
    log_q: Float[Tensor, "*shape"], log_p: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Terms q (log q - log p), 0 where q = 0 even if p = 0, +inf where p alone is 0."""
    ratios = torch.where(torch.isneginf(log_q), 0.0, log_q - log_p)
    # exp(log_q) may underflow to 0, and 0 · inf would be NaN.
    return torch.where(torch.isposinf(ratios), ratios, torch.exp(log_q) * ratios)
