"""Draws of a code as a vector over its values, with a path for the gradient to its logits.

The gradient of ``E[f(z)]`` over a one-hot z is a sum over all codes; here it is estimated by the
slope of f at one vector y that depends on the log-probabilities θ. Each function has a value and a
derivative dy/dθ, J(p) = diag(p) - p pᵀ being that of a softmax:

- Gumbel-softmax [1, 2]: ``y = softmax((θ + g) / T)``, neither one-hot nor unbiased unless T -> 0;
- straight-through Gumbel-softmax [1]: the value is the one-hot argmax, the derivative that of y;
- straight-through [3]: the value is a draw z, the derivative J(softmax(θ / T)) / T; at T = 1 the
  gradient is exact for linear f, as if f(z) - f(z') were its slope times z - z' (Euler's rule);
- ReinMax [4]: the value is z, the derivative 2 J((z + softmax(θ / T)) / 2) - ½ J(softmax θ); at
  T = 1 exact for f of degree 2 in the vector of each code (Heun's rule);
- GR-MCK [5]: the value is z, the derivative that of Gumbel-softmax averaged over M Gumbel vectors
  drawn given z: the expectation of the straight-through Gumbel-softmax, with less variance.

Shapes: noise and one-hot draws are those of the log-probabilities, ``(*batch, V)``, normalised over
V; -inf rules a code out. Two codes are a Bernoulli latent.

References:
    [1] Jang, Gu & Poole. Categorical reparameterization with Gumbel-softmax. ICLR, 2017.
    [2] Maddison, Mnih & Teh. The concrete distribution. ICLR, 2017.
    [3] Bengio, Léonard & Courville. Estimating or propagating gradients through stochastic
        neurons for conditional computation. arXiv 1308.3432, 2013.
    [4] Liu, Dong, Liu, Yu & Gao. Bridging discrete and backpropagation: straight-through and
        beyond. NeurIPS, 2023.
    [5] Paulus, Maddison & Krause. Rao-Blackwellizing the straight-through Gumbel-softmax gradient
        estimator. ICLR, 2021.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "conditional_gumbels",
    "gumbel_rao",
    "gumbel_softmax",
    "linear_log_prob",
    "reinmax",
    "straight_through",
    "straight_through_gumbel",
    "with_slope",
]


def gumbel_softmax(
    log_probs: Float[Tensor, "*batch V"],
    gumbels: Float[Tensor, "*sample_batch V"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, "*sample_batch V"]:
    """A point of the simplex, the nearer to a vertex the lower the temperature.

    Example:
        >>> gumbel_softmax(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]), 0.5)
        tensor([0.8808, 0.1192])
    """
    return torch.softmax((log_probs + gumbels) / temperature, dim=-1)


def straight_through_gumbel(
    log_probs: Float[Tensor, "*batch V"],
    gumbels: Float[Tensor, "*batch V"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch V"]:
    """The vertex where `gumbel_softmax` is largest, an exact draw, with the slope of the latter."""
    soft = gumbel_softmax(log_probs, gumbels, temperature)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return with_slope(hard, soft)


def straight_through(
    log_probs: Float[Tensor, "*batch V"],
    hard: Float[Tensor, "*batch V"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch V"]:
    """The one-hot draw `hard`, with the slope of ``softmax(θ / T)``."""
    return with_slope(hard, torch.softmax(log_probs / temperature, dim=-1))


def reinmax(
    log_probs: Float[Tensor, "*batch V"],
    hard: Float[Tensor, "*batch V"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch V"]:
    """The one-hot draw `hard`, with the slope of Heun's rule ([4], algorithm 2)."""
    softened = torch.log_softmax(log_probs / temperature, dim=-1).detach()
    middle = torch.where(hard > 0, torch.log1p(softened.exp()), softened) - math.log(2.0)
    shift = _shift(middle, log_probs)
    slope = 2.0 * torch.softmax(log_probs + shift, dim=-1) - 0.5 * log_probs.exp()
    return with_slope(hard, slope)


def gumbel_rao(
    log_probs: Float[Tensor, "*batch V"],
    hard: Float[Tensor, "*batch V"],
    exponentials: Float[Tensor, "M *batch V"],
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch V"]:
    """The one-hot draw `hard`, with the mean slope of M `gumbel_softmax` that have drawn it."""
    gumbels = conditional_gumbels(log_probs, hard, exponentials)
    return with_slope(hard, gumbel_softmax(log_probs, gumbels, temperature).mean(dim=0))


def conditional_gumbels(
    log_probs: Float[Tensor, "*batch V"],
    hard: Float[Tensor, "*batch V"],
    exponentials: Float[Tensor, "M *batch V"],
) -> Float[Tensor, "M *batch V"]:
    """Gumbel noise g given that ``argmax(θ + g)`` is the code of `hard`; no gradient ([5], eq. 9).

    Args:
        log_probs: Normalised θ.
        hard: The one-hot draw, of a code that can be.
        exponentials: Standard exponential noise, above 0.
    """
    log_times = torch.log(exponentials)  # of the arrival of each code, at rate 1
    first = torch.where(hard > 0, log_times, -math.inf).amax(dim=-1, keepdim=True)
    later = torch.logaddexp(log_times - log_probs, first)
    return _shift(-torch.where(hard > 0, first, later), log_probs)


def with_slope(
    values: Float[Tensor, "*shape"], path: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Exactly `values`, with the gradient of `path` and none of their own."""
    return values.detach() + (path - path.detach())  # the bracket is exactly 0


def linear_log_prob(
    log_probs: Float[Tensor, "*#batch V"], value: Float[Tensor, "*#batch V"]
) -> Float[Tensor, "*batch"]:
    """``Σ_v value_v log p_v``: the log-probability of a vertex, and its mean within the simplex.

    -inf where `value` has mass on a code that cannot be.

    Example:
        >>> linear_log_prob(torch.tensor([-1.0, -2.0]), torch.tensor([0.0, 1.0]))
        tensor(-2.)
    """
    impossible = torch.isneginf(log_probs)
    total = (value * torch.where(impossible, 0.0, log_probs)).sum(dim=-1)
    return torch.where((impossible & (value > 0)).any(dim=-1), -math.inf, total)


def _shift(target: Float[Tensor, "..."], log_probs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What moves θ to the target, without gradient; 0 where -inf stays -inf."""
    return torch.where(torch.isneginf(log_probs), 0.0, target - log_probs).detach()
