"""Which data have probability 0 under a model: looked for where a loss was infinite."""

from collections.abc import Iterable

import torch
from pyro.infer import SVI

from pyro_dvae.fit.data import Batch, num_rows, to_device
from pyro_dvae.fit.svi import device_of, loss_of, parameters, unchanged
from pyro_dvae.infer.elbo import ParticleELBO
from pyro_dvae.programs.draw import run_program
from pyro_dvae.programs.sites import sample_sites

__all__ = ["impossible_rows"]


def impossible_rows(svi: SVI, batches: Iterable[tuple[int, Batch]]) -> tuple[list[int], list[str]]:
    """Rows of the data whose draws are all impossible now; none where the loss cannot tell.

    And the sites that the guide draws without a gradient.

    Args:
        svi: What is trained.
        batches: All data, each batch with the row of its first datum.
    """
    loss, rows, sites = loss_of(svi), [], dict[str, None]()
    if not isinstance(loss, ParticleELBO):
        return [], []
    device = device_of(svi, parameters(svi).values())
    with unchanged(svi), torch.no_grad():
        for start, batch in batches:
            args, kwargs = to_device(batch, device)
            drawn = sample_sites(run_program(svi.guide, args, kwargs))
            sites |= dict.fromkeys(name for name, site in drawn.items() if site.is_credited)
            particles = loss.run(svi.model, svi.guide, args, kwargs)
            is_impossible = (particles.log_p == -torch.inf).all(0)
            if is_impossible.shape == (num_rows(args),):
                rows += [start + row for row in is_impossible.nonzero()[:, 0].tolist()]
    return rows, list(sites)
