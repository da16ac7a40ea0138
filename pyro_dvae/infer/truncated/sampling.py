"""Draws of a truncated posterior's members, as sample statements of a guide.

The joint states of a datum are drawn site by site: each site from the members that agree with the
sites before it, so that together they are one member, with its probability.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int32
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from pyro_dvae.distributions.members import Members
from pyro_dvae.infer.truncated.estep import distinct
from pyro_dvae.infer.truncated.minibatch import open_plates
from pyro_dvae.infer.truncated.scoring import ModelCall, Scorer
from pyro_dvae.ops.sets.packing import unpack
from pyro_dvae.programs.codes import decode
from pyro_dvae.programs.messages import with_values
from pyro_dvae.programs.sites import sample_sites

__all__ = [
    "add_silenced",
    "in_dims",
    "particles_of",
    "sample_members",
    "score_members",
    "values_of",
]

_OWN_FACTOR: Any = {"is_auxiliary": True, "_of_package": True}  # `factor` has the first alone


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
        fn = dist.Unit(-torch.where(is_left, silenced, 0.0).sum(0), has_rsample=False)
        pyro.sample("guide.silenced", fn, obs=fn.sample(), infer={**_OWN_FACTOR})


def in_dims(scores: Float[Tensor, "S B"], call: ModelCall) -> Float[Tensor, "S *batch"]:
    """Scores of data in the batch dims of their plates, 1 in the others."""
    layout, sizes = call.space.layout, call.batch.sizes
    batch = [1] * layout.nesting
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    return scores.reshape(len(scores), *batch)


def values_of(call: ModelCall, words: Int32[Tensor, "S B W"]) -> dict[str, Tensor]:
    """The values of the discrete sites in these states."""
    codes = unpack(words, call.space.cardinalities)
    return decode(call.space, codes, call.batch.sizes)


def particles_of(rest_trace: poutine.Trace, nesting: int) -> list[poutine.Trace]:
    """The draws of `rest` one particle at a time, if handlers have made it draw several."""
    sites = sample_sites(rest_trace)
    stacked = {name for name, site in sites.items() if site.num_batch_dims > nesting}
    counts = {len(sites[name].value) for name in stacked}
    return [_particle(rest_trace, stacked, k) for k in range(max(counts, default=1))]


def _particle(rest_trace: poutine.Trace, stacked: set[str], k: int) -> poutine.Trace:
    values = {
        name: site.value for name, site in sample_sites(rest_trace).items() if name in stacked
    }
    rows = {name: value[k if len(value) > 1 else 0] for name, value in values.items()}
    return with_values(rest_trace, rows)


def score_members(call: ModelCall, words: Int32[Tensor, "S B W"]) -> Float[Tensor, "S B"]:
    """Log joints of members, -inf for one that is there already."""
    return torch.where(distinct(call, words), Scorer(call).of_words(words), -torch.inf)
