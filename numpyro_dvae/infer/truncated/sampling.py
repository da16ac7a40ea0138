"""Draws of a truncated posterior's members, as sample statements of a guide.

The joint states of a datum are drawn site by site: each site from the members that agree with the
sites before it, so that together they are one member, with its probability.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro import distributions as dist

from numpyro_dvae.distributions.members import Members
from numpyro_dvae.infer.truncated.minibatch import open_plates
from numpyro_dvae.infer.truncated.scoring import ModelCall

__all__ = ["add_silenced", "in_dims", "sample_members"]

_OWN_FACTOR: Any = {"is_auxiliary": True, "_of_package": True}  # `factor` has the first alone


def sample_members(
    call: ModelCall, values: Mapping[str, Array], log_weights: Float[Array, "S *batch"]
) -> tuple[dict[str, Array], Float[Array, "S *drawn"]]:
    """Draw each discrete site from the members that agree with the sites before it.

    Returns:
        The draws, and the log-weights of the members that agree with all of them.
    """
    layout, drawn = call.space.layout, {}
    for site in call.space.sites:
        dims = range(-len(site.batch_shape), 0)
        cell_dims = tuple(dim for dim in dims if dim not in layout.dims)
        fn = Members(values[site.name], log_weights, len(site.event_shape), cell_dims)
        with open_plates(call.batch, site.name):
            drawn[site.name] = numpyro.sample(site.name, fn, infer=site.infer)
        log_weights = fn.given(drawn[site.name])
    return drawn, log_weights


def add_silenced(
    call: ModelCall, log_weights: Float[Array, "S *drawn"], silenced: Float[Array, "S *batch"]
) -> None:
    """Take what masks silence of the one member that is left out of log q."""
    is_left = log_weights != -jnp.inf
    with open_plates(call.batch, call.space.sites[0].name, call.space.layout.plates):
        fn = dist.Unit(-jnp.where(is_left, silenced, 0.0).sum(0))
        numpyro.sample("guide.silenced", fn, obs=fn.sample(None), infer={**_OWN_FACTOR})


def in_dims(scores: Float[Array, "S B"], call: ModelCall) -> Float[Array, "S *batch"]:
    """Scores of data in the batch dims of their plates, 1 in the others."""
    layout, sizes = call.space.layout, call.batch.sizes
    batch = [1] * layout.nesting
    for dim, size in zip(layout.dims, sizes, strict=True):
        batch[dim] = size
    return scores.reshape(len(scores), *batch)
