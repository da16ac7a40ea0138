"""Sites whose density counts otherwise than as what is drawn: bounds are of something else then.

A handler that scales one site of a datum and not the others, as to weigh the rate in training,
makes ELBO and evidence those of densities so weighed. A factor of the guide, or another site that
it observes, counts with log q, and bounds hold only if that is the density of what is drawn.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_dvae.programs.readers.impossible import NOTHING, has_zeros, zeros_of
from pyro_dvae.programs.record import Ledger, Particles
from pyro_dvae.programs.sites import Layout, Run, Site

__all__ = ["OF_WEIGHTS", "with_all_names"]

_ROUNDING = 1e-5  # of scales in single precision


def _read_weighed(run: Run, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Of each site, whether its density is weighed otherwise than its datum; a reader."""
    sites = [*run.guide.values(), *run.model.values()]
    common = Ledger(layout, num_particles, sites).common
    found: dict[str, Tensor] = {}
    for site in sites:
        expected = common if layout.owns(site) else _of_plates(site)
        ratio = torch.as_tensor(site.scale / expected, dtype=torch.float64)
        apart = ((ratio - 1).abs() > _ROUNDING).any().expand(num_particles)
        found[site.name] = found[site.name] | apart if site.name in found else apart
    return found


def _of_plates(site: Site) -> float:
    """What the rows of its plates stand for."""
    plates = site.plates.values()
    return float(
        math.prod((p.size if p.full_size is None else p.full_size) / p.size for p in plates)
    )


def _read_factors(run: Run, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Sites that the guide observes, but for what this package makes; a reader."""
    yes = torch.ones(num_particles, dtype=torch.bool)
    return {name: yes for name, site in run.guide.items() if _is_own(site)}


def _read_clamped(run: Run, layout: Layout, num_particles: int) -> dict[str, Tensor]:
    """Sites of the model whose values have a probability of 0 that counts; a reader."""
    found = {}
    for name, site in run.model.items():
        is_zero = (site.scaled(zeros_of(site), site.scale) <= NOTHING).any()
        for member, each in site.infer.get("_members", {name: site}).items():
            is_of = has_zeros(each.fn, each.value).any()
            found[member] = (is_zero & is_of).expand(num_particles)
    return found


def _is_own(site: Site) -> bool:
    """Whether the user's guide observes a site; this package marks the factors that it adds."""
    return site.is_observed and not site.infer.get("_of_package")


OF_WEIGHTS = {  # readers
    "weighed": _read_weighed,
    "factors": _read_factors,
    "clamped": _read_clamped,
}


def with_all_names(records: Sequence[Particles]) -> list[Particles]:
    """Give every record an entry for each site that any run has, so that they can be stacked."""
    found = []
    for record in records:
        no = torch.zeros(len(record.log_q), dtype=torch.bool)
        extras = dict(record.extras)
        for kind in OF_WEIGHTS:
            names = dict.fromkeys(name for each in records for name in each.extras[kind])
            extras[kind] = {name: extras[kind].get(name, no) for name in names}
        found.append(record._replace(extras=extras))
    return found
