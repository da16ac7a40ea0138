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

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_dvae.programs.draw import Draw, Sampler, run_pair, run_program
from pyro_dvae.programs.handlers.subsamples import drawn_subsamples
from pyro_dvae.programs.messages import Rows, rows_of_plates
from pyro_dvae.programs.record import Ledger, Particles, Reader, make_record, make_records
from pyro_dvae.programs.sites import (
    Layout,
    Pair,
    Run,
    StructureError,
    no_one_list,
    sample_sites,
    sizes_of,
)
from pyro_dvae.programs.structure.layout import common_layout
from pyro_dvae.programs.structure.looking import only_looking, statistics_kept

__all__ = ["ReplaceData", "check_dreams", "dream", "run_particles"]

# From data that a model made, by site, and a call's (args, kwargs) to the guide's.
ReplaceData = Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]


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
        pair: The programs, with their layout, and how they are run.
        num_particles: K.
        reads: What to read of the run beside the log-densities, into `Particles.extras`.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast, or one for all K as ``(1, *batch, *event)``; every
            other site is then drawn once for all K. The guide may lack sites that are given.
        sampler: Draws some sites in its own way.
        pathwise: Whether reparameterised draws of a datum keep their gradient.

    Raises:
        StructureError: If the run has other sites than the pair's structure says.
        ValueError: If the shape of a site's log-density is not explained by its plates, or if
            which latents there are depends on those that are given.
    """
    given, layout = values or {}, pair.layout
    options: dict[str, Any] = {"reads": reads, "with_entropy": with_entropy}
    if pair.vectorize:
        num_draws = 1 if given else num_particles
        draws: dict[str, Any] = {"sampler": sampler, "pathwise": pathwise, "expand": pair.expand}
        run = run_pair(pair, Draw(layout, num_draws, given, **draws))
        check_structure(pair, [run], given)
        return make_record(run, layout, num_particles, **options)
    runs, minibatch, rows = list[Run](), poutine.Trace(), dict[str, Rows]()
    for k in range(num_particles):
        one = {name: value[k if len(value) > 1 else 0] for name, value in given.items()}
        draw = Draw(layout, None, one, sampler=sampler, particle=k, pathwise=pathwise)
        # Every particle sees the same subsample; a step is one, whatever the number of runs.
        with poutine.replay(trace=minibatch) if k else nullcontext(), statistics_kept(k > 0):
            runs.append(run_pair(pair, draw))
        if num_particles == 1:
            break
        rows = _check_rows(rows, runs[-1])
        minibatch.nodes |= drawn_subsamples(runs[-1]).nodes  # a particle may lack a plate
    layout = check_structure(pair, runs, given)
    return make_records(runs, layout, **options)


def _check_rows(before: dict[str, Rows], run: Run) -> dict[str, Rows]:
    """Particles see the same rows, so that a plate must have as many in each.

    Returns:
        The rows of the plates before, and of those that this run has, too.
    """
    after = rows_of_plates(run.guide_trace) | rows_of_plates(run.model_trace)
    for name in before.keys() & after.keys():
        sizes = before[name].full_size, after[name].full_size
        taken = len(before[name].indices), len(after[name].indices)
        if sizes[0] != sizes[1] and taken != sizes:
            raise ValueError(
                f"plate '{name}' draws rows of {sizes[0]} in one particle and of {sizes[1]} in "
                "another, so they have no minibatch in common. Let the size of a plate that "
                "subsamples depend on no draw, or let it have all its rows."
            )
    return after | before


def check_structure(pair: Pair, runs: Sequence[Run], values: Mapping[str, Tensor]) -> Layout:
    """Compare the sites of runs with those that the pair's layout is of.

    Returns:
        The pair's layout; where the sites differ from draw to draw, what all runs share.

    Raises:
        StructureError: If the runs have other sites, all of them the same, or if values are given
            and the sites depend on them.
    """
    structures = {run.structure() for run in runs}
    if structures == {pair.structure}:
        return pair.layout
    if values:
        _refuse_values(pair, runs, values)
        if pair.structure is None:  # of a model whose latents are all given
            sites = (site for run in runs for site in (*run.guide.values(), *run.model.values()))
            depths = [-frame.dim for site in sites for frame in site.plates.values()]
            return pair.layout._replace(nesting=max([pair.layout.nesting, *depths]))
    if pair.structure is not None and len(structures) == 1:
        raise StructureError("the programs have other sites than before")
    layout = common_layout(runs)
    if values and layout.plates != pair.layout.plates:
        raise no_one_list(f"{_come_and_go(runs)} not in each run", values)
    return layout


def _come_and_go(runs: Sequence[Run]) -> str:
    """What is in some runs alone, as a site or a plate."""
    names = [{*run.guide, *run.model} for run in runs]
    odd = sorted(set[str]().union(*names) - names[0].intersection(*names))
    return f"'{odd[0]}' is" if odd else "a plate is"


def _refuse_values(pair: Pair, runs: Sequence[Run], values: Mapping[str, Tensor]) -> None:
    """Whether each run draws what is given, and nothing else but what the guide draws."""
    for run in runs:
        latent = {name for name, site in run.model.items() if not site.is_observed}
        known = values.keys() | (run.guide.keys() if pair.guide is not None else set())
        odd = sorted(latent - known) or sorted(values.keys() - latent - run.guide.keys())
        drawn = [n for n, s in run.guide.items() if s.is_credited]
        odd = odd or sorted(set(drawn) - values.keys())
        if odd:
            raise no_one_list(f"'{odd[0]}' is not in each run", values)
    for name in values:
        if len({sizes_of(run.guide[name]) for run in runs if name in run.guide}) > 1:
            raise no_one_list(f"'{name}' has other values or sizes in some runs", values)


def check_dreams(pair: Pair, replace_data: ReplaceData) -> None:
    """See that the data which a model draws follow from its latents alone, and not from the data.

    Raises:
        ValueError: If a site is drawn otherwise once the data are in their place.
    """

    def looked() -> None:
        state = pyro.util.get_rng_state()
        _, made = _dreamt(pair)
        args, kwargs = replace_data(made, pair.args, pair.kwargs)
        pyro.util.set_rng_state(state)
        _, again = _dreamt(pair._replace(args=args, kwargs=kwargs))
        for name in made:
            if again.keys() != made.keys() or not torch.equal(made[name], again[name]):
                raise _of_two_data(name)

    only_looking(looked)


def _of_two_data(name: str) -> ValueError:
    return ValueError(
        f"`sleep`: what the model draws at '{name}' depends on data whose place it takes, so that "
        "a dream would be of two data. Compute with the values that pyro.sample returns, or pass "
        "sleep=0."
    )


def _dreamt(pair: Pair) -> tuple[poutine.Trace, dict[str, Tensor]]:
    """A run of the model in which its data are drawn, too; and these."""
    with torch.no_grad(), statistics_kept():
        trace = run_program(poutine.uncondition(pair.model), pair.args, pair.kwargs)
    sites = sample_sites(trace)
    return trace, {n: site.value for n, site in sites.items() if site.infer.get("was_observed")}


def dream(pair: Pair, replace_data: ReplaceData) -> Float[Tensor, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them, as weighed.

    Args:
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    model_trace, made = _dreamt(pair)
    sites = sample_sites(model_trace)
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = poutine.replay(pair.guide, trace=model_trace)
    with statistics_kept():
        dreamt = sample_sites(run_program(replayed, args, kwargs))
    latent = [site for name, site in dreamt.items() if name in sites]
    ledger = Ledger(pair.layout, 1, latent)
    for site in latent:
        ledger.add("q", site, site.log_prob())
    return ledger.scale() * ledger.total("q")[0]
