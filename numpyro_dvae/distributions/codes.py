"""One code: an integer below V, or the one-hot vector that stands for it.

Particles lead the batch, ``(K, *batch)``, and the logits of a categorical latent are shared by all
of them, ``(*batch, V)``. The stock `Categorical` draws one Gumbel per value of each code, and
broadcasts the logits to ``(K, *batch, V)`` before it scores; the one here draws one uniform per
code and makes a single pass over the logits, whatever K.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped
from numpyro.distributions import CategoricalLogits, Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_dvae.distributions.logits import LOGITS, log_softmax, pick_codes, split_shared
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.bounds import categorical_entropy
from numpyro_dvae.ops.relaxing import linear_log_prob
from numpyro_dvae.ops.sampling import sample_codes

__all__ = ["Categorical", "OneHotCategorical"]


class Categorical(CategoricalLogits):
    """`numpyro.distributions.Categorical` whose particles share one copy of the logits.

    It takes the same arguments and has the same results, with log-densities in float32 or better.

    Args:
        probs: Probabilities of the codes, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a code out.
        validate_args: Whether to check arguments and values; None is NumPyro's own setting.

    Raises:
        ValueError: If both or neither of `probs` and `logits` are given.
    """

    arg_constraints = {"logits": LOGITS}  # noqa: RUF012  (NumPyro's protocol)

    @checked
    def __init__(
        self,
        probs: Array | None = None,
        logits: Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("Give one of `probs` and `logits`, not both or neither.")
        raw = jnp.log(jnp.asarray(probs)) if logits is None else jnp.asarray(logits)
        super().__init__(log_softmax(raw), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Codes of shape ``sample_shape + batch_shape``, from one uniform each."""
        size = (math.prod(sample_shape), *self.batch_shape)
        codes = sample_codes(self.logits, jax.random.uniform(key, size, self.logits.dtype))
        return codes.reshape(*sample_shape, *self.batch_shape)

    @validate_sample
    def log_prob(self, value: Shaped[Array | np.ndarray, "..."]) -> Array:
        """Log-probabilities of codes, in nats; leading dims of `value` are particles."""
        value = jnp.asarray(value).astype(int)
        shape = jnp.broadcast_shapes(jnp.shape(value), self.batch_shape)
        logits, _ = split_shared(self.logits, shape, 1)
        return pick_codes(logits, jnp.broadcast_to(value, shape))

    def entropy(self) -> Array:
        """Entropy in nats; codes that cannot be add nothing."""
        return categorical_entropy(self.logits)


class OneHotCategorical(Distribution):
    """One of V codes as a one-hot vector, as `pyro.distributions.OneHotCategorical`.

    Args:
        probs: Probabilities of the codes, ``(*batch, V)``.
        logits: Or their unnormalised logarithms; -inf rules a code out.
        validate_args: Whether to check arguments and values; None is NumPyro's own setting.

    Raises:
        ValueError: If both or neither of `probs` and `logits` are given.
    """

    arg_constraints = {"logits": LOGITS}  # noqa: RUF012  (NumPyro's protocol)
    support = constraints.simplex
    pytree_data_fields = ("logits",)
    has_enumerate_support = True

    @checked
    def __init__(
        self,
        probs: Array | None = None,
        logits: Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = Categorical(probs, logits).logits
        shapes = self.logits.shape[:-1], self.logits.shape[-1:]
        super().__init__(*shapes, validate_args=validate_args)

    @property
    def mean(self) -> Array:
        """Probabilities of the codes."""
        return jnp.exp(self.logits)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """One-hot vectors of shape ``sample_shape + batch_shape + (V,)``."""
        codes = Categorical(logits=self.logits).sample(key, sample_shape)
        return jax.nn.one_hot(codes, self.logits.shape[-1], dtype=self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log-probability of one-hot vectors, in nats."""
        return linear_log_prob(self.logits, jnp.asarray(value, self.logits.dtype))

    def entropy(self) -> Array:
        """Entropy in nats; codes that cannot be add nothing."""
        return categorical_entropy(self.logits)

    def enumerate_support(self, expand: bool = True) -> Array:
        """The V one-hot vectors, on a new leftmost dim."""
        size = self.logits.shape[-1]
        values = jnp.eye(size).reshape(size, *(1 for _ in self.batch_shape), size)
        shape = (size, *self.batch_shape, size)
        return jnp.broadcast_to(values, shape) if expand else values
