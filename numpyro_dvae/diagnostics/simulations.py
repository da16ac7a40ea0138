"""What a model computes and simulates: at draws of the guide, or of its own.

Of sites that it sums out, which have no draws, one is made for it, given the data.
"""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jaxtyping import Array
from numpyro.handlers import replay

from numpyro_dvae.diagnostics.labels import Readings, SiteReader, has_data
from numpyro_dvae.programs.draw import Draw, Unconditioned, run_pair, run_program
from numpyro_dvae.programs.sites import Pair, Run, deterministic_sites, sample_sites
from numpyro_dvae.programs.summing.values import draws_of_summed, is_scanned

__all__ = ["AT_DRAWS", "at_draws", "prior_draws", "prior_sites"]

AT_DRAWS = {"deterministic", "predictive"}  # readings of a run that has a draw of every latent
_OF_SCANS = (
    "`posterior_predictive`, and deterministic sites, are left out: the model sums out steps of a "
    "`scan`, of which no draws are made given the data. Write the steps as a Python loop with "
    "`markov`, or sample them in the guide."
)


def at_draws(
    rng_key: Array,
    pair: Pair,
    given: Mapping[str, Array],
    run: Run,
    reader: SiteReader,
    wanted: set[str],
) -> Readings:
    """What the model computes and simulates at the draws of a run.

    Sites that are summed out are drawn for it, site by site, given the data and those before; of
    the steps of a `scan`, which cannot be, nothing is read, with a warning.
    """
    wanted = wanted & AT_DRAWS
    readings: Readings = {reading: {} for reading in wanted}
    if not wanted:
        return readings
    if is_scanned(run.model):
        if "predictive" in wanted or deterministic_sites(run.model_trace):
            warnings.warn(_OF_SCANS, stacklevel=2)
        return readings
    drawn, values = _latent(run.guide_trace), dict(given)
    replayed = pair._replace(guide=replay(pair.guide, trace=drawn))
    simulate_key, draw_key = rng_key, jax.random.split(rng_key)[1]
    while found := draws_of_summed(draw_key, run.model):
        values |= found
        draw_key = jax.random.split(draw_key)[0]
        run = run_pair(draw_key, replayed, Draw(pair.notes.subsamples, pair.layout, values))
    if "deterministic" in wanted:
        readings |= reader.read(run, {"deterministic"})
    if "predictive" in wanted:
        replayed = pair._replace(model=replay(pair.model, trace=drawn))
        readings["predictive"] = _simulate(simulate_key, replayed, values)[0]["predictive"]
    return readings


def _latent(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {n: trace[n] for n, site in sample_sites(trace).items() if not site.is_observed}


def prior_sites(rng_key: Array, pair: Pair, num_draws: int) -> Readings:
    """Draw latents from the model, and simulate observations at them: "latent", "predictive"."""
    return prior_draws(rng_key, pair, num_draws)[0]


def prior_draws(rng_key: Array, pair: Pair, num_draws: int) -> tuple[Readings, dict[str, Array]]:
    """As `prior_sites`, with the latents as `score_states` takes them."""
    return jax.vmap(lambda key: _simulate(key, pair))(jax.random.split(rng_key, num_draws))


def _simulate(
    rng_key: Array, pair: Pair, values: Mapping[str, Array] = MappingProxyType({})
) -> tuple[Readings, dict[str, Array]]:
    """A run in which what the model observes is drawn, too; and its latents as they are."""
    with Draw(pair.notes.subsamples, pair.layout, values):
        trace = run_program(rng_key, Unconditioned(pair.model), pair.args, pair.kwargs)
    reader = SiteReader(pair.layout.nesting, rng_key)
    readings: Readings = {"latent": {}, "predictive": {}}
    sites = sample_sites(trace)
    for name, site in sites.items():
        if not has_data(site):
            continue
        reading = "predictive" if site.infer.get("was_observed") else "latent"
        readings[reading][name] = reader.value(name, site)
    return readings, {name: sites[name].value for name in readings["latent"]}
