"""Sites whose density counts otherwise than as what is drawn: bounds are of something else then.

A handler that scales one site of a datum and not the others, as to weigh the rate in training,
makes ELBO and evidence those of densities so weighed. A factor of the guide, or another site that
it observes, counts with log q, and bounds hold only if that is the density of what is drawn.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from numpyro_dvae.programs.readers.impossible import NOTHING, has_zeros, zeros_of
from numpyro_dvae.programs.record import Ledger
from numpyro_dvae.programs.sites import Layout, Run, Site

__all__ = ["OF_WEIGHTS"]

_ROUNDING = 1e-5  # of scales in single precision


def _read_weighed(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """Of each site, whether its density is weighed otherwise than its datum; a reader."""
    sites = [*run.guide.values(), *run.model.values()]
    common = Ledger(layout, sites).common
    found: dict[str, Array] = {}
    for site in sites:
        expected = common if layout.owns(site) else _of_plates(site)
        apart = jnp.any(jnp.abs(jnp.asarray(site.scale / expected) - 1) > _ROUNDING)
        found[site.name] = found[site.name] | apart if site.name in found else apart
    return found


def _of_plates(site: Site) -> float:
    """What the rows of its plates stand for."""
    plates = site.plates.values()
    return float(math.prod(plate.full_size / plate.size for plate in plates))


def _read_factors(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """Sites that the guide observes, but for what this package makes; a reader."""
    return {name: jnp.ones((), bool) for name, site in run.guide.items() if _is_own(site)}


def _read_clamped(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """Sites of the model whose values have a probability of 0 that counts; a reader."""
    found: dict[str, Array] = {}
    for name, site in run.model.items():
        is_zero = (zeros_of(site) * site.scale <= NOTHING).any()
        for each in site.infer.get("_members", {name: site}).values():
            is_of = is_zero & has_zeros(each.fn, each.value).any()
            found[each.own_name] = found.get(each.own_name, jnp.zeros((), bool)) | is_of
    return found


def _is_own(site: Site) -> bool:
    """Whether the user's guide observes a site; this package marks the factors that it adds."""
    return site.is_observed and not site.infer.get("_of_package")


OF_WEIGHTS = {  # readers
    "weighed": _read_weighed,
    "factors": _read_factors,
    "clamped": _read_clamped,
}
