"""Values that a distribution never draws, whatever density it claims for them.

A probability of exactly 0 is clamped before its logarithm is taken (to `finfo.tiny`: 87 nats in
single precision), and a logit of -1e30 stands for minus infinity; draws know better than densities
what such a distribution leaves out.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution
from numpyro.util import not_jax_tracer

from numpyro_dvae.distributions import CertainCategorical, OneHotCategorical, UniformCategorical
from numpyro_dvae.programs.densities import entry_mask
from numpyro_dvae.programs.record import Ledger
from numpyro_dvae.programs.sites import Layout, Run, Site, base_distribution

__all__ = [
    "NOTHING",
    "exact_log_prob",
    "excludes",
    "has_zeros",
    "leaves_out",
    "left_out_values",
    "read_impossible",
    "read_num_states",
    "read_zeros",
    "zeros_of",
]

_NEVER = -1e30  # nats, which stand for minus infinity: times a scale of 0 they are nothing
NOTHING = -1e20  # nats: less stands for minus infinity

_MOST_LISTED = 2**20  # codes of a table
_MOST_CELLS = 2**26  # of the tables of all places together
_HOPELESS = -1e4  # nats of one latent: no network learns it, and as good as minus infinity
_CLAMPED = (dist.BernoulliProbs, dist.BinomialProbs)  # before they take logarithms


def leaves_out(guide: Any, model: Any) -> Bool[Array, "*batch"] | None:
    """Whether the guide's distribution never draws a code that the model's draws.

    By the tables of both, if they are of codes with the same wrapping; else None.
    """
    found, num_event = (
        _misses(*(base_distribution(fn) for fn in (guide, model))),
        _num_wrapped(guide),
    )
    if found is None:
        return None
    shape = *guide.batch_shape, *guide.event_shape[:num_event]
    found = jnp.broadcast_to(found, jnp.broadcast_shapes(found.shape, shape))
    return found.any(tuple(range(-num_event, 0))) if num_event else found


def _misses(guide: Any, model: Any) -> Bool[Array, "*batch"] | None:
    if isinstance(guide, UniformCategorical):
        return guide.entropy() < 0
    if isinstance(guide, CertainCategorical) and isinstance(model, UniformCategorical):
        return model.entropy() > 0
    tables = [_zero_codes(fn) for fn in (guide, model)]
    if tables[0] is None or tables[1] is None or tables[0].shape[-1] != tables[1].shape[-1]:
        return None
    return (tables[0] & ~tables[1]).any(-1)


def _num_wrapped(fn: Any) -> int:
    """Event dims that are no part of the event of the distribution inside."""
    return fn.event_dim - base_distribution(fn).event_dim


def excludes(fn: Any, value: Array, *, least: float = _HOPELESS) -> Bool[Array, "*batch"]:
    """Whether a distribution never draws a value, over its batch dims.

    Args:
        fn: The distribution.
        value: The value.
        least: The log-density in nats up to which a value is as good as never drawn.
    """
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return excludes(fn.base_dist, value, least=least)
    if isinstance(fn, dist.Independent):
        inner, num_dims = excludes(fn.base_dist, value, least=least), fn.reinterpreted_batch_ndims
        return inner.any(tuple(range(-num_dims, 0))) if num_dims else inner
    if hasattr(fn, "conditional_log_prob"):  # a network's softmax leaves nothing out
        return jnp.zeros(jnp.shape(value)[: jnp.ndim(value) - fn.event_dim], bool)
    inside = fn.support(value)
    feasible = fn.support.feasible_like(value)
    value = jnp.where(inside.reshape(*inside.shape, *[1] * fn.event_dim), value, feasible)
    unlikely = fn.log_prob(value) <= least  # minus infinity among them
    if isinstance(fn, dist.BinomialProbs | dist.BinomialLogits):
        return unlikely | _never_counted(fn, value) | ~inside
    table = (
        None if isinstance(fn, CertainCategorical | UniformCategorical) else _zero_codes(fn)
    )  # their densities know
    if table is not None:
        codes = value.argmax(-1) if fn.event_dim else value.astype(int)
        shape = jnp.broadcast_shapes(codes.shape, table.shape[:-1])
        table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
        codes = jnp.broadcast_to(codes, shape)[..., None]
        unlikely = unlikely | jnp.take_along_axis(table, codes, -1)[..., 0]
    return unlikely | ~inside


def left_out_values(
    rng_key: Array, guide: Any, model: Any, value: Array
) -> tuple[Array, Bool[Array, "*batch"]]:
    """Values of the model's distribution, some cells of which the guide's never draws.

    By chance where several may be; there are many such cells, or few.

    Args:
        rng_key: Key of the choice.
        guide: The guide's distribution.
        model: The model's.
        value: What other cells keep.

    Returns:
        The values, and where there is such a cell, over batch dims.
    """
    tables = [_listed_zero_codes(base_distribution(fn)) for fn in (guide, model)]
    if (
        tables[0] is None
        or tables[1] is None
        or tables[0].shape[-1] != tables[1].shape[-1]
        or math.prod(value.shape) * tables[0].shape[-1] > _MOST_CELLS
    ):
        other = jnp.broadcast_to(model.sample(rng_key), jnp.shape(value)).astype(value.dtype)
        found = excludes(guide, other)
        return jnp.where(found.reshape(*found.shape, *[1] * guide.event_dim), other, value), found
    keys, num_inner = jax.random.split(rng_key, 3), base_distribution(model).event_dim
    cells = value.shape[: value.ndim - num_inner]
    table = jnp.broadcast_to(tables[0] & ~tables[1], (*cells, tables[0].shape[-1]))
    most = jax.random.uniform(keys[0]) ** 2
    moves = table.any(-1) & (jax.random.uniform(keys[1], cells) <= most)
    codes = (jax.random.uniform(keys[2], table.shape) * table).argmax(-1)
    if num_inner:
        other = jax.nn.one_hot(codes, table.shape[-1], dtype=value.dtype)
        return jnp.where(moves[..., None], other, value), _of_batch(moves, guide)
    return jnp.where(moves, codes.astype(value.dtype), value), _of_batch(moves, guide)


def _of_batch(cells: Array, fn: Any) -> Array:
    return cells.any(tuple(range(-_num_wrapped(fn), 0)))


def read_impossible(run: Run, layout: Layout, num_particles: int) -> Bool[Array, "*plates"]:
    """Whether the guide never draws the latents of a datum; a reader of records."""
    ledger = Ledger(layout, ())
    for site in run.guide.values():
        if site.needs_credit and not site.is_observed and layout.owns(site):
            ledger.add_bare("impossible", site, excludes(site.fn, site.value).astype(float))
    return ledger.total("impossible") > 0


def read_num_states(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """Log of how many states of a datum guide and model have; inf where not known; a reader.

    And of the "counted" ones, of entries that no mask silences.
    """
    ledger = Ledger(layout, ())
    for site in run.guide.values():
        if layout.owns(site) and not site.is_observed:
            other, logs = run.model.get(site.name, site), _log_num_values(site.fn)
            found = {"guide": (site, logs), "model": (site, jnp.full_like(logs, jnp.inf))}
            if not other.is_joint:
                found["model"] = other, _log_num_values(other.fn)
            for name, (each, logs) in found.items():
                counted = jnp.where(_counted_cells(each, (site, other)), logs, 0.0)
                for kind, values in ((name, logs), (f"counted_{name}", counted)):
                    ledger.add_bare(kind, each, _sum_of_cells(values, each.fn))
    return {
        f"{kind}states_of_{name}": ledger.total(f"{kind}{name}")
        for kind in ("", "counted_")
        for name in ("guide", "model")
    }


def _counted_cells(site: Site, both: Sequence[Site]) -> Bool[Array, "*batch_cells"]:
    """Where no mask silences a cell of a site, be it of the guide or of the model."""
    num_cells = _num_wrapped(site.fn)
    counted = entry_mask(site, num_cells)
    for each in both:
        if _num_wrapped(each.fn) == num_cells:
            counted = counted & entry_mask(each, num_cells)
    return counted


def _sum_of_cells(values: Array, fn: Any) -> Array:
    num_cells = _num_wrapped(fn)
    return values.sum(tuple(range(-num_cells, 0))) if num_cells else values


def _log_num_values(fn: Any) -> Float[Array, "*batch_cells"]:
    """Log of how many values a distribution draws, cell by cell; inf where that is not known."""
    base, num_event = base_distribution(fn), _num_wrapped(fn)
    shape = (*fn.batch_shape, *fn.event_shape[:num_event])
    known = isinstance(base, CertainCategorical | UniformCategorical)
    table = None if known else _zero_codes(base)
    if isinstance(base, CertainCategorical):
        found = jnp.zeros(())
    elif table is not None:
        found = jnp.log((~table).sum(-1))
    elif isinstance(base, dist.BinomialProbs | dist.BinomialLogits):
        never = _failures(base)
        found = jnp.where(never[0] | never[1], 0.0, jnp.log1p(jnp.asarray(base.total_count)))
    else:
        found = _log_length(base)
    return jnp.broadcast_to(found, shape)


def _log_length(base: Any) -> Float[Array, "*batch"]:
    """Log of how many integers the support of a distribution has; inf where it is no range."""
    low, high = (getattr(base.support, f"{side}_bound", None) for side in ("lower", "upper"))
    if not base.has_enumerate_support or low is None or high is None:
        return jnp.asarray(jnp.inf)
    return jnp.log1p(jnp.asarray(high) - low)


def has_zeros(fn: Any, value: Array) -> Bool[Array, "*batch"]:
    """Whether a value has a probability of 0, given so and clamped in its density.

    Over the batch dims, or what broadcasts to them. Under a mask, nothing counts.
    """
    if isinstance(fn, MaskedDistribution):
        return has_zeros(fn.base_dist, value) & jnp.asarray(fn._mask)
    if isinstance(fn, ExpandedDistribution):
        return has_zeros(fn.base_dist, value)
    if isinstance(fn, dist.Independent):
        inner, num_dims = has_zeros(fn.base_dist, value), fn.reinterpreted_batch_ndims
        inner = inner.reshape((1,) * (num_dims - inner.ndim) + inner.shape)
        return inner.any(tuple(range(-num_dims, 0))) if num_dims else inner
    if not isinstance(fn, _CLAMPED):
        return jnp.zeros((), bool)
    probs, most = jnp.asarray(fn.probs), getattr(fn, "total_count", 1)
    return ((probs == 0) & (value > 0)) | ((probs == 1) & (value < most))


def zeros_of(site: Site) -> Float[Array, "*batch"]:
    """What probabilities of 0 that its density clamps take off a site's log-density: all of it.

    Off the logarithm of a sum over marked sites, what it is without the clamps.
    """
    if "_unclamped" not in site.infer:
        return has_zeros(site.fn, site.value) * _NEVER
    exact = site.infer["_unclamped"]()[site.name].log_prob()
    return jnp.nan_to_num(exact - site.log_prob(), nan=0.0, neginf=_NEVER)


def exact_log_prob(site: Site) -> Float[Array, "*batch"]:
    """Log-density of a site's value, in which probabilities of 0 that it clamps are 0."""
    found = site.log_prob() + zeros_of(site)
    return jnp.where(found <= NOTHING, -jnp.inf, found)


