"""The distribution of one discrete site under a truncated posterior: a list of values, weighted.

Where several sites or several cells of a plate make up one state, they are drawn together; the
density of each is then conditional on those before it, so that the sum of all is exact.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor


class Members(TorchDistribution):
    """One of S listed values for each datum.

    Args:
        values: ``(S, *batch, *event)``.
        log_weights: ``(S, *batch)``, of size 1 in the batch dims that lie within a datum.
        event_dim: How many dims of `values` are the event's.
        own: The batch dims (negative) that lie within a datum.
    """

    has_rsample = False
    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(
        self, values: Tensor, log_weights: Tensor, event_dim: int, own: tuple[int, ...] = ()
    ) -> None:
        batch = torch.Size(
            broadcast_shape(values.shape[1 : values.dim() - event_dim], log_weights.shape[1:])
        )
        event = values.shape[values.dim() - event_dim :]
        kept = [1 if dim - len(batch) in own else size for dim, size in enumerate(batch)]
        self.values = _padded(values, len(batch) + event_dim).expand(-1, *batch, *event)
        self.log_weights = _padded(log_weights, len(batch)).expand(-1, *kept)
        self.own = own
        super().__init__(batch, event, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Members":
        """The same members for more cells."""
        batch = torch.Size(batch_shape)
        kept = [1 if dim - len(batch) in self.own else size for dim, size in enumerate(batch)]
        log_weights = _padded(self.log_weights, len(batch)).expand(-1, *kept)
        return Members(self.values, log_weights, self.event_dim, self.own)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Values of members that are drawn by their weights."""
        sample_shape = torch.Size(sample_shape)
        member = torch.distributions.Categorical(logits=self.log_weights.movedim(0, -1))
        index = member.sample((sample_shape.numel(),))
        index = index.reshape(*index.shape, *[1] * self.event_dim)
        index = index.expand(-1, *self.batch_shape, *self.event_shape)
        return self.values.gather(0, index).reshape(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Of each cell given those before it in the datum; -inf outside of the list."""
        matches = self.matches(value)
        log_weights = _cells_last(_padded(self.log_weights, matches.dim() - 1), self.own)
        matches, shape = _cells_last(matches, self.own), matches.shape[1:]
        joint = torch.where(matches.cumprod(-1).bool(), log_weights, -math.inf).logsumexp(0)
        total = log_weights.logsumexp(0).expand(*joint.shape[:-1], 1)
        before = torch.cat([total, joint[..., :-1]], -1)
        log_prob = torch.where(joint == -math.inf, joint, joint - before)
        if not self.own:
            return log_prob.squeeze(-1)
        log_prob = log_prob.unflatten(-1, [shape[dim] for dim in self.own])
        return log_prob.movedim(tuple(range(-len(self.own), 0)), self.own)

    def matches(self, value: Tensor) -> Bool[Tensor, "S *batch"]:
        """Which members have this value in a cell."""
        values = _padded(self.values, max(value.dim(), self.values.dim() - 1))
        same = values == value
        return same.flatten(same.dim() - self.event_dim).all(-1) if self.event_dim else same

    def given(self, value: Tensor) -> Float[Tensor, "S *batch"]:
        """Log-weights of the members that have this value, -inf of the others; for later sites."""
        matches = self.matches(value)
        for dim in self.own:
            matches = matches.all(dim, keepdim=True)
        return torch.where(matches, _padded(self.log_weights, matches.dim() - 1), -math.inf)


def _padded(value: Tensor, dims: int) -> Tensor:
    """View with `dims` dims right of the leading one."""
    return value.reshape(value.shape[0], *[1] * (dims + 1 - value.dim()), *value.shape[1:])


def _cells_last(value: Tensor, own: tuple[int, ...]) -> Tensor:
    """The dims of a datum's cells as one last dim."""
    if not own:
        return value.unsqueeze(-1)
    moved = value.movedim(own, tuple(range(-len(own), 0)))
    return moved.flatten(moved.dim() - len(own))
