"""The distribution of one discrete site under a truncated posterior: a list of values, weighted.

A state of a datum may span several sites, or several cells of a plate within the datum. These are
drawn together, as one member of the list; the density of each is then conditional on those before
it, so that the densities of all sites and cells add up to that of the state.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution, constraints

from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.sampling import sample_codes

__all__ = ["Members"]


class Members(Distribution):
    """One of S listed values for each datum.

    Args:
        values: What each member says of this site, ``(S, *batch, *event)``.
        log_weights: The members' unnormalised log-probabilities in nats, ``(S, *batch)``; of size 1
            in `cell_dims`, as a datum's cells have one member in common.
        event_dim: How many dims of `values` are the event's.
        cell_dims: The batch dims (negative) of plates that lie within a datum.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's protocol)
    pytree_data_fields = ("values", "log_weights")
    pytree_aux_fields = ("cell_dims",)
    has_rsample = False  # NumPyro's default would say that its draws have a pathwise gradient

    @checked
    def __init__(
        self,
        values: Array,
        log_weights: Array,
        event_dim: int,
        cell_dims: tuple[int, ...] = (),
    ) -> None:
        batch = values.shape[1 : values.ndim - event_dim]
        batch = jnp.broadcast_shapes(batch, log_weights.shape[1:])
        event = values.shape[values.ndim - event_dim :]
        data = [1 if dim - len(batch) in cell_dims else size for dim, size in enumerate(batch)]
        values = _padded(values, len(batch) + event_dim)
        self.values = jnp.broadcast_to(values, (len(values), *batch, *event))
        log_weights = _padded(log_weights, len(batch))
        self.log_weights = jnp.broadcast_to(log_weights, (len(values), *data))
        self.cell_dims = cell_dims
        super().__init__(batch, event, validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Any value: what is not listed has density 0."""
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Values ``sample_shape + batch_shape + event_shape`` of members drawn by weight."""
        size = (math.prod(sample_shape), *self.log_weights.shape[1:])
        log_weights = jnp.moveaxis(self.log_weights, 0, -1)
        index = sample_codes(log_weights, jax.random.uniform(key, size))
        index = index.reshape(*index.shape, *(1 for _ in self.event_shape))
        drawn = jnp.take_along_axis(self.values, index, axis=0)
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of each cell given those before it, in nats; -inf of unlisted values."""
        matches = self.matches(value)
        shape, log_weights = matches.shape[1:], _padded(self.log_weights, matches.ndim - 1)
        matches, log_weights = (_cells_last(x, self.cell_dims) for x in (matches, log_weights))
        so_far = jnp.cumprod(matches, -1).astype(bool)
        joint = jax.nn.logsumexp(jnp.where(so_far, log_weights, -math.inf), axis=0)
        total = jnp.broadcast_to(jax.nn.logsumexp(log_weights, axis=0), (*joint.shape[:-1], 1))
        before = jnp.concatenate([total, joint[..., :-1]], -1)
        log_prob = jnp.where(jnp.isneginf(joint), joint, joint - before)
        log_prob = log_prob.reshape(*joint.shape[:-1], *(shape[dim] for dim in self.cell_dims))
        return jnp.moveaxis(log_prob, range(-len(self.cell_dims), 0), self.cell_dims)

    def matches(self, value: Array) -> Bool[Array, "S *batch"]:
        """Whether each member has this value in each cell."""
        values = _padded(self.values, max(jnp.ndim(value), self.values.ndim - 1))
        same = values == value
        return same.all(tuple(range(-self.event_dim, 0))) if self.event_dim else same

    def given(self, value: Array) -> Float[Array, "S *batch"]:
        """Log-weights of the members that have this value, -inf of the others; for later sites."""
        matches = self.matches(value).all(self.cell_dims, keepdims=True)
        return jnp.where(matches, _padded(self.log_weights, matches.ndim - 1), -math.inf)


def _padded(value: Array, num_dims: int) -> Array:
    """A view with `num_dims` dims to the right of the members'."""
    return value.reshape(len(value), *(1,) * (num_dims + 1 - value.ndim), *value.shape[1:])


def _cells_last(value: Array, cell_dims: tuple[int, ...]) -> Array:
    """The cells of a datum on one last dim, of size 1 if it has but one."""
    moved = jnp.moveaxis(value, cell_dims, range(-len(cell_dims), 0))
    return moved.reshape(*moved.shape[: moved.ndim - len(cell_dims)], -1)
