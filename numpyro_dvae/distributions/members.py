"""The distribution of one discrete site under a truncated posterior: a list of values, weighted.

Where several sites or several cells of a plate make up one state, they are drawn together; the
density of each is then conditional on those before it, so that the sum of all is exact.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution, constraints

from numpyro_dvae.distributions import sample_codes


class Members(Distribution):
    """One of S listed values for each datum.

    Args:
        values: ``(S, *batch, *event)``.
        log_weights: ``(S, *batch)``, of size 1 in the batch dims that lie within a datum.
        event_dim: How many dims of `values` are the event's.
        own: The batch dims (negative) that lie within a datum.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (NumPyro's protocol)
    pytree_data_fields = ("values", "log_weights")
    pytree_aux_fields = ("own",)
    has_rsample = False  # NumPyro's default would say that its draws have a pathwise gradient

    def __init__(
        self, values: Array, log_weights: Array, event_dim: int, own: tuple[int, ...] = ()
    ) -> None:
        batch = values.shape[1 : values.ndim - event_dim]
        batch = jnp.broadcast_shapes(batch, log_weights.shape[1:])
        event = values.shape[values.ndim - event_dim :]
        kept = [1 if dim - len(batch) in own else size for dim, size in enumerate(batch)]
        padded = _padded(values, len(batch) + event_dim)
        self.values = jnp.broadcast_to(padded, (len(values), *batch, *event))
        log_weights = _padded(log_weights, len(batch))
        self.log_weights = jnp.broadcast_to(log_weights, (len(values), *kept))
        self.own = own
        super().__init__(batch, event, validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Any value: what is not listed has density 0."""
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: Sequence[int] = ()) -> Array:
        """Values of members that are drawn by their weights."""
        kept = self.log_weights.shape[1:]
        uniforms = jax.random.uniform(key, (math.prod(sample_shape), *kept))
        index = sample_codes(jnp.moveaxis(self.log_weights, 0, -1), uniforms)
        index = index.reshape(*index.shape, *(1 for _ in self.event_shape))
        drawn = jnp.take_along_axis(self.values, index, axis=0)
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Of each cell given those before it in the datum; -inf outside of the list."""
        matches = self.matches(value)
        log_weights = _padded(self.log_weights, matches.ndim - 1)
        if not self.own:
            joint = _log_sum(jnp.where(matches, log_weights, -math.inf))
            return joint - _log_sum(log_weights)
        shape, matches = matches.shape[1:], _cells_last(matches, self.own)
        upto = jnp.cumprod(matches, -1).astype(bool)
        joint = _log_sum(jnp.where(upto, _cells_last(log_weights, self.own), -math.inf))
        total = jnp.broadcast_to(_log_sum(_cells_last(log_weights, self.own)), joint.shape)
        before = jnp.concatenate([total[..., :1], joint[..., :-1]], -1)
        log_prob = jnp.where(jnp.isneginf(joint), joint, joint - before)
        log_prob = log_prob.reshape(*joint.shape[:-1], *(shape[dim] for dim in self.own))
        return jnp.moveaxis(log_prob, range(-len(self.own), 0), self.own)

    def matches(self, value: Array) -> Bool[Array, "S *batch"]:
        """Which members have this value in a cell."""
        values = _padded(self.values, max(jnp.ndim(value), self.values.ndim - 1))
        same = values == value
        return same.all(tuple(range(-self.event_dim, 0))) if self.event_dim else same

    def given(self, value: Array) -> Float[Array, "S *batch"]:
        """Log-weights of the members that have this value, -inf of the others; for later sites."""
        matches = self.matches(value).all(self.own, keepdims=True)
        return jnp.where(matches, _padded(self.log_weights, matches.ndim - 1), -math.inf)


def _log_sum(values: Float[Array, "S *batch"]) -> Float[Array, "*batch"]:
    return jax.nn.logsumexp(values, axis=0)


def _padded(value: Array, dims: int) -> Array:
    """View with `dims` dims right of the leading one."""
    return value.reshape(len(value), *(1,) * (dims + 1 - value.ndim), *value.shape[1:])


def _cells_last(value: Array, own: tuple[int, ...]) -> Array:
    """The dims of a datum's cells as one last dim."""
    moved = jnp.moveaxis(value, own, range(-len(own), 0))
    return moved.reshape(*moved.shape[: moved.ndim - len(own)], -1)
