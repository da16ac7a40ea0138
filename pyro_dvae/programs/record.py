"""What a run of guide and model says of each datum: the record that every algorithm takes.

See `particles`, which makes the runs.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dvae.ops.multisample import antithetic_factor
from pyro_dvae.programs.densities import fast_log_prob
from pyro_dvae.programs.sites import (
    Layout,
    Site,
    base_distribution,
    log_prob,
    needs_score,
    plates_of,
    sample_sites,
    with_particle_axis,
)
from pyro_dvae.programs.statistics import Statistic, site_statistic

__all__ = ["Ledger", "Particles", "concatenate", "drawn_subsamples", "make_record"]


class Particles(NamedTuple):
    """Log-densities of K particles: of each datum, and of what the data share."""

    log_likelihood: Float[Tensor, "K *plates"]  # observed sites of the model
    log_prior: Float[Tensor, "K *plates"]  # latent sites of the model
    log_q_discrete: Float[Tensor, "K *plates"]  # guide sites that need the score function
    log_q_rest: Float[Tensor, "K *plates"]  # reparameterised guide sites
    log_draw: Float[Tensor, "K *plates"]  # as log_q_discrete, but never scaled or masked: its
    # gradient is the score function of the draws
    entropy: Float[Tensor, "K *plates"] | None  # closed form, where asked for and offered
    codes: Int[Tensor, "K *plates D"] | None  # discrete latents of a datum, where asked for
    prediction: Float[Tensor, "..."] | None  # the guide's deterministic site "baseline"
    shared_likelihood: Float[Tensor, "K"]
    shared_prior: Float[Tensor, "K"]
    shared_q: Float[Tensor, "K"]
    scale: float | Tensor  # weight of a datum in the loss
    statistics: dict[str, Statistic]  # of sites whose parameters have closed forms, if asked for
    paired_draw: Float[Tensor, "K *plates"] | None = None  # log_draw, its sites in antithetic
    # pairs weighed by max(p, 1 - p); where there are any
    dreamt: Float[Tensor, "*plates"] | None = None  # log q of the model's own draws, where asked

    quantized: dict[str, tuple[Tensor, Tensor]] | None = None  # by site: vectors before and after
    # quantisation, the guide's deterministic sites "z.inputs" and "z.vectors" of a site "z"

    @property
    def log_p(self) -> Float[Tensor, "K *plates"]:
        """Log joint density of each datum."""
        return self.log_likelihood + self.log_prior

    @property
    def log_q(self) -> Float[Tensor, "K *plates"]:
        """Log density of each datum's latents under the guide."""
        return self.log_q_discrete + self.log_q_rest


def drawn_subsamples(traces: tuple[poutine.Trace, poutine.Trace]) -> poutine.Trace:
    """The subsamples that a run has drawn, to be replayed."""
    minibatch = poutine.Trace()
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site):
                minibatch.nodes.setdefault(name, site)
    return minibatch


def _without_mask(fn: Any) -> Any:
    """The distribution that draws are made from: a mask silences the density, never the draw."""
    if isinstance(fn, dist.MaskedDistribution):
        return _without_mask(fn.base_dist)
    if not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        return fn
    base = _without_mask(fn.base_dist)
    if base is fn.base_dist:
        return fn
    if isinstance(fn, dist.ExpandedDistribution):
        return base.expand(fn.batch_shape)
    return base.to_event(fn.reinterpreted_batch_ndims)


def _entropy(site: Site) -> Tensor | None:
    """Closed form, or closed form per step given the earlier codes (autoregressive guides)."""
    if hasattr(site["fn"], "conditional_entropy"):
        return site["fn"].conditional_entropy(site["value"])
    try:
        return site["fn"].entropy()
    except NotImplementedError:
        return None


