"""Run a model/guide pair and hand back its sites as labelled arrays, for diagnostics.

`particles` reduces a run to what a loss needs; here the values come back as well, and what is read
off their distributions: posterior and predictive draws, pointwise log-likelihoods, predictive
means, the rate of each latent. Each has the draws in front and names for the rest: a plate's for a
dim that it covers, ``"z_dim_0"`` and so on for the others. Nothing carries a gradient.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.programs.broadcasting import takes_particles
from pyro_dvae.programs.codes import enumerate_draws, read_codes
from pyro_dvae.programs.draw import Draw, run_pair, run_program
from pyro_dvae.programs.layout import find_layout
from pyro_dvae.programs.masks import entry_mask
from pyro_dvae.programs.pair import Layout, Pair, Run
from pyro_dvae.programs.record import Particles, concatenate, make_record, read_silenced
from pyro_dvae.programs.run import drawn_subsamples, run_particles
from pyro_dvae.programs.sites import Site, deterministic_sites, sample_sites

__all__ = [
    "READINGS",
    "enumerate_states",
    "posterior_sites",
    "prepare_pair",
    "prior_draws",
    "prior_sites",
    "score_states",
]

# What can be read of a run, of each site that has it.
READINGS = (
    "latent",  # draws
    "deterministic",  # of the model, at these draws
    "observed",  # the data as the model observes them, without draws in front
    "predictive",  # observations simulated at the draws
    "log_likelihood",  # of each observation
    "seen",  # where no mask silences an entry of an observation
    "mean",  # of the distribution of each observation
    "rate",  # log q - log p of each latent, given those before it
    "outside",  # whether the guide cannot draw a value that the model's distribution drew
    "subsample",  # rows of the full plate that a plate drew, without draws in front
)


_STATE_READERS = {"codes": read_codes, "silenced": read_silenced}

Readings = dict[str, dict[str, NamedArray]]  # reading -> site -> array


def prepare_pair(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    """Run the pair without draws and read its structure.

    Its notes are the subsamples that a plate of the program drew, for all runs.
    """
    pair = Pair(model, guide, args, kwargs)
    with torch.no_grad():
        layout, structure = find_layout(pair)
        pair = pair._replace(layout=layout, structure=structure)
        run = run_pair(pair, Draw(pair.layout, None))
        pair = pair._replace(vectorize=takes_particles(pair, warn=False))
    if not pair.layout.credited:
        pair = pair._replace(layout=_without_discrete(pair.layout, run))
    minibatch = drawn_subsamples(run)
    for name in [name for name, plate in minibatch.nodes.items() if _is_whole(plate)]:
        minibatch.nodes.pop(name)
    return pair._replace(notes=minibatch)


def _without_discrete(layout: Layout, run: Run) -> Layout:
    """A datum is then a cell of the plates that all sites share."""
    frames = [site.plates for sites in (run.guide, run.model) for site in sites.values()]
    shared = set.intersection(*map(set, frames)) if frames else set()
    plates = sorted(shared, key=lambda name: frames[0][name].dim)
    dims = tuple(frames[0][name].dim for name in plates)
    return layout._replace(plates=tuple(plates), dims=dims)


def posterior_sites(
    pair: Pair, num_draws: int, wanted: Collection[str]
) -> tuple[Particles, Readings]:
    """Draw from the guide, score the draws, and read `wanted`, some of `READINGS`.

    The log-densities are those of the same draws.
    """
    layout = pair.layout
    size = num_draws if pair.vectorize else 1
    records, readings = [], []
    with torch.no_grad(), poutine.replay(trace=pair.notes):
        for _ in range(num_draws // size):
            draw = Draw(layout, size if pair.vectorize else None)
            run = run_pair(pair, draw)
            records.append(make_record(run, layout, size, reads={"codes": read_codes}))
            reading = _Reader(layout.nesting, size).read(run, set(wanted))
            if "predictive" in wanted:
                replayed = pair._replace(model=poutine.replay(pair.model, trace=run.guide_trace))
                reading["predictive"] = _simulate(replayed, draw, size)[0]["predictive"]
            readings.append(reading)
    return concatenate(records), _join(readings)


def enumerate_states(pair: Pair, max_states: int) -> dict[str, Tensor]:
    """All joint values of a datum's latents, as `enumerate_draws` lists those of the guide.

    They are the model's own, so that states which the guide cannot draw are among them.

    Raises:
        ValueError: If there are continuous latents, or more than `max_states` states.
    """
    with torch.no_grad(), poutine.replay(trace=pair.notes):
        guide_sites = sample_sites(run_program(pair.guide, pair.args, pair.kwargs))
        _check_discrete(guide_sites, pair.layout)
        return enumerate_draws(pair.model, pair.args, pair.kwargs, pair.layout, max_states)


def score_states(pair: Pair, values: Mapping[str, Tensor]) -> Particles:
    """Log-densities of given values of the latents, which are in front."""
    num_states = len(next(iter(values.values())))
    with torch.no_grad(), poutine.replay(trace=pair.notes):
        return run_particles(pair, num_states, reads=_STATE_READERS, values=values)


def _check_discrete(guide_sites: Mapping[str, Site], layout: Layout) -> None:
    latent = {name for name, site in guide_sites.items() if not site.is_observed}
    if continuous := sorted(latent - set(layout.credited)):
        raise ValueError(
            f"sites {continuous} are continuous, so that the posterior cannot be listed. Use "
            "`importance_diagnostics`, which samples."
        )


def prior_sites(pair: Pair, num_draws: int) -> Readings:
    """Draw latents from the model, and simulate observations at them: "latent", "predictive"."""
    return prior_draws(pair, num_draws)[0]


def prior_draws(pair: Pair, num_draws: int) -> tuple[Readings, dict[str, Tensor]]:
    """As `prior_sites`, with the latents as `score_states` takes them."""
    size = num_draws if pair.vectorize else 1
    draw = Draw(pair.layout, size if pair.vectorize else None)
    with torch.no_grad(), poutine.replay(trace=pair.notes):
        runs = [_simulate(pair, draw, size) for _ in range(num_draws // size)]
    values = {name: torch.cat([run[1][name] for run in runs]) for name in runs[0][1]}
    return _join([run[0] for run in runs]), values


def _simulate(pair: Pair, draw: Draw, num_draws: int) -> tuple[Readings, dict[str, Tensor]]:
    """A run in which what the model observes is drawn, too; and its latents as they are."""
    with draw:
        trace = run_program(poutine.uncondition(pair.model), pair.args, pair.kwargs)
    reader = _Reader(pair.layout.nesting, num_draws)
    readings: Readings = {"latent": {}, "predictive": {}}
    sites = sample_sites(trace)
    for name, site in sites.items():
        reading = "predictive" if site.infer.get("was_observed") else "latent"
        readings[reading][name] = reader.value(name, site)
    values = {
        name: _in_full(sites[name], pair.layout.nesting, num_draws) for name in readings["latent"]
    }
    return readings, values


def _in_full(site: Site, nesting: int, num_draws: int) -> Tensor:
    """The value with its draws in front of all batch dims."""
    value = site.value.reshape((1,) * (nesting + 1 - site.num_batch_dims) + site.value.shape)
    return value.expand(num_draws, *value.shape[1:])


class _Reader(NamedTuple):
    """Labels what it reads of the sites of a run."""

    nesting: int
    num_draws: int  # of the run

    def read(self, run: Run, wanted: set[str]) -> Readings:
        """Read each of `wanted` of every site that has it."""
        guide_sites, sites = run.guide, run.model
        observed = {name: site for name, site in sites.items() if site.is_observed}
        latent = {name: site for name, site in sites.items() if name not in observed}
        readers: dict[str, tuple[dict[str, Site], Callable]] = {
            "latent": (latent, self.value),
            "deterministic": (deterministic_sites(run.model_trace), self.deterministic),
            "observed": (observed, _Reader(self.nesting, 1).data),
            "log_likelihood": (observed, self.log_likelihood),
            "mean": (observed, self.mean),
            "seen": (observed, self.seen),
            "rate": (latent, lambda name, site: self.rate(name, guide_sites[name], site)),
            "outside": (latent, lambda name, site: self.outside(name, guide_sites[name], site)),
        }
        found: Readings = {}
        for reading in wanted & readers.keys():
            sites, reader = readers[reading]
            each = {name: reader(name, site) for name, site in sites.items()}
            found[reading] = {name: value for name, value in each.items() if value is not None}
        if "subsample" in wanted:
            found["subsample"] = _subsamples(run.model_trace)
        return found

    def value(self, name: str, site: Site) -> NamedArray:
        support = site.fn.support
        found = self.label(name, site, site.value, site.fn.event_dim)
        discrete = bool(support.is_discrete)
        return replace(found, discrete=discrete, num_codes=_num_codes(support))

    def data(self, name: str, site: Site) -> NamedArray:
        found = self.value(name, site)
        return replace(found, values=found.values[0])

    def deterministic(self, name: str, site: Site) -> NamedArray:
        value = site.value
        depth = max((-frame.dim for frame in site.plates.values()), default=0)
        if value.dim() > self.nesting and value.shape[0] == self.num_draws > 1:
            depth = self.nesting + 1
        return self.label(name, site, value, max(value.dim() - depth, 0))

    def log_likelihood(self, name: str, site: Site) -> NamedArray:
        return self.label(name, site, _masked(site, site.log_prob()), 0)

    def mean(self, name: str, site: Site) -> NamedArray | None:
        try:
            value = site.fn.mean
        except NotImplementedError:
            return None
        return self.label(name, site, value, site.fn.event_dim)

    def seen(self, name: str, site: Site) -> NamedArray:
        """Of size 1 in event dims that the mask does not tell apart."""
        event_dim = site.fn.event_dim
        return self.label(name, site, entry_mask(site, event_dim), event_dim)

    def rate(self, name: str, guide_site: Site, site: Site) -> NamedArray:
        """Log q - log p, by cell of the event where both have the same cells."""
        cells = {_num_cells(each.fn) for each in (guide_site, site)}
        num_cells = cells.pop() if len(cells) == 1 else 0
        log_q, log_p = (
            _masked(each, _cell_log_prob(each.fn, site.value, num_cells), num_cells)
            for each in (guide_site, site)
        )
        return self.label(name, site, log_q - log_p, num_cells)

    def outside(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        if not guide_site.needs_credit or hasattr(guide_site.fn, "conditional_log_prob"):
            return None  # a network's softmax leaves nothing out, and drawing from it is slow
        missing = self.nesting + 1 - len(site.fn.batch_shape)
        shape = torch.Size((self.num_draws, *[1] * (missing - 1)) if missing > 0 else ())
        log_q = guide_site.fn.log_prob(site.fn.sample(shape))
        return self.label(name, site, torch.isneginf(log_q), 0)

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


def _subsamples(trace: poutine.Trace) -> dict[str, NamedArray]:
    plates: dict[str, Any] = dict(trace.nodes.items())
    return {
        name: NamedArray((name,), site.value)
        for name, site in plates.items()
        if site["type"] == "sample" and site_is_subsample(site) and not _is_whole(site)
    }


def _is_whole(plate: Any) -> bool:
    """Whether the plate takes all its rows."""
    size = plate["fn"].subsample_size
    return size is None or size >= plate["fn"].size


def _num_codes(support: Any) -> int:
    """How many integers from 0 on a support has; 0 if it is none of these, or not known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support) is type(constraints.boolean):
        return 2
    if type(support) is not constraints.integer_interval:
        return 0
    low, high = (torch.as_tensor(b) for b in (support.lower_bound, support.upper_bound))
    return int(high) + 1 if high.numel() == low.numel() == 1 and low == 0 else 0


