"""Read the sites of a run as arrays whose dims have names.

A plate's name for a dim that it covers, ``"z_dim_0"`` and so on for the others. What a reading is
of: see `READINGS`.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.util import not_jax_tracer

from numpyro_dvae.diagnostics.arrays import NamedArray
from numpyro_dvae.diagnostics.conditionals import value_probs
from numpyro_dvae.diagnostics.points import is_pinned
from numpyro_dvae.diagnostics.rates import expected_rate, is_reordered
from numpyro_dvae.distributions import OneHotCategorical
from numpyro_dvae.programs.densities import cell_log_prob, count_cells, entry_mask
from numpyro_dvae.programs.readers.impossible import exact_log_prob, excludes, leaves_out
from numpyro_dvae.programs.sites import Run, Site, deterministic_sites, sample_sites
from numpyro_dvae.programs.summing.values import joint_latents, probs_of_summed

__all__ = ["READINGS", "Readings", "SiteReader", "has_data"]

# What can be read of a run, of each site that has it.
READINGS = (
    "latent",  # draws
    "code",  # draws of discrete latents, as integers: where the 1 is of one-hot vectors
    "top",  # largest code that may be, where only a run tells
    "least",  # least code, of those
    "deterministic",  # of the model, at these draws
    "observed",  # the data as the model observes them, without draws in front
    "predictive",  # observations simulated at the draws
    "log_likelihood",  # of each observation
    "seen",  # where no mask silences an entry of an observation
    "mean",  # of the distribution of each observation
    "table",  # of a codebook of several, of which of them a latent is
    "counted",  # where no mask silences an entry of a latent
    "rate",  # log q - log p of each latent, given those before it
    "reordered",  # whether the guide draws a latent before others on which the model lets it depend
    "alone",  # log q of sites that the guide alone has, -log p of latents that a sum makes joint
    "outside",  # whether the guide cannot draw a value that the model's distribution can
    "conditional",  # the guide's probability of each value of a discrete latent, given those before
    "summed",  # the probability of each value of a site that is summed out, given draws and data
    "subsample",  # rows of the full plate that a plate drew, without draws in front
)

# Names are no arrays: JAX's transformations leave them as they are.
jax.tree_util.register_dataclass(
    NamedArray, data_fields=["values"], meta_fields=["dims", "discrete", "num_codes"]
)

Readings = dict[str, dict[str, NamedArray]]  # reading -> site -> array


class SiteReader(NamedTuple):
    """Labels what it reads of the sites of a run."""

    nesting: int
    rng_key: Array

    def read(self, run: Run, wanted: set[str]) -> Readings:
        """Read each of `wanted` of every site that has it."""
        guide_sites, sites = run.guide, run.model
        scored = {name: site for name, site in sites.items() if site.is_observed}
        latent = {name: site for name, site in sites.items() if name not in scored}
        data = _data_of(run)
        summed = probs_of_summed(sites) if "summed" in wanted else {}
        of_summed = {name: site for name, (site, _) in summed.items()}
        at_once = {name: site for name, site in of_summed.items() if not site.is_scanned}
        readers: dict[str, tuple[dict[str, Site], Callable]] = {
            "latent": (latent, self.value),
            "code": (latent, self.code),
            "top": (latent, self.top),
            "least": (latent, self.least),
            "deterministic": (deterministic_sites(run.model_trace), self.deterministic),
            "observed": (data, self.value),
            "log_likelihood": (scored, self.log_likelihood),
            "mean": ({n: s for n, s in scored.items() if has_data(s)}, self.mean),
            "seen": (scored | data, self.seen),
            "table": (latent, lambda name, _: self.table(name, guide_sites[name])),
            "counted": (latent | at_once, lambda n, site: self.seen(n, site, n in at_once)),
            "summed": (of_summed, lambda name, site: self.summed(name, site, summed[name][1])),
            "rate": (latent, lambda name, site: self.rate(name, run)),
            "reordered": (latent, lambda name, site: self.reordered(name, run)),
            "alone": (
                {n: s for n, s in guide_sites.items() if n not in sites}
                | {name: sites[name] for name in joint_latents(sites)},
                self.log_density_ratio,
            ),
            "outside": (latent, lambda name, site: self.outside(name, guide_sites[name], site)),
            "conditional": (
                latent,
                lambda name, site: self.conditional(name, guide_sites[name], site),
            ),
        }
        found: Readings = {}
        for reading in wanted & readers.keys():
            sites, reader = readers[reading]
            each = {name: reader(name, site) for name, site in sites.items()}
            found[reading] = {name: value for name, value in each.items() if value is not None}
        return found

    def value(self, name: str, site: Site) -> NamedArray:
        """The value, its dims named, and how many codes it has."""
        support = site.fn.support
        found = self.label(name, site, site.value, site.fn.event_dim)
        discrete = bool(support.is_discrete)
        return replace(found, discrete=discrete, num_codes=_num_codes(support))

    def code(self, name: str, site: Site) -> NamedArray | None:
        """The code of a discrete latent: its value, or where the 1 is of a one-hot vector."""
        if isinstance(site.base, OneHotCategorical):
            found = self.label(name, site, site.value.argmax(-1), site.fn.event_dim - 1)
            return replace(found, discrete=True, num_codes=site.value.shape[-1])
        found = self.value(name, site)
        return found if found.discrete else None

    def top(self, name: str, site: Site) -> NamedArray | None:
        """The largest code that may be, if it is no constant: a count of trials, say."""
        high = getattr(_innermost(site.fn.support), "upper_bound", None)
        if high is None or not site.fn.support.is_discrete or _num_codes(site.fn.support):
            return None
        return self.label(name, site, jnp.full(site.fn.batch_shape, jnp.max(high)), 0)

    def least(self, name: str, site: Site) -> NamedArray | None:
        """The least code that may be, beside such a largest one."""
        low = getattr(_innermost(site.fn.support), "lower_bound", 0)
        least = None if self.top(name, site) is None else jnp.min(jnp.asarray(low))
        fill = jnp.full(site.fn.batch_shape, 0 if least is None else least)
        return None if least is None else self.label(name, site, fill, 0)

    def table(self, name: str, guide_site: Site) -> NamedArray | None:
        """Of which table of a codebook each latent is; None if all are of one."""
        sizes = getattr(guide_site.base, "tables", None) or ()
        if len(sizes) < 2:
            return None
        return self.label(
            name,
            guide_site,
            jnp.repeat(jnp.arange(len(sizes)), jnp.asarray(sizes), total_repeat_length=sum(sizes)),
            1,
        )

    def deterministic(self, name: str, site: Site) -> NamedArray:
        """The value of a deterministic site, whose event dims are not declared."""
        depth = max((-frame.dim for frame in site.plates.values()), default=0)
        value = jnp.asarray(site.value)
        return self.label(name, site, value, max(value.ndim - depth, 0))

    def log_likelihood(self, name: str, site: Site) -> NamedArray:
        """Log-density of an observation; 0 where a mask silences it."""
        return self.label(name, site, exact_log_prob(site), 0)

    def log_density_ratio(self, name: str, site: Site) -> NamedArray:
        """What a site that guide or model alone has adds to log q - log p."""
        found = self.log_likelihood(name, site)
        return replace(found, values=-found.values) if site.infer.get("_of_latents") else found

    def mean(self, name: str, site: Site) -> NamedArray | None:
        """Mean of the distribution, if it knows it."""
        try:
            value = site.fn.mean
        except NotImplementedError:
            return None
        return self.label(name, site, value, site.fn.event_dim)

    def seen(self, name: str, site: Site, is_summed: bool = False) -> NamedArray:
        """Whether a mask lets entries count; of size 1 in event dims it does not tell apart."""
        event_dim = site.fn.event_dim
        found = entry_mask(site, event_dim)
        batch = jnp.shape(site.value)[: jnp.ndim(site.value) - event_dim]
        if is_summed:  # whose values lie along a dim before those of the plates
            batch = batch[max(len(batch) - self.nesting, 0) :]
        own = event_dim + max(len(batch), self.nesting)  # the steps of a `scan`, too
        if (extra := found.ndim - own) > 0:  # of enumerated sites
            found = found.any(tuple(range(extra)))
        if not site.is_scanned:  # of all cells, also those under no plate
            found = found | jnp.zeros((*batch, *[1] * event_dim), bool)
        return self.label(name, site, found, event_dim)

    def rate(self, name: str, run: Run) -> NamedArray:
        """Log q - log p, by cell of the event where both have the same cells.

        Its expectation given the draws before the site, in place of its value, where there is one,
        and these are all that the model lets the site depend on.
        """
        guide_site, site = run.guide[name], run.model[name]
        cells = {count_cells(each.fn) for each in (guide_site, site)}
        num_cells = cells.pop() if len(cells) == 1 else 0
        found = None
        if not (site.is_joint or is_reordered(name, run)):
            found = expected_rate(guide_site, site, num_cells)
        if found is None:
            log_q, log_p = (
                cell_log_prob(each.fn, site.value, num_cells) for each in (guide_site, site)
            )
            found = log_q - log_p
        return self.label(name, site, found, num_cells)

    def reordered(self, name: str, run: Run) -> NamedArray:
        """Whether its rate is of its draws alone, as `is_reordered` tells, and may be below 0."""
        return NamedArray((), jnp.asarray(is_reordered(name, run)))

    def outside(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        """Where the guide cannot draw what the model's distribution can; None if it surely can."""
        is_point = site.fn.support.is_discrete and is_pinned(guide_site, site)
        if not (guide_site.needs_credit or is_point):
            return None
        found = leaves_out(guide_site.fn, site.fn)
        if found is None and hasattr(guide_site.fn, "conditional_log_prob"):
            return None  # a network's softmax leaves nothing out, and drawing from it is slow
        if found is None:
            key = jax.random.fold_in(self.rng_key, zlib.crc32(name.encode()))
            found = excludes(guide_site.fn, site.fn.sample(key))
        own = max(jnp.ndim(site.value) - site.fn.event_dim, self.nesting)
        if (extra := found.ndim - own) > 0:  # for some values of enumerated sites
            found = found.any(tuple(range(extra)))
        return self.label(name, site, found, 0)

    def conditional(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        """Probabilities of each value, on the last dim; see `value_probs`."""
        found = value_probs(guide_site, site)
        return None if found is None else self.label(name, site, found[0], found[1] + 1)

    def summed(self, name: str, site: Site, probs: Array) -> NamedArray:
        """Probabilities of each value of a site that is summed out, on the last dim."""
        if not site.is_scanned:
            return self.label(name, site, probs, 1)
        found = self.label(name, replace(site, infer={}), probs, 2)
        return replace(found, dims=(*found.dims[:-2], f"{name}_step", f"{name}_dim_0"))

    def label(self, name: str, site: Site, value: Array, event_dim: int) -> NamedArray:
        """Expand to the plates, name the dims, and drop those of size 1 under no plate.

        Steps of a `scan`, which lead the batch dims, come behind the plates.
        """
        inner = [f"{name}_dim_{i}" for i in range(event_dim)]
        if site.is_scanned:
            shape, num_batch = jnp.shape(value), jnp.ndim(value) - event_dim
            batch, event = shape[:num_batch], shape[num_batch:]
            ones = [1] * (len(site.fn.batch_shape) - num_batch)  # behind the steps
            value = jnp.reshape(value, (*batch[:1], *ones, *batch[1:], *event))
            value = jnp.broadcast_to(value, (*site.fn.batch_shape, *event))
            value = jnp.moveaxis(value, 0, len(site.fn.batch_shape) - 1)
            inner, event_dim = [f"{name}_step", *inner], event_dim + 1
        frames = {frame.dim: frame for frame in site.plates.values()}
        num_batch = jnp.ndim(value) - event_dim
        depth = max(self.nesting, num_batch)
        batch = (1,) * (depth - num_batch) + jnp.shape(value)[:num_batch]
        event = jnp.shape(value)[num_batch:]
        sizes = {d: frames[d].size if d in frames else batch[d] for d in range(-depth, 0)}
        kept = [d for d, size in sizes.items() if d in frames or size > 1]
        dims = [frames[d].name if d in frames else f"{name}_batch_{-d}" for d in kept]
        value = jnp.broadcast_to(jnp.reshape(value, batch + event), (*sizes.values(), *event))
        value = value.reshape(*(sizes[d] for d in kept), *event)
        return NamedArray((*dims, *inner), value)


def _data_of(run: Run) -> dict[str, Site]:
    """Observed sites as the model has them, those that a sum has taken in among them."""
    sites = sample_sites(run.model_trace)
    return {n: s for n, s in sites.items() if s.is_observed and has_data(s)}


def has_data(site: Site) -> bool:
    """Whether a site has a value, as factors, which are observed sites, have not."""
    return 0 not in tuple(site.fn.event_shape)


def _num_codes(support: Any) -> int:
    """How many integers from 0 on a support has; 0 if it is none of these, or not known."""
    support = _innermost(support)
    if support is constraints.boolean:
        return 2
    low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if not support.is_discrete or low is None or high is None:
        return 0
    if not (not_jax_tracer(low) and not_jax_tracer(high)):
        return 0
    return int(np.asarray(high).max()) + 1 if np.all(np.asarray(low) == 0) else 0


def _innermost(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
