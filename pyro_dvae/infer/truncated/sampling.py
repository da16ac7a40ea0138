"""Draws of a truncated posterior's members, as sample statements of a guide.

The joint states of a datum are drawn site by site: each site from the members that agree with the
sites before it, so that together they are one member, with its probability.
"""

from collections.abc import Mapping

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_dvae.distributions.members import Members
from pyro_dvae.infer.truncated.minibatch import open_plates
from pyro_dvae.infer.truncated.scoring import ModelCall

__all__ = ["add_silenced", "in_dims", "sample_members"]


def sample_members(
    call: ModelCall, values: Mapping[str, Tensor], log_weights: Float[Tensor, "S *batch"]
) -> tuple[dict[str, Tensor], Float[Tensor, "S *drawn"]]:
    """Draw each discrete site from the members that agree with the sites before it.

    Returns:
        The draws, and the log-weights of the members that agree with all of them.
    """
    layout, drawn = call.space.layout, {}
    cell_dims = tuple(dim for dim in range(-layout.nesting, 0) if dim not in layout.dims)
    for site in call.space.sites:
        fn = Members(values[site.name], log_weights, len(site.event_shape), cell_dims)
        with open_plates(call.batch, site.name):
            drawn[site.name] = pyro.sample(site.name, fn)
        log_weights = fn.given(drawn[site.name])
    return drawn, log_weights


def add_silenced(
    call: ModelCall, log_weights: Float[Tensor, "S *drawn"], silenced: Float[Tensor, "S *batch"]
) -> None:
    """Take what masks silence of the one member that is left out of log q."""
    is_left, ones = log_weights != -torch.inf, [1] * (log_weights.dim() - silenced.dim())
    silenced = silenced.reshape(len(silenced), *ones, *silenced.shape[1:])
    with open_plates(call.batch, call.space.sites[0].name, call.space.layout.plates):
        log_factor = -torch.where(is_left, silenced, 0.0).sum(0)
        pyro.factor("guide.silenced", log_factor, has_rsample=False)


def in_dims(scores: Float[Tensor, "S B"], call: ModelCall) -> Float[Tensor, "S *batch"]:
    """Scores of data in the batch dims of their plates, 1 in the others."""
    layout, sizes = call.space.layout, call.batch.sizes
    batch = [1] * layout.nesting
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    return scores.reshape(len(scores), *batch)