def _masked(site: Site, values: Tensor, num_cells: int = 0) -> Tensor:
    mask = site.mask
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * num_cells)
    return scale_and_mask(values, 1.0, mask)


def _num_cells(fn: Any) -> int:
    """Event dims whose entries have a log-density of their own."""
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        return _num_cells(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return fn.reinterpreted_batch_ndims + _num_cells(fn.base_dist)
    return 1 if hasattr(fn, "conditional_log_prob") else 0


def _cell_log_prob(fn: Any, value: Tensor, num_cells: int) -> Tensor:
    """Log-density of each cell, of which the last dims have `num_cells`."""
    if not num_cells:
        return fn.log_prob(value)
    if isinstance(fn, dist.MaskedDistribution):
        mask = torch.as_tensor(fn._mask)
        scores = _cell_log_prob(fn.base_dist, value, num_cells)
        return torch.where(mask.reshape(mask.shape + (1,) * num_cells), scores, 0.0)
    if isinstance(fn, dist.ExpandedDistribution):
        return _cell_log_prob(fn.base_dist, value, num_cells)
    if isinstance(fn, dist.Independent):
        num_cells = num_cells - fn.reinterpreted_batch_ndims
        return _cell_log_prob(fn.base_dist, value, num_cells)
    return fn.conditional_log_prob(value)


def _check_same_sites(runs: list[set[str]]) -> None:
    if varying := sorted(set().union(*runs) - runs[0].intersection(*runs)):
        raise ValueError(
            f"sites {varying} are there in some draws and not in others, so that they make no "
            "table with a row per draw. Write the program with the same sites in each run, those "
            "not in use under a mask; or read the bound off a loss that samples, as "
            "Reinforce_ELBO(K).loss(model, guide, ...)."
        )


def _join(readings: list[Readings]) -> Readings:
    """Put runs one after the other; the data are the same in all.

    Raises:
        ValueError: If runs have different sites.
    """
    for reading in readings[0]:
        _check_same_sites([set(each[reading]) for each in readings])

    def joined(reading: str, name: str) -> NamedArray:
        first = readings[0][reading][name]
        if reading in ("observed", "subsample") or len(readings) == 1:
            return first
        parts = [each[reading][name].values for each in readings]
        return replace(first, values=torch.cat(parts))

    return {
        reading: {name: joined(reading, name) for name in sites}
        for reading, sites in readings[0].items()
    }
