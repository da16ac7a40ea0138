"""What a run of guide and model says of each datum: the record that every algorithm takes.

See `particles`, which makes the runs.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution

from numpyro_dvae.ops.bounds import bernoulli_entropy, categorical_entropy
from numpyro_dvae.ops.multisample import antithetic_factor
from numpyro_dvae.programs.densities import fast_log_prob
from numpyro_dvae.programs.sites import (
    Layout,
    Site,
    Trace,
    base_distribution,
    log_prob,
    needs_score,
    plates_of,
    sample_sites,
    with_batch_dims,
)
from numpyro_dvae.programs.statistics import Statistic, site_statistic

__all__ = ["Ledger", "Particles", "make_record"]


class Particles(NamedTuple):
    """Log-densities of K particles: of each datum, and of what the data share."""

    log_likelihood: Float[Array, "K *plates"]  # observed sites of the model
    log_prior: Float[Array, "K *plates"]  # latent sites of the model
    log_q_discrete: Float[Array, "K *plates"]  # guide sites that need the score function
    log_q_rest: Float[Array, "K *plates"]  # reparameterised guide sites
    log_draw: Float[Array, "K *plates"]  # as log_q_discrete, but never scaled or masked: its
    # gradient is the score function of the draws
    entropy: Float[Array, "K *plates"] | None  # closed form, where asked for and offered
    codes: Int[Array, "K *plates D"] | None  # discrete latents of a datum, where asked for
    prediction: Float[Array, "..."] | None  # the guide's deterministic site "baseline"
    shared_likelihood: Float[Array, "K"]
    shared_prior: Float[Array, "K"]
    shared_q: Float[Array, "K"]
    scale: float | Array  # weight of a datum in the loss
    statistics: dict[str, Statistic]  # of sites whose parameters have closed forms, if asked for
    paired_draw: Float[Array, "K *plates"] | None = None  # log_draw, its sites in antithetic
    # pairs weighed by max(p, 1 - p); where there are any
    dreamt: Float[Array, "*plates"] | None = None  # log q of the model's own draws, where asked

    quantized: dict[str, tuple[Array, Array]] | None = None  # by site: vectors before and after
    # quantisation, the guide's deterministic sites "z.inputs" and "z.vectors" of a site "z"

    @property
    def log_p(self) -> Float[Array, "K *plates"]:
        """Log joint density of each datum."""
        return self.log_likelihood + self.log_prior

    @property
    def log_q(self) -> Float[Array, "K *plates"]:
        """Log density of each datum's latents under the guide."""
        return self.log_q_discrete + self.log_q_rest


def _without_mask(fn: Any) -> Any:
    """The distribution that draws are made from: a mask silences the density, never the draw."""
    if isinstance(fn, MaskedDistribution):
        return _without_mask(fn.base_dist)
    base = getattr(fn, "base_dist", None)
    if not isinstance(fn, ExpandedDistribution | dist.Independent) or _without_mask(base) is base:
        return fn
    if isinstance(fn, ExpandedDistribution):
        return _without_mask(base).expand(fn.batch_shape)
    return _without_mask(base).to_event(fn.reinterpreted_batch_ndims)


def _entropy(fn: Any, value: Array) -> Array | None:
    """Closed form, or closed form per step given the earlier codes (autoregressive guides)."""
    if isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        entropy = _entropy(fn.base_dist, value)
        if entropy is None:
            return None
        if isinstance(fn, MaskedDistribution):
            return jnp.where(fn._mask, entropy, 0.0)
        if isinstance(fn, ExpandedDistribution):
            return jnp.broadcast_to(entropy, fn.batch_shape)
        return entropy.sum(range(-fn.reinterpreted_batch_ndims, 0))
    if hasattr(fn, "conditional_entropy"):
        return fn.conditional_entropy(value)
    if isinstance(fn, dist.CategoricalLogits):
        return categorical_entropy(fn.logits)
    if isinstance(fn, dist.BernoulliLogits):  # NumPyro's own is NaN at logits of -100
        return bernoulli_entropy(fn.logits)
    try:
        return fn.entropy()
    except NotImplementedError:
        return None


class Ledger:
    """Sums of one particle's log-densities by kind: of each datum, and of what the data share."""

    def __init__(self, layout: Layout, trace: Trace) -> None:
        self.layout, self.scale = layout, _datum_scale(layout, trace)
        self.owned: dict[str, Array] = {}
        self.shared: dict[str, Array] = {}

    def add(self, kind: str, site: Site, value: Array) -> None:
        """Scale and sum the values of a site into its datum, or into the shared part."""
        scale = 1.0 if site["scale"] is None else site["scale"]
        dims, book = tuple(range(-self.layout.nesting, 0)), self.shared
        if plates_of(site).keys() >= frozenset(self.layout.plates):
            scale = scale / self.scale  # exactly 1.0 for a site with no scale of its own
            dims, book = tuple(set(dims) - set(self.layout.dims)), self.owned
        value = value if kind in ("draw", "paired_draw") else value * scale
        value = with_batch_dims(site, value, self.layout.nesting).sum(dims, keepdims=True)
        book[kind] = book[kind] + value if kind in book else value

    def total(self, kind: str) -> Array:
        """``(*plates,)``."""
        shapes = (value.shape for value in self.owned.values())
        shape = jnp.broadcast_shapes((1,) * self.layout.nesting, *shapes)
        kept = [shape[dim] for dim in self.layout.dims]
        return jnp.broadcast_to(self._value(self.owned, kind), shape).reshape(kept)

    def total_shared(self, kind: str) -> Array:
        """A scalar."""
        return self._value(self.shared, kind).reshape(())

    def _value(self, book: dict[str, Array], kind: str) -> Array:
        anything = next(iter((self.owned | self.shared).values()))
        return book.get(kind, jnp.zeros((1,) * self.layout.nesting, anything.dtype))


