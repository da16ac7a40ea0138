"""Run a model/guide pair and hand back its sites as labelled arrays, for diagnostics.

`particles` reduces a run to what a loss needs; here the values come back as well, and what is read
off their distributions: posterior and predictive draws, pointwise log-likelihoods, predictive
means, the rate of each latent. Each has the draws in front and names for the rest: a plate's for a
dim that it covers, ``"z_dim_0"`` and so on for the others. All is pure: the runs may be jitted.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution
from numpyro.handlers import block, replay, uncondition

from numpyro_dvae.diagnostics.arrays import NamedArray
from numpyro_dvae.programs.codes import enumerate_draws, read_codes
from numpyro_dvae.programs.draw import Draw, run_pair, run_program
from numpyro_dvae.programs.layout import find_layout
from numpyro_dvae.programs.masks import entry_mask
from numpyro_dvae.programs.pair import Layout, Pair, Run
from numpyro_dvae.programs.record import Particles, make_record, read_silenced
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Site, deterministic_sites, sample_sites

__all__ = [
    "READINGS",
    "enumerate_states",
    "posterior_sites",
    "prepare_pair",
    "prior_draws",
    "prior_sites",
    "score_states",
]

T = TypeVar("T")

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
_UNDRAWN = ("observed", "subsample")


# Names are no arrays: JAX's transformations leave them as they are.
jax.tree_util.register_dataclass(
    NamedArray, data_fields=["values"], meta_fields=["dims", "discrete", "num_codes"]
)

_STATE_READERS = {"codes": read_codes, "silenced": read_silenced}

Readings = dict[str, dict[str, NamedArray]]  # reading -> site -> array


def prepare_pair(
    rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> Pair:
    """Read the structure of a pair, whose parameters are substituted.

    Its notes are the key of the subsamples that a plate of the program draws, in all runs.
    """
    pair = Pair(model, guide, args, kwargs, notes=rng_key)
    pair = pair._replace(layout=find_layout(rng_key, pair))
    if pair.layout.credited:
        return pair
    return pair._replace(layout=_without_discrete(rng_key, pair))


def constraints_of(
    rng_key: Array, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """The parameters of a pair by name, and the constraint of each."""

    def read(run: Run) -> dict[str, Any]:
        return {
            name: message["kwargs"].get("constraint", constraints.real)
            for trace in (run.guide_trace, run.model_trace)
            for name, message in trace.items()
            if message["type"] == "param"
        }

    return _read_abstractly(read, rng_key, Pair(model, guide, args, kwargs))


def _read_abstractly(read: Callable[[Run], T], rng_key: Array, pair: Pair) -> T:
    """What `read` finds in a run of guide and model: no array, as there are no values yet."""
    found: list[T] = []

    def inspect() -> None:
        found.append(read(run_pair(rng_key, pair, Draw(rng_key, pair.layout))))

    jax.eval_shape(inspect)
    return found[0]


def _without_discrete(rng_key: Array, pair: Pair) -> Layout:
    """A datum is then a cell of the plates that all sites share."""

    def read(run: Run) -> list[Mapping[str, Any]]:
        return [site.plates for sites in (run.guide, run.model) for site in sites.values()]

    frames = _read_abstractly(read, rng_key, pair)
    shared = set.intersection(*map(set, frames)) if frames else set()
    plates = sorted(shared, key=lambda name: frames[0][name].dim)
    dims = tuple(frames[0][name].dim for name in plates)
    return pair.layout._replace(plates=tuple(plates), dims=dims)


def posterior_sites(
    rng_key: Array, pair: Pair, num_draws: int, wanted: Collection[str]
) -> tuple[Particles, Readings]:
    """Draw from the guide, score the draws, and read `wanted`, some of `READINGS`.

    The log-densities are those of the same draws; their `scale` has an axis of draws, too.
    """
    layout, settled = pair.layout, pair._replace(guide=block(pair.guide, hide_fn=_is_mutable))

    def run_one(key: Array) -> tuple[Particles, Readings]:
        pair_key, predictive_key, reader_key = jax.random.split(key, 3)
        run = run_pair(pair_key, settled, Draw(pair.notes, layout))
        readings = _Reader(layout.nesting, reader_key).read(run, set(wanted))
        if "predictive" in wanted:
            replayed = pair._replace(model=replay(pair.model, trace=_latent(run.guide_trace)))
            readings["predictive"] = _simulate(predictive_key, replayed)[0]["predictive"]
        return make_record(run, layout, num_draws, reads={"codes": read_codes}), readings

    axes = {reading: None if reading in _UNDRAWN else 0 for reading in wanted}
    keys = jax.random.split(rng_key, num_draws)
    particles, readings = jax.vmap(run_one, out_axes=(0, axes))(keys)
    return particles, readings


def _is_mutable(msg: Any) -> bool:
    """What a guide learns by running is not for the model."""
    return msg["type"] == "mutable"


def enumerate_states(rng_key: Array, pair: Pair, max_states: int) -> dict[str, Array]:
    """All joint values of a datum's latents, as `enumerate_draws` lists those of the guide.

    They are the model's own, so that states which the guide cannot draw are among them.

    Raises:
        ValueError: If there are continuous latents, or more than `max_states` states.
    """

    def read(run: Run) -> set[str]:
        return {name for name, site in run.guide.items() if not site.is_observed}

    _check_discrete(_read_abstractly(read, rng_key, pair), pair.layout)
    return enumerate_draws(rng_key, pair.model, pair.args, pair.kwargs, pair.layout, max_states)


def score_states(rng_key: Array, pair: Pair, values: Mapping[str, Array]) -> Particles:
    """Log-densities of given values of the latents, which are in front."""
    num_states = len(next(iter(values.values())))
    return run_particles(rng_key, pair, num_states, reads=_STATE_READERS, values=values)[0]


def _check_discrete(latent: set[str], layout: Layout) -> None:
    if continuous := sorted(latent - set(layout.credited)):
        raise ValueError(
            f"sites {continuous} are continuous, so that the posterior cannot be listed. Use "
            "`importance_diagnostics`, which samples."
        )


def prior_sites(rng_key: Array, pair: Pair, num_draws: int) -> Readings:
    """Draw latents from the model, and simulate observations at them: "latent", "predictive"."""
    return prior_draws(rng_key, pair, num_draws)[0]


def prior_draws(rng_key: Array, pair: Pair, num_draws: int) -> tuple[Readings, dict[str, Array]]:
    """As `prior_sites`, with the latents as `score_states` takes them."""
    return jax.vmap(lambda key: _simulate(key, pair))(jax.random.split(rng_key, num_draws))


def _simulate(rng_key: Array, pair: Pair) -> tuple[Readings, dict[str, Array]]:
    """A run in which what the model observes is drawn, too; and its latents as they are."""
    with Draw(pair.notes, pair.layout):
        trace = run_program(rng_key, _Unconditioned(pair.model), pair.args, pair.kwargs)
    reader = _Reader(pair.layout.nesting, rng_key)
    readings: Readings = {"latent": {}, "predictive": {}}
    sites = sample_sites(trace)
    for name, site in sites.items():
        reading = "predictive" if site.infer.get("was_observed") else "latent"
        readings[reading][name] = reader.value(name, site)
    return readings, {name: sites[name].value for name in readings["latent"]}


class _Reader(NamedTuple):
    """Labels what it reads of the sites of a run."""

    nesting: int
    rng_key: Array

    def read(self, run: Run, wanted: set[str]) -> Readings:
        """Read each of `wanted` of every site that has it."""
        guide_sites, sites = run.guide, run.model
        observed = {name: site for name, site in sites.items() if site.is_observed}
        latent = {name: site for name, site in sites.items() if name not in observed}
        readers: dict[str, tuple[dict[str, Site], Callable]] = {
            "latent": (latent, self.value),
            "deterministic": (deterministic_sites(run.model_trace), self.deterministic),
            "observed": (observed, self.value),
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

    def deterministic(self, name: str, site: Site) -> NamedArray:
        depth = max((-frame.dim for frame in site.plates.values()), default=0)
        value = jnp.asarray(site.value)
        return self.label(name, site, value, max(value.ndim - depth, 0))

    def log_likelihood(self, name: str, site: Site) -> NamedArray:
        return self.label(name, site, site.log_prob(), 0)

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
            _cell_log_prob(each.fn, site.value, num_cells) for each in (guide_site, site)
        )
        return self.label(name, site, log_q - log_p, num_cells)

    def outside(self, name: str, guide_site: Site, site: Site) -> NamedArray | None:
        if not guide_site.needs_credit or hasattr(guide_site.fn, "conditional_log_prob"):
            return None  # a network's softmax leaves nothing out, and drawing from it is slow
        key = jax.random.fold_in(self.rng_key, zlib.crc32(name.encode()))
        log_q = guide_site.fn.log_prob(site.fn.sample(key))
        return self.label(name, site, jnp.isneginf(log_q), 0)

    def label(self, name: str, site: Site, value: Array, event_dim: int) -> NamedArray:
        """Expand to the plates, name the dims, and drop those of size 1 under no plate."""
        frames = {frame.dim: frame for frame in site.plates.values()}
        num_batch = jnp.ndim(value) - event_dim
        batch = (1,) * (self.nesting - num_batch) + jnp.shape(value)[:num_batch]
        event = jnp.shape(value)[num_batch:]
        sizes = {d: frames[d].size if d in frames else batch[d] for d in range(-self.nesting, 0)}
        kept = [d for d, size in sizes.items() if d in frames or size > 1]
        dims = [frames[d].name if d in frames else f"{name}_batch_{-d}" for d in kept]
        dims += [f"{name}_dim_{i}" for i in range(event_dim)]
        value = jnp.broadcast_to(jnp.reshape(value, batch + event), (*sizes.values(), *event))
        value = value.reshape(*(sizes[d] for d in kept), *event)
        return NamedArray(tuple(dims), value)


class _Unconditioned(uncondition):
    """Draws what is observed, and marks it."""

    def process_message(self, msg: Any) -> None:
        """Take the observation away."""
        observed = msg["type"] == "sample" and msg["is_observed"]
        super().process_message(msg)
        if observed:
            msg["infer"] = {**msg["infer"], "was_observed": True}


def _latent(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {n: trace[n] for n, site in sample_sites(trace).items() if not site.is_observed}


def _subsamples(trace: Mapping[str, Any]) -> dict[str, NamedArray]:
    plates = {name: plate for name, plate in trace.items() if plate["type"] == "plate"}
    return {
        name: NamedArray((name,), plate["value"])
        for name, plate in plates.items()
        if len(plate["value"]) < plate["args"][0]
    }


def _num_codes(support: Any) -> int:
    """How many integers from 0 on a support has; 0 if it is none of these, or not known."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return 2
    low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    return high + 1 if support.is_discrete and low == 0 and isinstance(high, int) else 0


def _num_cells(fn: Any) -> int:
    """Event dims whose entries have a log-density of their own."""
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return _num_cells(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return fn.reinterpreted_batch_ndims + _num_cells(fn.base_dist)
    return 1 if hasattr(fn, "conditional_log_prob") else 0


def _cell_log_prob(fn: Any, value: Array, num_cells: int) -> Array:
    """Log-density of each cell, of which the last dims have `num_cells`."""
    if not num_cells:
        return fn.log_prob(value)
    if isinstance(fn, MaskedDistribution):
        mask = jnp.asarray(fn._mask)
        scores = _cell_log_prob(fn.base_dist, value, num_cells)
        return jnp.where(mask.reshape(mask.shape + (1,) * num_cells), scores, 0.0)
    if isinstance(fn, ExpandedDistribution):
        return _cell_log_prob(fn.base_dist, value, num_cells)
    if isinstance(fn, dist.Independent):
        num_cells = num_cells - fn.reinterpreted_batch_ndims
        return _cell_log_prob(fn.base_dist, value, num_cells)
    return fn.conditional_log_prob(value)
