"""Weights of the particles of a policy search, and their control variate.

A policy search asks for the distribution that gains most of ``E_q[R] + β H(q)`` while
it stays near the guide q_θ. With η the price of a nat of KL(q ‖ q_θ) and T = η + β,

    q*(z) ∝ exp((R(z) + η log q_θ(z)) / T) = q_θ(z) exp((R(z) - β log q_θ(z)) / T),

one natural-gradient (mirror descent) step of size 1/T [1]. Particles drawn from q_θ represent
this target by self-normalised weights ``w_k ∝ exp(scores_k / T)``, where
``scores = R - β log q_θ``. A constant added to R changes neither.

Shapes: particles lead, as in ``(K, *batch)``;
rewards, scores, β and T are in nats.

References:
    [1] Discrete variational autoencoding via policy search. ICLR, 2026.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["centered_weights", "count_copies", "fill_impossible", "policy_weights"]


def policy_weights(
    scores: Float[Tensor, "K *batch"], temperature: float | Float[Tensor, "*#batch"]
) -> Float[Tensor, "K *batch"]:
    """Weights ``∝ exp(scores / T)``, summing to 1 over axis 0 and carrying no gradient.

    The scores are measured from their top before the division, which keeps their last
    digits when T is small.

    Example:
        >>> policy_weights(torch.tensor([0.0, 2.0]), 2.0)
        tensor([0.2689, 0.7311])
    """
    scores = scores.detach()
    return torch.softmax((scores - scores.amax(dim=0)) / temperature, dim=0)


def centered_weights(weights: Float[Tensor, "K *batch"]) -> Float[Tensor, "K *batch"]:
    """Weights less 1/K: the same expected gradient, since E[∇ log q] = 0, with less noise.

    Example:
        >>> centered_weights(torch.tensor([0.25, 0.75]))
        tensor([-0.2500,  0.2500])
    """
    return weights - 1.0 / weights.shape[0]


def count_copies(codes: Shaped[Tensor, "K *batch D"]) -> Int[Tensor, "K *batch"]:
    """How many of the K particles hold the same D codes as this one, itself included.

    Example:
        >>> count_copies(torch.tensor([[1, 0], [1, 1], [1, 0]]))
        tensor([2, 1, 2])
    """
    # One particle at a time: all pairs at once would need K times the memory of the codes.
    return torch.stack([(codes == particle).all(dim=-1).sum(dim=0) for particle in codes])


def fill_impossible(
    scores: Float[Tensor, "K *batch"], probs: Float[Tensor, "K *batch"] | None = None
) -> Float[Tensor, "K *batch"]:
    """Scores with the mean of the possible particles in place of -inf; 0 where none is possible.

    An estimator that compares scores then gets its gradient from the possible particles alone.

    Args:
        scores: Of each particle; those of -inf are replaced, without gradient.
        probs: Weights of the mean; all alike if left out.
    """
    possible = scores != -torch.inf
    weights = possible.to(scores.dtype) if probs is None else possible * probs.detach()
    total = (weights * torch.where(possible, scores.detach(), 0.0)).sum(dim=0)
    mass = weights.sum(dim=0)
    mean = total / torch.where(mass > 0, mass, 1.0)
    return torch.where(possible, scores, mean)
