"""What a model computes and simulates: at draws of the guide, or of its own.

Of sites that it sums out, which have no draws, one is made for it, given the data.
"""

from collections.abc import Mapping

import torch
from pyro import poutine
from torch import Tensor

from pyro_dvae.diagnostics.labels import Readings, SiteReader, has_data, join_runs
from pyro_dvae.diagnostics.silence import in_full
from pyro_dvae.programs.draw import Draw, Unconditioned, run_pair, run_program
from pyro_dvae.programs.handlers.subsamples import HeldRows
from pyro_dvae.programs.sites import Pair, Run, sample_sites
from pyro_dvae.programs.summing.values import draws_of_summed

__all__ = ["AT_DRAWS", "OneByOneError", "at_draws", "prior_draws", "prior_sites"]

AT_DRAWS = {"deterministic", "predictive"}  # readings of a run that has a draw of every latent


class OneByOneError(Exception):
    """Programs that take particles do not take them in what they observe, or compute, of a draw."""


def at_draws(
    pair: Pair, given: Mapping[str, Tensor], run: Run, reader: SiteReader, wanted: set[str]
) -> Readings:
    """What the model computes and simulates at the draws of a run.

    Sites that are summed out are drawn for it, site by site, given the data and those before.
    """
    readings: Readings = {}
    if not (wanted := wanted & AT_DRAWS):
        return readings
    size, values = reader.num_draws, dict(given)
    together = size if pair.vectorize else None
    replayed = pair._replace(guide=None, model=poutine.replay(pair.model, trace=run.guide_trace))
    while found := draws_of_summed(run.model, size):
        values |= found
        run = run_pair(replayed, Draw(pair.layout, together, values))
    if "deterministic" in wanted:
        readings |= reader.read(run, {"deterministic"})
    if "predictive" in wanted:
        draw = Draw(pair.layout, together, values)
        readings["predictive"] = _simulate(replayed, draw, size)[0]["predictive"]
    return readings


def prior_sites(pair: Pair, num_draws: int) -> Readings:
    """Draw latents from the model, and simulate observations at them: "latent", "predictive"."""
    return prior_draws(pair, num_draws)[0]


def prior_draws(pair: Pair, num_draws: int) -> tuple[Readings, dict[str, Tensor]]:
    """As `prior_sites`, with the latents as `score_states` takes them."""
    size = num_draws if pair.vectorize else 1
    draw = Draw(pair.layout, size if pair.vectorize else None)
    with torch.no_grad(), HeldRows(pair.notes.subsamples):
        runs = [_simulate(pair, draw, size) for _ in range(num_draws // size)]
    found = [run[1] for run in runs]
    alike = [n for n, v in found[0].items() if all(n in f and f[n].shape == v.shape for f in found)]
    values = {name: torch.cat([each[name] for each in found]) for name in alike}
    return join_runs([run[0] for run in runs]), values


def _simulate(pair: Pair, draw: Draw, num_draws: int) -> tuple[Readings, dict[str, Tensor]]:
    """A run in which what the model observes is drawn, too; and its latents as they are."""
    try:
        with draw:
            trace = run_program(Unconditioned()(pair.model), pair.args, pair.kwargs)
    except Exception as error:
        if pair.vectorize:
            raise OneByOneError from error
        raise
    readings: Readings = {"latent": {}, "predictive": {}}
    sites = sample_sites(trace)
    depths = [-frame.dim for site in sites.values() for frame in site.plates.values()]
    nesting = max([pair.layout.nesting, *depths])  # a site may be there in some draws only
    reader = SiteReader(nesting, num_draws)
    for name, site in sites.items():
        if not has_data(site):
            continue
        reading = "predictive" if site.infer.get("was_observed") else "latent"
        readings[reading][name] = reader.value(name, site)
    values = {name: in_full(sites[name], nesting, num_draws) for name in readings["latent"]}
    return readings, values
