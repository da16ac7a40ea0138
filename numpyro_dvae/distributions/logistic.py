"""The discretised logistic: integers 0 to V - 1, as the bytes of an image are."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from numpyro_dvae.ops.arguments import check_counts, checked

__all__ = ["DiscretizedLogistic"]


class DiscretizedLogistic(Distribution):
    """A logistic variable rounded to the next of the integers 0 to V - 1.

    With ``a = (x + 1/2 - loc) / scale`` and ``b = (x - 1/2 - loc) / scale``,

        P(x) = sigmoid(a) - sigmoid(b),     P(0) = sigmoid(a),     P(V - 1) = 1 - sigmoid(b),

    so that the log-density of an image in nats, over its number of entries times log 2, is in bits
    per dimension (Salimans et al., PixelCNN++, ICLR 2017, section 2.1). It is computed as
    ``log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))``, exact however small.

    Args:
        loc: Centre, in units of x, ``(*batch,)``.
        scale: Scale, positive, ``(*batch,)``.
        num_values: V, at least 2.

    Example:
        >>> fn = DiscretizedLogistic(jnp.array(1.0), jnp.array(0.5), 3)
        >>> print(jnp.array_str(jnp.exp(fn.log_prob(jnp.arange(3.0))), precision=4))
        [0.2689 0.4621 0.2689]
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("num_values",)
    has_rsample = False  # NumPyro's default would say that its draws have a pathwise gradient

    @checked
    def __init__(
        self,
        loc: Float[Array, "*batch"],
        scale: Float[Array, "*batch"],
        num_values: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        check_counts(num_values=num_values, least=2)
        shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        self.loc, self.scale = (jnp.broadcast_to(x, shape) for x in (loc, scale))
        self.num_values = num_values
        super().__init__(shape, (), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers 0 to V - 1."""
        return constraints.integer_interval(0, self.num_values - 1)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """The mean: the sum over v of P(x >= v)."""

        def add(v: Array, total: Array) -> Array:
            return total + jax.nn.sigmoid((self.loc - v + 0.5) / self.scale)

        return jax.lax.fori_loop(1, self.num_values, add, jnp.zeros_like(self.loc))

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Float[Array, "*sample_batch"]:
        """Integers, as floating-point numbers."""
        shape = (*sample_shape, *self.batch_shape)
        value = self.loc + self.scale * jax.random.logistic(key, shape, self.loc.dtype)
        return jnp.clip(jnp.round(jax.lax.stop_gradient(value)), 0, self.num_values - 1)

    @validate_sample
    def log_prob(
        self, value: Shaped[Array, "*value"], intermediates: Any = None
    ) -> Float[Array, "*shape"]:
        """Log-probability of each integer, in nats."""
        above, below = ((value + half - self.loc) / self.scale for half in (0.5, -0.5))
        between = jnp.log(-jnp.expm1(-1.0 / self.scale))
        log_above = jnp.where(value < self.num_values - 1, jax.nn.log_sigmoid(above), 0.0)
        log_below = jnp.where(value > 0, jax.nn.log_sigmoid(-below), 0.0)
        at_edge = (value <= 0) | (value >= self.num_values - 1)
        return log_above + log_below + jnp.where(at_edge, 0.0, between)
