"""Discrete distributions whose draws carry a gradient to their logits.

What a draw is and how its gradient is estimated is in `ops.relaxing`. A draw is scored by the
discrete distribution that it stands for: if a relaxed draw had a density of its own, it would be
one over the simplex, and no match for the probabilities of a discrete prior.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.kl import kl_divergence

from numpyro_dvae.distributions.logits import LOGIT, LOGITS, log_softmax, precise
from numpyro_dvae.ops import relaxing
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.bounds import (
    bernoulli_entropy,
    bernoulli_kl,
    categorical_entropy,
    categorical_kl,
)
from numpyro_dvae.ops.sampling import sample_codes

__all__ = ["RELAXATIONS", "PathwiseBernoulli", "PathwiseCategorical"]

RELAXATIONS = ("gumbel", "straight_through_gumbel", "straight_through", "reinmax", "gr_mck")

_FROM_GUMBELS = {
    "gumbel": relaxing.gumbel_softmax,
    "straight_through_gumbel": relaxing.straight_through_gumbel,
}
_FROM_A_DRAW = {"straight_through": relaxing.straight_through, "reinmax": relaxing.reinmax}


class PathwiseCategorical(Distribution):
    """One of V codes, drawn as a vector over them with a path for the gradient to its logits.

    Log-probabilities are those of the discrete distribution, linear in the vector: exact for
    one-hot vectors, and never a density of relaxed ones.

    Args:
        logits: Unnormalised log-probabilities, ``(*batch, V)``; -inf rules a code out.
        method: One of `RELAXATIONS`, as `ops.relaxing` has them. Draws of "gumbel" are points of
            the simplex, those of all others one-hot vectors.
        temperature: Of the softmax that makes the path; positive.
        num_gumbels: Gumbel vectors that "gr_mck" averages for each draw; no other method has any.
        validate_args: Whether to check arguments and values; None is NumPyro's own setting.

    Raises:
        ValueError: If `method` is not one of `RELAXATIONS`.
    """

    arg_constraints = {"logits": LOGITS}  # noqa: RUF012  (NumPyro's protocol)
    support = constraints.independent(constraints.unit_interval, 1)
    pytree_data_fields = ("logits", "temperature")
    pytree_aux_fields = ("method", "num_gumbels")
    has_rsample = True

    @checked
    def __init__(
        self,
        logits: Array,
        *,
        method: str = "gumbel",
        temperature: float | Array = 1.0,
        num_gumbels: int = 10,
        validate_args: bool | None = None,
    ) -> None:
        _check_method(method)
        self.logits = log_softmax(logits)
        self.method, self.temperature, self.num_gumbels = method, temperature, num_gumbels
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Array:
        """Probabilities of the codes."""
        return jnp.exp(self.logits)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Draws of shape ``sample_shape + batch_shape + (V,)``, with a gradient."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        logits = jnp.broadcast_to(self.logits, shape)
        code_key, key = jax.random.split(key)
        if self.method in _FROM_GUMBELS:
            gumbels = jax.random.gumbel(key, shape, logits.dtype)
            return _FROM_GUMBELS[self.method](logits, gumbels, self.temperature)
        size = (math.prod(sample_shape), *self.batch_shape)
        uniforms = jax.random.uniform(code_key, size, logits.dtype)
        codes = sample_codes(self.logits, uniforms).reshape(shape[:-1])
        hard = jax.nn.one_hot(codes, shape[-1], dtype=logits.dtype)
        if self.method == "gr_mck":
            noise = _exponentials(key, (self.num_gumbels, *shape), logits.dtype)
            return relaxing.gumbel_rao(logits, hard, noise, self.temperature)
        return _FROM_A_DRAW[self.method](logits, hard, self.temperature)

    def log_prob(self, value: Array) -> Array:
        """``Σ_v value_v log p_v``, in nats."""
        return relaxing.linear_log_prob(self.logits, jnp.asarray(value, self.logits.dtype))

    def entropy(self) -> Array:
        """Entropy of the code, in nats."""
        return categorical_entropy(self.logits)


class PathwiseBernoulli(Distribution):
    """A binary latent with a path for the gradient to its logit: the second of two codes.

    Args:
        logits: Those of a 1, ``(*batch,)``.
        method: As for `PathwiseCategorical`; draws of "gumbel" lie between 0 and 1, those of all
            others are 0 or 1.
        temperature: As for `PathwiseCategorical`.
        num_gumbels: As for `PathwiseCategorical`.
        validate_args: As for `PathwiseCategorical`.

    Raises:
        ValueError: If `method` is not one of `RELAXATIONS`.
    """

    arg_constraints = {"logits": LOGIT}  # noqa: RUF012  (NumPyro's protocol)
    support = constraints.unit_interval
    pytree_data_fields = ("logits", "temperature")
    pytree_aux_fields = ("method", "num_gumbels")
    has_rsample = True

    @checked
    def __init__(
        self,
        logits: Array,
        *,
        method: str = "gumbel",
        temperature: float | Array = 1.0,
        num_gumbels: int = 10,
        validate_args: bool | None = None,
    ) -> None:
        _check_method(method)
        self.logits = precise(logits)
        self.method, self.temperature, self.num_gumbels = method, temperature, num_gumbels
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Array:
        """Probability of a 1."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Draws of shape ``sample_shape + batch_shape``, with a gradient."""
        return self._codes.sample(key, sample_shape)[..., 1]

    def log_prob(self, value: Array) -> Array:
        """``value log p + (1 - value) log (1 - p)``, in nats."""
        value = jnp.asarray(value, self.logits.dtype)
        return self._codes.log_prob(jnp.stack([1.0 - value, value], axis=-1))

    def entropy(self) -> Array:
        """Entropy in nats."""
        return bernoulli_entropy(self.logits)

    @property
    def _codes(self) -> PathwiseCategorical:
        """Made anew from the logits, which are all that a pytree should hold of it."""
        pair = [jax.nn.log_sigmoid(-self.logits), jax.nn.log_sigmoid(self.logits)]
        return PathwiseCategorical(
            jnp.stack(pair, axis=-1),
            method=self.method,
            temperature=self.temperature,
            num_gumbels=self.num_gumbels,
            validate_args=False,
        )


def _kl_of_categoricals(p: PathwiseCategorical, q: PathwiseCategorical) -> Array:
    return categorical_kl(*jnp.broadcast_arrays(p.logits, q.logits))


def _kl_of_bernoullis(p: PathwiseBernoulli, q: PathwiseBernoulli) -> Array:
    return bernoulli_kl(*jnp.broadcast_arrays(p.logits, q.logits))


kl_divergence.add((PathwiseCategorical, PathwiseCategorical), _kl_of_categoricals)
kl_divergence.add((PathwiseBernoulli, PathwiseBernoulli), _kl_of_bernoullis)


def _check_method(method: str) -> None:
    if method not in RELAXATIONS:
        raise ValueError(f"`method` must be one of {RELAXATIONS}; got {method!r}.")


def _exponentials(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Standard exponential noise; its logarithm is finite."""
    return jnp.maximum(jax.random.exponential(key, shape, dtype), jnp.finfo(dtype).tiny)
