"""Run guide and model with K particles and return plain arrays, for any Pyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

Shapes: particles lead, left of all plates. Each site is drawn once for all K particles from the
distribution that the plates left, so its parameters are never copied K times. Values in nats.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dvae.programs.draw import Draw, Sampler, run_pair, run_program
from pyro_dvae.programs.pair import Pair, Run
from pyro_dvae.programs.record import Ledger, Particles, Reader, concatenate, make_record
from pyro_dvae.programs.sites import sample_sites

__all__ = ["broadcasts", "drawn_subsamples", "dream", "run_particles", "takes_particles"]

_TRIAL_PARTICLES = 3  # unlikely to be some other dim's size, and cheap


def takes_particles(pair: Pair, *, warn: bool = True) -> bool:
    """Decide whether one run of the programs takes all particles; if not, say why and what to do.

    Args:
        pair: The programs, with their layout.
        warn: Whether to say so.
    """
    trouble = _trouble(pair)
    if trouble is not None and warn:
        warnings.warn(
            "model or guide does not broadcast over a particle axis left of all plates: "
            f"{trouble}. It will run once per particle, with the right result but slower. Index "
            "from the right (x[..., i], sum(-1)) to have particles vectorised, or pass "
            "vectorize_particles=False to silence this.",
            stacklevel=6,
        )
    return trouble is None


def _trouble(pair: Pair) -> str | None:
    """Why the programs cannot run with a particle axis; None if they can."""
    try:
        if broadcasts(pair, _TRIAL_PARTICLES):
            return None
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0]
    return "its log-densities change with a particle axis"


def run_particles(
    pair: Pair,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
    values: Mapping[str, Tensor] | None = None,
    sampler: Sampler | None = None,
    pathwise: bool = True,
) -> Particles:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        pair: The programs, with their layout and whether they broadcast over particles.
        num_particles: K.
        reads: What to read of the run beside the log-densities, into `Particles.extras`.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast, or one for all K as ``(1, *batch, *event)``; every
            other site is then drawn once for all K. The guide may lack sites that are given.
        sampler: Draws some sites in its own way.
        pathwise: Whether reparameterised draws of a datum keep their gradient.

    Raises:
        ValueError: If the shape of a site's log-density is not explained by its plates.
    """
    given, layout = values or {}, pair.layout
    options: dict[str, Any] = {"reads": reads, "with_entropy": with_entropy}
    if pair.vectorize:
        num_draws = 1 if given else num_particles
        draw = Draw(layout, num_draws, given, sampler=sampler, pathwise=pathwise)
        return make_record(run_pair(pair, draw), layout, num_particles, **options)
    records, minibatch = [], poutine.Trace()
    for k in range(num_particles):
        one = {name: value[k if len(value) > 1 else 0] for name, value in given.items()}
        draw = Draw(layout, None, one, sampler=sampler, particle=k, pathwise=pathwise)
        with poutine.replay(trace=minibatch):  # every particle sees the same subsample
            run = run_pair(pair, draw)
        minibatch = drawn_subsamples(run)
        records.append(make_record(run, layout, 1, **options))
    return concatenate(records)


def drawn_subsamples(run: Run) -> poutine.Trace:
    """The subsamples that a run has drawn, to be replayed."""
    minibatch = poutine.Trace()
    for trace in (run.guide_trace, run.model_trace):
        for name, message in trace.nodes.items():
            if message["type"] == "sample" and site_is_subsample(message):
                minibatch.nodes.setdefault(name, message)
    return minibatch


def broadcasts(pair: Pair, num_particles: int) -> bool:
    """Whether a run with a particle axis scores its last particle as a plain run does.

    A program that indexes from the left may run with a particle axis, on wrong shapes that happen
    to fit. One that disagrees with itself (dropout) cannot be judged and passes.

    Raises:
        Whatever the program raises on meeting a particle axis.
    """
    layout = pair.layout
    with torch.no_grad():
        run = run_pair(pair, Draw(layout, num_particles))
        together = make_record(run, layout, num_particles)
        drawn = {name: site for name, site in run.guide.items() if not site.is_observed}
        last = Draw(layout, None, {name: site.value[-1] for name, site in drawn.items()})
        with poutine.replay(trace=drawn_subsamples(run)):
            runs = [run_pair(pair, last) for _ in range(2)]
        alone = [make_record(run, layout, 1) for run in runs]
    if not _agree(alone[0].log_p[-1], alone[1].log_p[-1]):
        return True
    return all(
        _agree(getattr(together, field)[-1], getattr(alone[0], field)[-1])
        for field in ("log_likelihood", "log_prior", "log_q_discrete", "log_q_pathwise")
    )


def _agree(together: Tensor, alone: Tensor) -> bool:
    return torch.allclose(together, alone, rtol=1e-3, atol=1e-3, equal_nan=True)


def dream(
    pair: Pair, replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]
) -> Float[Tensor, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them.

    Args:
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    with torch.no_grad():
        model_trace = run_program(poutine.uncondition(pair.model), pair.args, pair.kwargs)
    sites = sample_sites(model_trace)
    made = {n: site.value for n, site in sites.items() if site.infer.get("was_observed")}
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = poutine.replay(pair.guide, trace=model_trace)
    ledger = Ledger(pair.layout, 1)
    for name, site in sample_sites(run_program(replayed, args, kwargs)).items():
        if name in sites:
            ledger.add("q", site, site.log_prob())
    return ledger.total("q")[0]
