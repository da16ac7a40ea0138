"""The rate of a latent without the noise of its own draw: KL(q ‖ p) given the draws before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import kl_divergence

from numpyro_dvae.programs.masks import entry_mask, is_masked
from numpyro_dvae.programs.readers.impossible import excludes
from numpyro_dvae.programs.sites import Site

__all__ = ["expected_rate"]

_MOST_VALUES = 2**25  # of a table: more would take longer than draws


def expected_rate(guide_site: Site, site: Site, num_cells: int) -> Array | None:
    """E[log q - log p] of each cell of a latent, where guide and model have the same cells.

    By a sum over its values, if the guide's can be listed, or in closed form; None if there is
    neither, as of networks whose cells depend on each other.

    Args:
        guide_site: The guide's site.
        site: The model's.
        num_cells: Event dims that are cells: the other dims of an event are of one latent.
    """
    q, p = guide_site.base, site.base
    if any(each.fn.event_dim - each.base.event_dim != num_cells for each in (guide_site, site)):
        return None
    if any(hasattr(fn, "conditional_log_prob") for fn in (q, p)):
        return None
    masked = any(is_masked(each) for each in (guide_site, site))
    parts = _by_values(q, p)
    if parts is None:
        return None if masked else _closed(q, p)
    if not masked:
        return parts[0] - parts[1]
    masks = [entry_mask(each, num_cells) for each in (guide_site, site)]
    one, two = (jnp.where(mask, part, 0.0) for mask, part in zip(masks, parts, strict=True))
    return one - two


def _by_values(q: Any, p: Any) -> tuple | None:
    """E[log q] and E[log p], by a sum over the values of q; None if these cannot be listed."""
    if not getattr(q, "has_enumerate_support", False):
        return None
    values = _values(q)
    if values is None:
        return None
    num_batch = max(len(fn.batch_shape) for fn in (q, p))
    if len(values) * max(math.prod(fn.batch_shape) for fn in (q, p)) > _MOST_VALUES:
        return None
    values = values.reshape(len(values), *[1] * num_batch, *q.event_shape)
    if getattr(p, "has_enumerate_support", False):
        others = _values(p)
        if others is None or len(others) != len(values):
            return None
    log_q, never = q.log_prob(values), excludes(q, values)
    log_p = p.log_prob(values)
    probs = jnp.where(never, 0.0, jnp.exp(log_q))
    log_q, log_p = (jnp.where(probs > 0, each, 0.0) for each in (log_q, log_p))
    return (probs * log_q).sum(0), (probs * log_p).sum(0)


def _values(fn: Any) -> Array | None:
    try:
        return fn.enumerate_support(expand=False)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        return None


def _closed(q: Any, p: Any) -> Array | None:
    """KL(q ‖ p) by its formula."""
    if isinstance(q, dist.Poisson) and isinstance(p, dist.Poisson):
        log_ratio = jnp.where(q.rate > 0, jnp.log(q.rate / p.rate), 0.0)
        return q.rate * log_ratio - q.rate + p.rate
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None
