"""Read the sites of a run as arrays whose dims have names.

A plate's name for a dim that it covers, ``"z_dim_0"`` and so on for the others, and the draws in
front of all. What a reading is of: see `READINGS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import OneHotCategorical

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.conditionals import value_probs
from pyro_dvae.diagnostics.points import is_pinned
from pyro_dvae.diagnostics.rates import expected_rate, is_reordered
from pyro_dvae.programs.densities import cell_log_prob, count_cells, entry_mask
from pyro_dvae.programs.readers.impossible import exact_log_prob, excludes, leaves_out
from pyro_dvae.programs.sites import Run, Site, deterministic_sites, sample_sites
from pyro_dvae.programs.summing.values import joint_latents, probs_of_summed

__all__ = ["READINGS", "Readings", "SiteReader", "has_data", "join_runs"]

# What can be read of a run, of each site that has it.
READINGS = (
    "latent",  # draws
    "code",  # draws of discrete latents, as integers: where the 1 is of one-hot vectors
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

_ABSENT = ("outside", "seen", "alone")  # of which a site that is not there has none

Readings = dict[str, dict[str, NamedArray]]  # reading -> site -> array


class SiteReader(NamedTuple):
    """Labels what it reads of the sites of a run."""

    nesting: int
    num_draws: int  # of the run
    draw_axes: Mapping[str, int] = MappingProxyType({})  # where deterministic sites have the draws

    def read(self, run: Run, wanted: set[str]) -> Readings:
        """Read each of `wanted` of every site that has it."""
        guide_sites, sites = run.guide, run.model
        scored = {name: site for name, site in sites.items() if site.is_observed}
        latent = {name: site for name, site in sites.items() if name not in scored}
        data = _data_of(run)
        summed = probs_of_summed(sites) if "summed" in wanted else {}
        of_summed = {name: site for name, (site, _) in summed.items()}
        readers: dict[str, tuple[dict[str, Site], Callable]] = {
            "latent": (latent, self.value),
            "code": (latent, self.code),
            "deterministic": (deterministic_sites(run.model_trace), self.deterministic),
            "observed": (data, SiteReader(self.nesting, 1).data),
            "log_likelihood": (scored, self.log_likelihood),
            "mean": ({n: s for n, s in scored.items() if has_data(s)}, self.mean),
            "seen": (scored | data, self.seen),
            "table": (latent, lambda name, _: self.table(name, guide_sites[name])),
            "counted": (latent | of_summed, self.seen),
            "summed": (of_summed, lambda name, site: self.label(name, site, summed[name][1], 1)),
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
        num_codes = _num_codes(support) or getattr(site.base, "num_vertices", 0)  # of trees
        return replace(found, discrete=discrete, num_codes=num_codes)

    def code(self, name: str, site: Site) -> NamedArray | None:
        """The code of a discrete latent: its value, or where the 1 is of a one-hot vector."""
        if isinstance(site.base, OneHotCategorical):
            found = self.label(name, site, site.value.argmax(-1), site.fn.event_dim - 1)
            return replace(found, discrete=True, num_codes=site.value.shape[-1])
        found = self.value(name, site)
        return found if found.discrete else None

    def data(self, name: str, site: Site) -> NamedArray:
        """The value of an observed site, without draws in front."""
        found = self.value(name, site)
        return replace(found, values=found.values[0])

    def table(self, name: str, guide_site: Site) -> NamedArray | None:
        """Of which table of a codebook each latent is; None if all are of one."""
        sizes = getattr(guide_site.base, "tables", None) or ()
        if len(sizes) < 2:
            return None
        return self.label(
            name, guide_site, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), 1
        )

    def deterministic(self, name: str, site: Site) -> NamedArray:
        """The value of a deterministic site; under no plate, all dims are the value's own."""
        value = torch.as_tensor(site.value)
        if name not in self.draw_axes:
            depth = max((-frame.dim for frame in site.plates.values()), default=0)
            return self.label(name, site, value, max(value.dim() - depth, 0))
        value = value.movedim(self.draw_axes[name], 0)
        batch, event = value.shape[1 : 1 + self.nesting], value.shape[1 + self.nesting :]
        if not site.plates or len(batch) < self.nesting:
            event = torch.Size((*(size for size in batch if size > 1), *event))
            batch = torch.Size((1,) * self.nesting)
        return self.label(name, site, value.reshape(-1, *batch, *event), len(event))

    def log_likelihood(self, name: str, site: Site) -> NamedArray:
        """Log-density of an observation; 0 where a mask silences it."""
        return self.label(name, site, site.scaled(exact_log_prob(site), 1.0), 0)

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

    def seen(self, name: str, site: Site) -> NamedArray:
        """Whether a mask lets entries count; of size 1 in event dims it does not tell apart."""
        event_dim = site.fn.event_dim
        found = entry_mask(site, event_dim)
        if (extra := found.dim() - event_dim - self.nesting - 1) > 0:  # of enumerated sites
            found = found.any(tuple(range(extra)))
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
                each.scaled(cell_log_prob(each.fn, site.value, num_cells), 1.0, num_cells)
                for each in (guide_site, site)
            )
            found = log_q - log_p
        return self.label(name, site, found, num_cells)

    def reordered(self, name: str, run: Run) -> NamedArray:
        """Whether its rate is of its draws alone, as `is_reordered` tells, and may be below 0."""
        return NamedArray((), torch.full((self.num_draws,), is_reordered(name, run)))

    def outside(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        """Where the guide cannot draw what the model's distribution can; None if it surely can."""
        is_point = site.fn.support.is_discrete and is_pinned(guide_site, site)
        if not (guide_site.needs_credit or is_point):
            return None
        found = leaves_out(guide_site.fn, site.fn)
        if found is None and hasattr(guide_site.fn, "conditional_log_prob"):
            return None  # a network's softmax leaves nothing out, and drawing from it is slow
        if found is None:
            own = getattr(site.fn, "counted_elsewhere", site.fn)
            missing = self.nesting + 1 - len(own.batch_shape)
            shape = torch.Size((self.num_draws, *[1] * (missing - 1)) if missing > 0 else ())
            try:
                found = excludes(guide_site.fn, site.fn.sample(shape))
            except NotImplementedError:  # of a family without batches, which is run draw by draw
                found = excludes(guide_site.fn, site.fn.sample()).reshape(shape)
        if (extra := found.dim() - self.nesting - 1) > 0:  # for some values of enumerated sites
            found = found.any(tuple(range(extra)))
        return self.label(name, site, found, 0)

    def conditional(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        """Probabilities of each value, on the last dim; see `value_probs`."""
        found = value_probs(guide_site, site)
        return None if found is None else self.label(name, site, found[0], found[1] + 1)

    def label(self, name: str, site: Site, value: Tensor, event_dim: int) -> NamedArray:
        """Expand to the plates, name the dims, and drop those of size 1 under no plate."""
        frames = {frame.dim: frame for frame in site.plates.values()}
        num_batch = value.dim() - event_dim
        batch = (1,) * (self.nesting + 1 - num_batch) + value.shape[:num_batch]
        event = value.shape[num_batch:]
        sizes = {d: frames[d].size if d in frames else batch[d] for d in range(-self.nesting, 0)}
        kept = [d for d, size in sizes.items() if d in frames or size > 1]
        dims = [frames[d].name if d in frames else f"{name}_batch_{-d}" for d in kept]
        dims += [f"{name}_dim_{i}" for i in range(event_dim)]
        value = value.reshape(batch + event).expand(self.num_draws, *sizes.values(), *event)
        value = value.reshape(self.num_draws, *(sizes[d] for d in kept), *event)
        return NamedArray(tuple(dims), value)


def _data_of(run: Run) -> dict[str, Site]:
    """Observed sites as the model has them, those that a sum has taken in among them."""
    sites = sample_sites(run.model_trace)
    return {n: s for n, s in sites.items() if s.is_observed and has_data(s)}


def has_data(site: Site) -> bool:
    """Whether a site has a value, as factors, which are observed sites, have not."""
    return 0 not in tuple(site.fn.event_shape)


def _num_codes(support: Any) -> int:
    """How many integers from 0 on a support has; 0 if it is none of these, or not known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support) is type(constraints.boolean):
        return 2
    if type(support) is constraints.multinomial:
        return int(torch.as_tensor(support.upper_bound).max()) + 1
    if type(support) is not constraints.integer_interval:
        return 0
    low, high = (torch.as_tensor(b) for b in (support.lower_bound, support.upper_bound))
    return int(high.max()) + 1 if bool((low == 0).all()) else 0


def join_runs(readings: Sequence[Readings]) -> Readings:
    """Put runs one after the other; the data are the same in all.

    Sites that a run lacks are NaN in it, and nowhere outside of what the guide can draw.

    Raises:
        ValueError: If a site has other shapes in other runs.
    """

    def joined(reading: str, name: str) -> NamedArray:
        found = [each[reading].get(name) for each in readings]
        first = next(each for each in found if each is not None)
        if reading in ("observed", "subsample") or len(readings) == 1:
            return first
        missing = torch.zeros_like(first.values) if reading in _ABSENT else _nothing(first.values)
        parts = [missing if each is None else each.values for each in found]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(
                f"site '{name}' has another shape in some draws than in others, so that they make "
                "no table with a row per draw. Give it one shape, and mask what is not in use."
            )
        return replace(first, values=torch.cat(parts))

    names = {
        reading: {n: None for each in readings for n in each[reading]} for reading in readings[0]
    }
    return {
        reading: {name: joined(reading, name) for name in sites} for reading, sites in names.items()
    }


def _nothing(values: Tensor) -> Tensor:
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    return torch.full_like(values, torch.nan, dtype=dtype)
