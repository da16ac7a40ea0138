"""Which data have probability 0 under a model: looked for where a loss was infinite."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_dvae.fit import rng
from numpyro_dvae.fit.data import Batch, num_rows
from numpyro_dvae.fit.templates import Template, split
from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.programs.draw import run_program
from numpyro_dvae.programs.sites import sample_sites

__all__ = ["impossible_rows"]


def impossible_rows(
    rng_key: Array, svi: SVI, svi_state: SVIState, batches: Iterable[tuple[int, Batch]]
) -> tuple[list[int], list[str]]:
    """Rows of the data whose draws are all impossible now; none where the loss cannot tell.

    And the sites that the guide draws without a gradient.

    Args:
        rng_key: Key of the draws.
        svi: What is trained.
        svi_state: Its state.
        batches: All data, each batch with the row of its first datum.
    """
    loss, rows, sites = svi.loss, [], dict[str, None]()
    if not isinstance(loss, ParticleELBO):
        return [], []
    params = {**svi.get_params(svi_state), **(svi_state.mutable_state or {})}

    @partial(jax.jit, static_argnums=1)
    def are_impossible(arrays: tuple[Array, ...], template: Template) -> Array:
        args, kwargs = template.join(arrays)
        programs = svi.model, svi.guide, args, {**kwargs, **svi.static_kwargs}
        drawn = sample_sites(run_program(rng_key, *programs[1:]))
        sites.update(dict.fromkeys(name for name, site in drawn.items() if site.is_credited))
        particles, _ = loss.run(rng_key, params, *programs)
        return (particles.log_p == -jnp.inf).all(0)

    with rng.preserved():
        for start, batch in batches:
            found = np.asarray(are_impossible(*split(batch)))
            if found.shape == (num_rows(batch[0]),):
                rows += [start + int(row) for row in np.flatnonzero(found)]
    return rows, list(sites)
