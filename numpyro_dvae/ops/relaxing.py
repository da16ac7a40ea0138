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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    log_probs: Float[Array, "*batch V"],
    gumbels: Float[Array, "*sample_batch V"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*sample_batch V"]:
    """A point of the simplex, the nearer to a vertex the lower the temperature.

    Example:
        >>> [f"{code:.4f}" for code in gumbel_softmax(jnp.zeros(2), jnp.array([1.0, 0.0]), 0.5)]
        ['0.8808', '0.1192']
    """
    return jax.nn.softmax((log_probs + gumbels) / temperature)


def straight_through_gumbel(
    log_probs: Float[Array, "*batch V"],
    gumbels: Float[Array, "*batch V"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch V"]:
    """The vertex where `gumbel_softmax` is largest, an exact draw, with the slope of the latter."""
    soft = gumbel_softmax(log_probs, gumbels, temperature)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    return with_slope(hard, soft)


def straight_through(
    log_probs: Float[Array, "*batch V"],
    hard: Float[Array, "*batch V"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch V"]:
    """The one-hot draw `hard`, with the slope of ``softmax(θ / T)``."""
    return with_slope(hard, jax.nn.softmax(log_probs / temperature))


def reinmax(
    log_probs: Float[Array, "*batch V"],
    hard: Float[Array, "*batch V"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch V"]:
    """The one-hot draw `hard`, with the slope of Heun's rule ([4], algorithm 2)."""
    softened = jax.lax.stop_gradient(jax.nn.log_softmax(log_probs / temperature))
    middle = jnp.where(hard > 0, jnp.log1p(jnp.exp(softened)), softened) - math.log(2.0)
    shift = _shift(middle, log_probs)
    slope = 2.0 * jax.nn.softmax(log_probs + shift) - 0.5 * jnp.exp(log_probs)
    return with_slope(hard, slope)


def gumbel_rao(
    log_probs: Float[Array, "*batch V"],
    hard: Float[Array, "*batch V"],
    exponentials: Float[Array, "M *batch V"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch V"]:
    """The one-hot draw `hard`, with the mean slope of M `gumbel_softmax` that have drawn it."""
    gumbels = conditional_gumbels(log_probs, hard, exponentials)
    return with_slope(hard, gumbel_softmax(log_probs, gumbels, temperature).mean(0))


def conditional_gumbels(
    log_probs: Float[Array, "*batch V"],
    hard: Float[Array, "*batch V"],
    exponentials: Float[Array, "M *batch V"],
) -> Float[Array, "M *batch V"]:
    """Gumbel noise g given that ``argmax(θ + g)`` is the code of `hard`; no gradient ([5], eq. 9).

    Args:
        log_probs: Normalised θ.
        hard: The one-hot draw, of a code that can be.
        exponentials: Standard exponential noise, above 0.
    """
    log_times = jnp.log(exponentials)  # of the arrival of each code, at rate 1
    first = jnp.max(jnp.where(hard > 0, log_times, -jnp.inf), axis=-1, keepdims=True)
    later = jnp.logaddexp(log_times - log_probs, first)
    return _shift(-jnp.where(hard > 0, first, later), log_probs)


def with_slope(
    values: Float[Array, "*shape"], path: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Exactly `values`, with the gradient of `path` and none of their own."""
    return jax.lax.stop_gradient(values) + (path - jax.lax.stop_gradient(path))  # the bracket is 0


def linear_log_prob(
    log_probs: Float[Array, "*#batch V"], value: Float[Array, "*#batch V"]
) -> Float[Array, "*batch"]:
    """``Σ_v value_v log p_v``: the log-probability of a vertex, and its mean within the simplex.

    -inf where `value` has mass on a code that cannot be.

    Example:
        >>> linear_log_prob(jnp.array([-1.0, -2.0]), jnp.array([0.0, 1.0]))
        Array(-2., dtype=float32)
    """
    impossible = jnp.isneginf(log_probs)
    total = jnp.sum(value * jnp.where(impossible, 0.0, log_probs), axis=-1)
    return jnp.where(jnp.any(impossible & (value > 0), axis=-1), -jnp.inf, total)


def _shift(target: Float[Array, "..."], log_probs: Float[Array, "..."]) -> Float[Array, "..."]:
    """What moves θ to the target, without gradient; 0 where -inf stays -inf."""
    moved = jnp.where(jnp.isneginf(log_probs), 0.0, target - log_probs)
    return jax.lax.stop_gradient(moved)