class Ledger:
    """Sums of log-densities by kind: of each datum, and of what the data share."""

    def __init__(self, layout: Layout, num_particles: int) -> None:
        self.layout, self.num_particles = layout, num_particles
        self.owned: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        self.nothing: dict[tuple[int, ...], Tensor] = {}
        self.scale: float | Tensor = 1.0

    def add(self, kind: str, site: Site, value: Tensor) -> None:
        """Scale, mask and sum the values of a site into its datum, or into the shared part."""
        plates = plates_of(site)
        scale, dims = site["scale"], tuple(range(-self.layout.nesting, 0))
        book = self.shared
        if plates.keys() >= frozenset(self.layout.plates):
            self.scale = _datum_scale(plates[name] for name in self.layout.plates)
            scale = scale / self.scale  # exactly 1.0 for a site with no scale of its own
            dims, book = tuple(set(dims) - set(self.layout.dims)), self.owned
        if kind not in ("draw", "paired_draw"):
            value = scale_and_mask(value, scale, site["mask"])
        value = with_particle_axis(site, value, self.layout.nesting, self.num_particles)
        value = value.sum(dims, keepdim=True) if dims else value
        book[kind] = book[kind] + value if kind in book else value

    def total(self, kind: str) -> Tensor:
        """``(K, *plates)``."""
        shapes = (value.shape for value in self.owned.values())
        shape = broadcast_shape((self.num_particles, *[1] * self.layout.nesting), *shapes)
        kept = (shape[0], *(shape[dim] for dim in self.layout.dims))
        found = self.owned.get(kind)
        return self._zeros(kept) if found is None else found.expand(shape).reshape(kept)

    def total_shared(self, kind: str) -> Tensor:
        """``(K,)``."""
        found, shape = self.shared.get(kind), (self.num_particles,)
        return self._zeros(shape) if found is None else found.reshape(-1).expand(shape)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Of kinds that no site has, made once."""
        if shape not in self.nothing:
            anything = next(iter((self.owned | self.shared).values()))
            self.nothing[shape] = anything.new_zeros(()).expand(shape)
        return self.nothing[shape]


def _datum_scale(plates: Iterator[Any]) -> float | Tensor:
    scale = 1.0
    for plate in plates:
        scale = scale * (plate.size if plate.full_size is None else plate.full_size) / plate.size
    return scale


def make_record(
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
    num_particles: int,
    layout: Layout,
    with_entropy: bool = False,
    with_codes: bool = False,
    closed_forms: Mapping[str, Any] = MappingProxyType({}),
) -> Particles:
    """The record of a run, whose sites have K particles in front or broadcast over them."""
    ledger, entropies_known = Ledger(layout, num_particles), with_entropy
    for name, site in sample_sites(guide_trace):
        value = log_prob(site)
        ledger.add("q_discrete" if needs_score(site) else "q_rest", site, value)
        if needs_score(site) and not site["is_observed"]:
            bare = _without_mask(site["fn"])  # scored again only if there is a mask
            value = value if bare is site["fn"] else bare.log_prob(site["value"])
            ledger.add("draw", site, value)
            if layout.paired:
                value = _paired_log_prob(site) if name in layout.paired else value
                ledger.add("paired_draw", site, value)
            entropy = _entropy(site) if entropies_known else None
            entropies_known = entropy is not None
            if entropy is not None:
                ledger.add("entropy", site, entropy)
    for _, site in sample_sites(model_trace):
        ledger.add("likelihood" if site["is_observed"] else "prior", site, fast_log_prob(site))
    return Particles(
        log_likelihood=ledger.total("likelihood"),
        log_prior=ledger.total("prior"),
        log_q_discrete=ledger.total("q_discrete"),
        log_q_rest=ledger.total("q_rest"),
        log_draw=ledger.total("draw"),
        entropy=ledger.total("entropy") if entropies_known else None,
        codes=_codes(guide_trace, layout) if with_codes else None,
        prediction=_prediction(guide_trace, layout, num_particles),
        shared_likelihood=ledger.total_shared("likelihood"),
        shared_prior=ledger.total_shared("prior"),
        shared_q=ledger.total_shared("q_discrete") + ledger.total_shared("q_rest"),
        scale=ledger.scale,
        statistics={
            name: site_statistic(model_trace.nodes[name], form, layout)
            for name, form in closed_forms.items()
        },
        paired_draw=ledger.total("paired_draw") if layout.paired else None,
        quantized=_quantized(guide_trace),
    )


def _paired_log_prob(site: Site) -> Tensor:
    """Log-probability of Bernoulli draws, each latent's weighed by its factor in a pair."""
    base = base_distribution(site["fn"])
    weighed = antithetic_factor(base.probs) * base.log_prob(site["value"])
    return weighed.sum(tuple(range(-site["fn"].event_dim, 0))) if site["fn"].event_dim else weighed


def _repeats(site: Site) -> bool:
    return getattr(base_distribution(site["fn"]), "has_enumerate_support", False)


def _codes(trace: poutine.Trace, layout: Layout) -> Tensor | None:
    """Values of the discrete sites, flattened per datum; None where draws cannot repeat."""
    codes: list[Tensor] = []
    site: Site
    for _, site in sample_sites(trace):
        if not needs_score(site):
            if frozenset(layout.plates) <= plates_of(site).keys():
                return None
            continue
        if site["is_observed"] or not _repeats(site):
            return None
        batch = site["value"].dim() - site["fn"].event_dim
        value = site["value"].reshape((1,) * (layout.nesting + 1 - batch) + site["value"].shape)
        kept = [0, *(dim - site["fn"].event_dim for dim in layout.dims)]
        value = value.movedim(kept, tuple(range(len(kept))))
        codes.append(value.reshape(*value.shape[: len(kept)], -1).long())
    return torch.cat(codes, -1) if codes else None


def _prediction(trace: poutine.Trace, layout: Layout, num_particles: int) -> Tensor | None:
    """The guide's baseline b(x), from its deterministic site "baseline"."""
    site: Site = trace.nodes.get("baseline")
    if site is None or not (site["infer"] or {}).get("_deterministic"):
        return None
    value = with_particle_axis(site, site["value"], layout.nesting, num_particles)
    return value.reshape([value.shape[0], *(value.shape[dim] for dim in layout.dims)])


def _quantized(trace: poutine.Trace) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Vectors that the guide has quantised, by the site of their codes."""
    nodes: Any = trace.nodes
    pairs = {
        name: (nodes[f"{name}.inputs"]["value"], nodes[f"{name}.vectors"]["value"])
        for name, _ in sample_sites(trace)
        if f"{name}.inputs" in nodes and f"{name}.vectors" in nodes
    }
    return pairs or None


def concatenate(records: list[Particles]) -> Particles:
    """Put records one after the other on the axis of particles."""
    if len(records) == 1:
        return records[0]
    kept = ("scale", "statistics", "quantized")
    fields = [field for field in Particles._fields if field not in kept]
    columns = {field: [getattr(record, field) for record in records] for field in fields}
    joined: dict[str, Any] = {
        field: None if column[0] is None else torch.cat(column) for field, column in columns.items()
    }
    statistics = {
        name: Statistic(
            torch.cat([record.statistics[name].value for record in records]), first.mask
        )
        for name, first in records[0].statistics.items()
    }
    return Particles(**joined, scale=records[0].scale, statistics=statistics)