def read_zeros(run: Run, layout: Layout, num_particles: int) -> dict[str, Array]:
    """What probabilities of 0 take off log-densities that clamp them, by kind; a reader of records.

    Kinds are "log_likelihood" and "log_prior", and of what data share "shared_likelihood" and
    "shared_prior".
    """
    ledger = Ledger(layout, [*run.guide.values(), *run.model.values()])
    for site in run.model.values():
        zeros = zeros_of(site)
        shape = jnp.broadcast_shapes(zeros.shape, site.fn.batch_shape)
        ledger.add(site.kind, site, jnp.broadcast_to(zeros, shape))
    kinds = ("likelihood", "prior")
    found = {f"log_{kind}": ledger.total(kind) for kind in kinds}
    return found | {f"shared_{kind}": ledger.total_shared(kind) for kind in kinds}


def _listed_zero_codes(fn: Any) -> Bool[Array, "*batch V"] | None:
    """As `_zero_codes`; None if codes are too many for a table."""
    return None if getattr(fn, "num_codes", 0) > _MOST_LISTED else _zero_codes(fn)


def _zero_codes(fn: Any) -> Bool[Array, "*batch V"] | None:
    """Which of the codes 0 ... V - 1 are never drawn; None of another family."""
    if isinstance(fn, dist.CategoricalProbs):
        return jnp.asarray(fn.probs) == 0
    if isinstance(fn, dist.CategoricalLogits | OneHotCategorical):
        return fn.logits - fn.logits.max(-1, keepdims=True) < _HOPELESS
    if isinstance(fn, dist.BernoulliProbs | dist.BernoulliLogits):
        return jnp.stack(_failures(fn), -1)
    if isinstance(fn, dist.BinomialProbs | dist.BinomialLogits) and not_jax_tracer(fn.total_count):
        counts = jnp.arange(int(np.asarray(fn.total_count).max()) + 1)
        counts = counts.reshape(-1, *[1] * len(fn.batch_shape))
        return jnp.moveaxis(_never_counted(fn, counts), 0, -1)
    return None


def _never_counted(fn: Any, counts: Array) -> Bool[Array, "*batch"]:
    """Which counts a Binomial never draws; its number of trials may be traced."""
    never_fails, never_succeeds = _failures(fn)
    trials = jnp.asarray(fn.total_count)
    zero = ((counts < trials) & never_fails) | ((counts > 0) & never_succeeds)
    return zero | (counts > trials)


def _failures(fn: Any) -> tuple[Array, Array]:
    """Where a coin never shows 0, and where it never shows 1."""
    if isinstance(fn, dist.BernoulliProbs | dist.BinomialProbs):
        return jnp.asarray(fn.probs) == 1, jnp.asarray(fn.probs) == 0
    return jnp.asarray(fn.logits) > -_HOPELESS, jnp.asarray(fn.logits) < _HOPELESS
