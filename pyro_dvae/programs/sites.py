"""The sites of a trace, and what is read off one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = [
    "Layout",
    "Site",
    "base_distribution",
    "log_prob",
    "needs_score",
    "plates_of",
    "sample_sites",
    "with_particle_axis",
]

Site = Any  # pyro's Message, a TypedDict whose every field is optional


class Layout(NamedTuple):
    """What one plain run tells of the structure of a model/guide pair, and how to draw from it."""

    nesting: int  # plates take the batch dims -1 ... -nesting, particles -nesting - 1
    plates: tuple[str, ...]  # that make a datum, leftmost first
    dims: tuple[int, ...]  # their batch dims
    scored: tuple[str, ...]  # guide sites without a pathwise gradient
    paired: tuple[str, ...] = ()  # drawn antithetically by particles k and k + K/2
    pathwise: bool = True  # whether reparameterised draws of a datum keep their gradient


def base_distribution(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):  # Independent, ExpandedDistribution, MaskedDistribution
        fn = fn.base_dist
    return fn


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            if not (site["infer"] or {}).get("_deterministic"):
                yield name, site


def needs_score(site: Site) -> bool:
    return not getattr(site["fn"], "has_rsample", False)


def plates_of(site: Site) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def log_prob(site: Site) -> Tensor:
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def with_particle_axis(site: Site, value: Tensor, nesting: int, num_particles: int) -> Tensor:
    """View with ``nesting + 1`` batch dims; every size above 1 must be a plate's or K."""
    name, shape = site["name"], tuple(value.shape)
    sizes = {-nesting - 1: num_particles} | {f.dim: f.size for f in plates_of(site).values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)):
            raise ValueError(
                f"site '{name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, nesting, num_particles, site)}. Either declare the dim with "
                ".to_event(1), or put the site under a plate with "
                f"dim={dim}, or write the program so that it broadcasts over a particle axis left "
                "of all plates (x[..., i], sum(-1), no bare reshape)."
            )
    return value.reshape((1,) * (nesting + 1 - len(shape)) + shape)


def _meaning(dim: int, nesting: int, num_particles: int, site: Site) -> str:
    if dim == -nesting - 1:
        return f"the particles', of size {num_particles}"
    for frame in plates_of(site).values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"
