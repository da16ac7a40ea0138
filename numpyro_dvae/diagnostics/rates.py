"""The rate of a latent without the noise of its own draw: KL(q ‖ p) given the draws before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.nn import log_sigmoid
from jaxtyping import Array
from numpyro.distributions import kl_divergence

from numpyro_dvae.programs.densities import entry_mask, is_masked
from numpyro_dvae.programs.readers.impossible import excludes, has_zeros
from numpyro_dvae.programs.sites import Run, Site, base_distribution
from numpyro_dvae.programs.summing.values import joint_latents

__all__ = ["expected_rate", "is_reordered"]

_BINOMIAL = (dist.BinomialProbs, dist.BinomialLogits)
_GEOMETRIC = (dist.GeometricProbs, dist.GeometricLogits)
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
    if isinstance(q, dist.Delta) or any(hasattr(fn, "conditional_log_prob") for fn in (q, p)):
        return None  # a point has the log-density that it was given
    masked = any(is_masked(each) for each in (guide_site, site))
    parts = _by_values(q, p)
    if parts is None:
        return None if masked else _closed(q, p, site.value)
    if not masked:
        return parts[0] - parts[1]
    masks = [entry_mask(each, num_cells) for each in (guide_site, site)]
    one, two = (jnp.where(mask, part, 0.0) for mask, part in zip(masks, parts, strict=True))
    return one - two


def is_reordered(name: str, run: Run) -> bool:
    """Whether the guide draws a latent, or steps of it, before what comes before it in the model.

    What the model says of it then depends on draws that may depend on it, so that no sum over its
    values, given the other draws, is the rate; the mean over the draws is.
    """
    places = {each: place for place, each in enumerate(run.guide)}
    joint = {n for latents in joint_latents(run.model).values() if name in latents for n in latents}
    before = [n for n in list(run.model)[: list(run.model).index(name)] if n not in joint]
    ways = [bool(sites[name].infer.get("_backward")) for sites in (run.guide, run.model)]
    return ways[0] != ways[1] or any(places.get(each, -1) > places[name] for each in before)


def _by_values(q: Any, p: Any) -> tuple | None:
    """E[log q] and E[log p], by a sum over the values of q; None if these cannot be listed."""
    if not getattr(q, "has_enumerate_support", False):
        return None
    if getattr(q, "num_codes", 0) > _MOST_VALUES:
        return None
    values = _values(q)
    if values is None:
        return None
    num_batch = max(len(fn.batch_shape) for fn in (q, p))
    if len(values) * max(math.prod(fn.batch_shape) for fn in (q, p)) > _MOST_VALUES:
        return None
    if getattr(p, "has_enumerate_support", False):
        others = _values(p)
        if others is None or not _are_among(values, others):
            return None
    table = jnp.asarray(values).reshape(len(values), *[1] * num_batch, *q.event_shape)
    log_q, never = q.log_prob(table), excludes(q, table)
    log_p = jnp.where(has_zeros(p, table), -jnp.inf, p.log_prob(table))
    probs = jnp.where(never, 0.0, jnp.exp(log_q))
    log_q, log_p = (jnp.where(probs > 0, each, 0.0) for each in (log_q, log_p))
    return (probs * log_q).sum(0), (probs * log_p).sum(0)


def _values(fn: Any) -> np.ndarray | None:
    """Those of a family, ``(V, *event)``; None where they cannot be listed, or differ by datum."""
    try:
        with jax.ensure_compile_time_eval():
            values = np.asarray(fn.enumerate_support(expand=False))
    except (
        NotImplementedError,
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ):
        return None
    shape = (len(values), *fn.event_shape)
    return values.reshape(shape) if values.size == math.prod(shape) else None


def _are_among(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether all values of a latent are of the model's support, too; a vector's by its size."""
    return values.shape[1:] == others.shape[1:] and bool(np.isin(values, others).all())


def _closed(q: Any, p: Any, value: Array) -> Array | None:
    """KL(q ‖ p) by its formula; of counts of other numbers of trials, what a draw says of it."""
    if isinstance(q, dist.Poisson) and isinstance(p, dist.Poisson):
        log_ratio = jnp.where(q.rate > 0, jnp.log(q.rate / p.rate), 0.0)
        return q.rate * log_ratio - q.rate + p.rate
    if isinstance(q, _BINOMIAL) and isinstance(p, _BINOMIAL):
        by_formula = q.total_count * sum(_of_outcomes(q, p))
        by_draw = q.log_prob(value) - p.log_prob(value)
        return jnp.where(q.total_count == p.total_count, by_formula, by_draw)
    if isinstance(q, _GEOMETRIC) and isinstance(p, _GEOMETRIC):
        return sum(_of_outcomes(q, p)) / q.probs  # so many trials
    if isinstance(base_distribution(q), dist.Kumaraswamy):
        return None  # NumPyro's is ten terms of a series
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _of_outcomes(q: Any, p: Any) -> tuple[Array, Array]:
    """What success and failure of one trial have in its KL(q ‖ p)."""
    chances = (q.probs, 1 - q.probs)
    ratios = [log_sigmoid(s * q.logits) - log_sigmoid(s * p.logits) for s in (1, -1)]
    one, two = (jnp.where(c > 0, c * r, 0.0) for c, r in zip(chances, ratios, strict=True))
    return one, two
