"""The sites of a trace, and what is read off one."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

__all__ = [
    "Layout",
    "Site",
    "Trace",
    "base_distribution",
    "log_prob",
    "mutable_values",
    "needs_score",
    "plates_of",
    "sample_sites",
    "with_batch_dims",
]

Site = Any  # numpyro's Message, a dict


Trace = Mapping[str, Site]


class Layout(NamedTuple):
    """What one plain run tells of the structure of a model/guide pair, and how to draw from it."""

    nesting: int  # plates take the batch dims -1 ... -nesting, particles are left of them
    plates: tuple[str, ...]  # that make a datum, leftmost first
    dims: tuple[int, ...]  # their batch dims
    scored: tuple[str, ...]  # guide sites without a pathwise gradient
    paired: tuple[str, ...] = ()  # drawn antithetically by particles k and k + K/2
    pathwise: bool = True  # whether reparameterised draws of a datum keep their gradient


def base_distribution(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def mutable_values(trace: Trace) -> dict[str, Any]:
    return {name: site["value"] for name, site in trace.items() if site["type"] == "mutable"}


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.items():
        if site["type"] == "sample":
            yield name, site


def needs_score(site: Site) -> bool:
    base = base_distribution(site["fn"])
    # NumPyro's default is true of a distribution without parameters, whatever its support.
    by_default = type(base).has_rsample is dist.Distribution.has_rsample
    if by_default and not base.arg_constraints and base.support.is_discrete:
        return True
    return not base.has_rsample


def plates_of(site: Site) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"]}


def log_prob(site: Site) -> Array:
    if site["intermediates"]:
        return site["fn"].log_prob(site["value"], site["intermediates"])
    return site["fn"].log_prob(site["value"])


def with_batch_dims(site: Site, value: Array, nesting: int) -> Array:
    """View with `nesting` batch dims; every size above 1 must be a plate's."""
    name, shape = site["name"], jnp.shape(value)
    sizes = {frame.dim: frame.size for frame in plates_of(site).values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)):
            raise ValueError(
                f"site '{name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, site)}. Either declare the dim with .to_event(1), or put the "
                f"site under a plate with dim={dim}."
            )
    return jnp.reshape(value, (1,) * (nesting - len(shape)) + shape[max(len(shape) - nesting, 0) :])


def _meaning(dim: int, site: Site) -> str:
    for frame in plates_of(site).values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"