def _datum_scale(layout: Layout, trace: Trace) -> float:
    """Full size over subsample size, of all shared plates."""
    plates = [trace[name] for name in layout.plates if name in trace]
    return math.prod((plate["args"][0] / len(plate["value"]) for plate in plates), start=1.0)


def make_record(
    guide_trace: Trace,
    model_trace: Trace,
    layout: Layout,
    with_entropy: bool = False,
    with_codes: bool = False,
    closed_forms: Mapping[str, Any] = MappingProxyType({}),
) -> Particles:
    """The record of one particle, without the axis K."""
    ledger = Ledger(layout, {**model_trace, **guide_trace})
    entropies_known = with_entropy
    for name, site in sample_sites(guide_trace):
        value, fn = log_prob(site), site["fn"]
        ledger.add("q_discrete" if needs_score(site) else "q_rest", site, value)
        if needs_score(site) and not site["is_observed"]:
            bare = _without_mask(fn)  # scored again only if there is a mask
            value = value if bare is fn else bare.log_prob(site["value"])
            ledger.add("draw", site, value)
            if layout.paired:
                value = _paired_log_prob(site) if name in layout.paired else value
                ledger.add("paired_draw", site, value)
            entropy = _entropy(fn, site["value"]) if entropies_known else None
            entropies_known = entropy is not None
            if entropy is not None:
                ledger.add("entropy", site, entropy)
    for _, site in sample_sites(model_trace):
        ledger.add("likelihood" if site["is_observed"] else "prior", site, fast_log_prob(site))
    log_likelihood = ledger.total("likelihood")
    return Particles(
        log_likelihood=log_likelihood,
        log_prior=ledger.total("prior"),
        log_q_discrete=ledger.total("q_discrete"),
        log_q_rest=ledger.total("q_rest"),
        log_draw=ledger.total("draw"),
        entropy=ledger.total("entropy") if entropies_known else None,
        codes=_codes(guide_trace, layout) if with_codes else None,
        prediction=_prediction(guide_trace, layout),
        shared_likelihood=ledger.total_shared("likelihood"),
        shared_prior=ledger.total_shared("prior"),
        shared_q=ledger.total_shared("q_discrete") + ledger.total_shared("q_rest"),
        scale=jnp.asarray(ledger.scale, log_likelihood.dtype),
        statistics={
            name: site_statistic(model_trace[name], form, layout)
            for name, form in closed_forms.items()
        },
        paired_draw=ledger.total("paired_draw") if layout.paired else None,
        quantized=_quantized(guide_trace),
    )


def _paired_log_prob(site: Site) -> Array:
    """Log-probability of Bernoulli draws, each latent's weighed by its factor in a pair."""
    base = base_distribution(site["fn"])
    weighed = antithetic_factor(base.probs) * base.log_prob(site["value"])
    return weighed.sum(range(-site["fn"].event_dim, 0))


def _repeats(site: Site) -> bool:
    return bool(getattr(base_distribution(site["fn"]), "has_enumerate_support", False))


def _codes(trace: Trace, layout: Layout) -> Array | None:
    """Values of the discrete sites, flattened per datum; None where draws cannot repeat."""
    codes = []
    for _, site in sample_sites(trace):
        if not needs_score(site):
            if frozenset(layout.plates) <= plates_of(site).keys():
                return None
            continue
        if site["is_observed"] or not _repeats(site):
            return None
        event_dim = site["fn"].event_dim
        batch = jnp.ndim(site["value"]) - event_dim
        value = site["value"].reshape((1,) * (layout.nesting - batch) + site["value"].shape)
        kept = [dim - event_dim for dim in layout.dims]
        value = jnp.moveaxis(value, kept, range(len(kept)))
        codes.append(value.reshape(*value.shape[: len(kept)], -1).astype(int))
    return jnp.concatenate(codes, -1) if codes else None


def _prediction(trace: Trace, layout: Layout) -> Array | None:
    """The guide's baseline b(x), from its deterministic site "baseline"."""
    site = trace.get("baseline")
    if site is None or site["type"] != "deterministic":
        return None
    value = with_batch_dims(site, site["value"], layout.nesting)
    return value.reshape([value.shape[dim] for dim in layout.dims])


def _quantized(trace: Trace) -> dict[str, tuple[Array, Array]] | None:
    """Vectors that the guide has quantised, by the site of their codes."""
    pairs = {
        name: (trace[f"{name}.inputs"]["value"], trace[f"{name}.vectors"]["value"])
        for name, _ in sample_sites(trace)
        if f"{name}.inputs" in trace and f"{name}.vectors" in trace
    }
    return pairs or None
