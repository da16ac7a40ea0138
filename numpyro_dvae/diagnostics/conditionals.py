"""What a guide says of each value of a discrete latent, given the draws before it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from numpyro_dvae.distributions import OneHotCategorical, PathwiseBernoulli, PathwiseCategorical
from numpyro_dvae.programs.sites import Site

__all__ = ["value_probs"]

_BINARY = (dist.BernoulliProbs, dist.BernoulliLogits, PathwiseBernoulli)
_CODES = (dist.CategoricalProbs, dist.CategoricalLogits, OneHotCategorical, PathwiseCategorical)
_MOST_VALUES = 2**20  # of a latent: of more there is no table


def value_probs(guide_site: Site, site: Site) -> tuple[Array, int] | None:
    """Probabilities of the V values of each place of a latent, and its event dims that are places.

    Relaxed latents have those of the codes that they relax. NaN where the guide does not list them,
    though the model does; None where neither does.
    """
    probs, listed = _of(guide_site.base), _of(site.base)
    if probs is None and listed is None:
        return None
    if probs is None or (listed is not None and listed.shape[-1] != probs.shape[-1]):
        assert listed is not None
        found, source = jnp.full(listed.shape[-1:], jnp.nan), site
    else:
        found, source = probs, guide_site
    event = tuple(source.fn.event_shape)
    cells = event[: len(event) - len(source.base.event_shape)]
    shape = (*source.fn.batch_shape, *cells, found.shape[-1])
    return jnp.broadcast_to(found, shape), len(cells)


def _of(base: Any) -> Array | None:
    if isinstance(base, _BINARY):
        one = jax.nn.sigmoid(base.logits)
        return jnp.stack([1 - one, one], -1)
    if not isinstance(base, _CODES) or getattr(base, "num_codes", 0) > _MOST_VALUES:
        return None
    return jax.nn.softmax(base.logits, -1)
