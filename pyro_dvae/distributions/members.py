"""The distribution of one discrete site under a truncated posterior: a list of values, weighted.

A state of a datum may span several sites, or several cells of a plate within the datum. These are
drawn together, as one member of the list; the density of each is then conditional on those before
it, so that the densities of all sites and cells add up to that of the state.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution

from pyro_dvae.ops.arguments import checked

__all__ = ["Members"]


class Members(TorchDistribution):
    """One of S listed values for each datum.

    Args:
        values: What each member says of this site, ``(S, *batch, *event)``.
        log_weights: The members' unnormalised log-probabilities in nats, ``(S, *batch)``; of size 1
            in `cell_dims`, as a datum's cells have one member in common.
        event_dim: How many dims of `values` are the event's.
        cell_dims: The batch dims (negative) of plates that lie within a datum.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's protocol)
    has_rsample = False

    @checked
    def __init__(
        self,
        values: Tensor,
        log_weights: Tensor,
        event_dim: int,
        cell_dims: tuple[int, ...] = (),
    ) -> None:
        batch = values.shape[1 : values.dim() - event_dim]
        batch = torch.Size(broadcast_shape(batch, log_weights.shape[1:]))
        event = values.shape[values.dim() - event_dim :]
        data = [1 if dim - len(batch) in cell_dims else size for dim, size in enumerate(batch)]
        self.values = _padded(values, len(batch) + event_dim).expand(-1, *batch, *event)
        self.log_weights = _padded(log_weights, len(batch)).expand(-1, *data)
        self.cell_dims = cell_dims
        super().__init__(batch, event, validate_args=False)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "Members":
        """The same members for a larger batch shape."""
        shape = torch.Size(batch_shape)
        values = _padded(self.values, len(shape) + self.event_dim)
        values = values.expand(-1, *shape, *self.event_shape)
        return Members(values, self.log_weights, self.event_dim, self.cell_dims)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Any value: what is not listed has density 0."""
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Values ``sample_shape + batch_shape + event_shape`` of members drawn by weight."""
        sample_shape = torch.Size(sample_shape)
        member = torch.distributions.Categorical(logits=self.log_weights.movedim(0, -1))
        index = member.sample((sample_shape.numel(),))
        index = index.reshape(*index.shape, *[1] * self.event_dim)
        index = index.expand(-1, *self.batch_shape, *self.event_shape)
        return self.values.gather(0, index).reshape(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each cell given those before it, in nats; -inf of unlisted values."""
        matches = self.matches(value)
        shape, log_weights = matches.shape[1:], _padded(self.log_weights, matches.dim() - 1)
        matches, log_weights = (_cells_last(x, self.cell_dims) for x in (matches, log_weights))
        so_far = matches.cumprod(-1).bool()
        joint = torch.where(so_far, log_weights, -math.inf).logsumexp(0)
        total = log_weights.logsumexp(0).expand(*joint.shape[:-1], 1)
        before = torch.cat([total, joint[..., :-1]], -1)
        log_prob = torch.where(joint == -math.inf, joint, joint - before)
        log_prob = log_prob.reshape(*joint.shape[:-1], *(shape[dim] for dim in self.cell_dims))
        return log_prob.movedim(tuple(range(-len(self.cell_dims), 0)), self.cell_dims)

    def matches(self, value: Tensor) -> Bool[Tensor, "S *batch"]:
        """Whether each member has this value in each cell."""
        values = _padded(self.values, max(value.dim(), self.values.dim() - 1))
        same = values == value
        return same.flatten(same.dim() - self.event_dim).all(-1) if self.event_dim else same

    def given(self, value: Tensor) -> Float[Tensor, "S *batch"]:
        """Log-weights of the members that have this value, -inf of the others; for later sites."""
        matches = self.matches(value)
        for dim in self.cell_dims:
            matches = matches.all(dim, keepdim=True)
        return torch.where(matches, _padded(self.log_weights, matches.dim() - 1), -math.inf)


def _padded(value: Tensor, num_dims: int) -> Tensor:
    """A view with `num_dims` dims to the right of the members'."""
    return value.reshape(len(value), *[1] * (num_dims + 1 - value.dim()), *value.shape[1:])


def _cells_last(value: Tensor, cell_dims: tuple[int, ...]) -> Tensor:
    """The cells of a datum on one last dim, of size 1 if it has but one."""
    moved = value.movedim(cell_dims, tuple(range(-len(cell_dims), 0)))
    return moved.reshape(*moved.shape[: moved.dim() - len(cell_dims)], -1)
