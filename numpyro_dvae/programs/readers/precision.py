"""What mean square error costs a model in nats, so that other squares can be weighed against it.

A Gaussian of variance v gives N entries of a datum the log-density ``-N / 2v`` times their mean
square error, and a constant. For other likelihoods v is the mean of the entries' variances, which
is what the likelihood takes its mean square error to be; where there is no variance, as for
categories, it is 1/2, so that N alone is the price.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_dvae.programs.densities import entry_mask
from numpyro_dvae.programs.record import Ledger
from numpyro_dvae.programs.sites import Layout, Run, Site

__all__ = ["read_precision"]

_UNKNOWN = 0.5  # the variance at which N / 2v is N


def read_precision(run: Run, layout: Layout, num_particles: int) -> Float[Array, "*plates"]:
    """``N / 2v`` of each datum, over its observed entries that no mask silences; a reader."""
    ledger = Ledger(layout, run.model.values())
    for site in run.model.values():
        for seen in _observed(site):
            if layout.owns(seen):
                counted = _counted(seen) if seen is site else _in_mean(site, seen)
                booked = seen if seen is site else _without_steps(seen)
                for kind, values in zip(("entries", "variances"), counted, strict=True):
                    ledger.add_bare(kind, booked, values)
    entries, variances = ledger.total("entries"), ledger.total("variances")
    variances = jnp.where(variances > 0, variances, jnp.maximum(_UNKNOWN * entries, _UNKNOWN))
    return jax.lax.stop_gradient(entries**2 / (2 * variances))


def _observed(site: Site) -> list[Site]:
    """The data that a site counts: those of a factor are observed under the sites it sums out."""
    members = site.infer.get("_members")
    if members is None or not site.is_observed:
        return [site] if site.is_observed else []
    return [m for m in members.values() if m.is_observed and site.kind == "likelihood"]


def _in_mean(site: Site, seen: Site) -> Sequence[Array]:
    """Those of a site of a factor, in the mean over the states that it sums out, given the data."""
    means: Sequence[Array] = site.infer["_means"](seen, _counted(seen))
    return means


def _without_steps(site: Site) -> Site:
    """A site whose steps in a `scan` are summed already."""
    infer = {key: value for key, value in site.infer.items() if key != "_scan_current_index"}
    return replace(site, infer=infer)


def _counted(site: Site) -> tuple[Array, Array]:
    """The entries of each event and the sum of their variances."""
    event_dim, variance = site.fn.event_dim, _variance(site)
    mask = entry_mask(site, event_dim)
    shape = jnp.broadcast_shapes(mask.shape, variance.shape, jnp.shape(site.value))
    known = jnp.where(jnp.isfinite(variance), variance, _UNKNOWN)
    arrays = (jnp.broadcast_to(a, shape) for a in (mask.astype(known.dtype), mask * known))
    dims = tuple(range(-event_dim, 0))
    counts, sums = (array.sum(dims) for array in arrays)
    return counts, sums


def _variance(site: Site) -> Array:
    """The variance of each entry, NaN where the distribution has none."""
    fn: Any = site.fn
    try:
        variance = jnp.asarray(fn.variance)
    except (AttributeError, NotImplementedError):
        variance = jnp.full((), jnp.nan)
    if variance.ndim == len(fn.batch_shape):  # of events that are numbers, or categories
        variance = variance.reshape(*variance.shape, *(1 for _ in fn.event_shape))
    return variance
