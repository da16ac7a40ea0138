"""Latents of which the guide has one point and no distribution, as maximum a posteriori guides do.

A point of a continuous latent has no density that could be weighed with the model's: bounds are on
the log-density of the data and the point together, and no draw tells how near it is to the
posterior. Automatic guides also write latents as points, which move with the draws of other sites.
"""

import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist

from numpyro_dvae.programs.sites import Layout, Run, Site

__all__ = ["OF_POINTS", "computed_sites", "is_pinned"]


def computed_sites(run: Run) -> tuple[str, ...]:
    """Sites of the guide that it computes, of its other sites or of parameters."""
    return tuple(name for name, site in run.guide.items() if isinstance(site.base, dist.Delta))


def is_pinned(guide_site: Site, site: Site) -> bool:
    """Whether the guide says what the value of a latent is, of which the model has a distribution.

    Args:
        guide_site: The guide's site.
        site: The model's.
    """
    return isinstance(guide_site.base, dist.Delta) and not isinstance(site.base, dist.Delta)


def _read_points(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """A number of each draw that moves as the point of a continuous latent does; a reader.

    It stands still where the guide draws nothing of its own that could move points.
    """
    latent = {name: site for name, site in run.guide.items() if not site.is_observed}
    moves, found = any(name not in run.model for name in latent), {}
    for name, site in latent.items():
        model = run.model.get(name)
        if model is None or not is_pinned(site, model) or model.fn.support.is_discrete:
            continue
        found[name] = jnp.sum(site.value) if moves else jnp.zeros(())
    return found


OF_POINTS = {"points": _read_points}  # readers
