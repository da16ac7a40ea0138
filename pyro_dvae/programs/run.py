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
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_dvae.ops.processes import all_rows, among_all, summed
from pyro_dvae.programs.draw import Draw, Sampler, run_pair, run_program
from pyro_dvae.programs.processes import current_sharding
from pyro_dvae.programs.record import Ledger, Particles, Reader, make_record, make_records
from pyro_dvae.programs.sites import (
    Layout,
    Pair,
    Rows,
    Run,
    StructureError,
    no_one_list,
    rows_of_plates,
    sample_sites,
    sizes_of,
)
from pyro_dvae.programs.structure.layout import common_layout
from pyro_dvae.programs.structure.looking import statistics_kept

__all__ = [
    "OwnRows",
    "drawn_subsamples",
    "dream",
    "gathered",
    "part_of",
    "run_particles",
]


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
        with poutine.replay(trace=minibatch), statistics_kept(k > 0):
            runs.append(run_pair(pair, draw))
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
            return pair.layout
    if pair.structure is not None and len(structures) == 1:
        raise StructureError("the programs have other sites than before")
    return common_layout(runs)


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


def drawn_subsamples(run: Run) -> poutine.Trace:
    """The subsamples that a run has drawn, to be replayed.

    A plate that has all its rows is left out: how many these are may depend on the draws.
    """
    minibatch = poutine.Trace()
    for trace in (run.guide_trace, run.model_trace):
        taken = rows_of_plates(trace)
        for name, rows in taken.items():
            if len(rows.indices) != rows.full_size:
                minibatch.nodes.setdefault(name, trace.nodes[name])
    return minibatch


def dream(
    pair: Pair, replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]
) -> Float[Tensor, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them, as weighed.

    Args:
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    with torch.no_grad(), statistics_kept():
        model_trace = run_program(poutine.uncondition(pair.model), pair.args, pair.kwargs)
    sites = sample_sites(model_trace)
    made = {n: site.value for n, site in sites.items() if site.infer.get("was_observed")}
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = poutine.replay(pair.guide, trace=model_trace)
    with statistics_kept():
        dreamt = sample_sites(run_program(replayed, args, kwargs))
    latent = [site for name, site in dreamt.items() if name in sites]
    ledger = Ledger(pair.layout, 1, latent)
    for site in latent:
        ledger.add("q", site, site.log_prob())
    return ledger.scale() * ledger.total("q")[0]


_SHARED = ("shared_likelihood", "shared_prior", "shared_q")


class OwnRows(NamedTuple):
    """Where the rows of this process are in a record of all."""

    axis: int  # of arrays with K particles in front
    start: int
    length: int
    size: int  # processes


def part_of(particles: Particles, array: Tensor) -> Tensor:
    """Of an array ``(K, *plates)`` on all rows of a record, the part on this process's own."""
    own = particles.extras.get("own_rows")
    return array if own is None else array.narrow(own.axis, own.start, own.length)


def gathered(particles: Particles, layout: Layout) -> Particles:
    """The record of all rows; the one that is given where nothing is shared.

    Statistics of closed forms stay those of one's own rows, which `part_of` tells.

    Raises:
        ValueError: If the data are not under a plate that makes a datum.
    """
    own = _own_rows(layout)
    if own is None:
        return particles
    fields = particles._asdict()
    fields |= {name: summed(fields[name]) for name in _SHARED}
    scale, kept = fields["scale"], {name: fields.pop(name) for name in (*_SHARED, "scale")}
    if isinstance(scale, Tensor) and scale.dim() >= own.axis:
        fields["scale"] = kept.pop("scale")[None]  # for the time being with an axis of particles
    found: list[Tensor] = []
    _mapped(fields, lambda array: found.append(array) if _has_rows(array, own) else None)
    everyone = iter(_all_rows(found, own.axis))
    fields = _mapped(
        fields,
        lambda array: next(everyone) if _has_rows(array, own) else _mean(array, own.size),
    )
    if "scale" in fields:
        fields["scale"] = fields["scale"][0]
    return Particles(**{**fields, **kept, "extras": {**fields["extras"], "own_rows": own}})


def _own_rows(layout: Layout) -> OwnRows | None:
    """Where the rows of this process are; None if nothing is shared."""
    sharding = current_sharding()
    if sharding is None:
        return None
    axes = [1 + i for i, name in enumerate(layout.plates) if name in sharding.plates]
    if len(axes) != 1 or layout.asked:
        why = "Python asks for their draws" if layout.asked else "they share none of these alone"
        which = f"of the discrete sites {sorted(layout.credited)} of the guide, {why}"
        if not layout.credited:
            which = "the guide has no latent under one, so a particle has one weight for all rows"
        raise ValueError(
            f"the batch cannot be shared among processes by its plates of data, "
            f"{sorted(sharding.plates)}: {which}. Train in one process, or put latents under the "
            "plate of data; for continuous ones alone there is Trace_ELBO."
        )
    share = sharding.share
    return OwnRows(axes[0], share.rank * share.rows, share.rows, share.size)


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arrays changed one by one, wherever they are."""
    if getattr(value, "of_own_rows", False):
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        entries = [_mapped(entry, change) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _has_rows(array: Tensor, own: OwnRows) -> bool:
    is_number = array.dim() == 0
    if is_number or (array.dim() > own.axis and array.shape[own.axis] == 1 < own.length):
        return False
    if array.dim() <= own.axis or array.shape[own.axis] != own.length:
        raise ValueError(
            f"`reads` of a loss has made an array of shape {tuple(array.shape)}, but axis "
            f"{own.axis} is to hold the {own.length} rows that this process has. Let it have the "
            "particles in front, and then the plates."
        )
    return True


def _mean(array: Tensor, size: int) -> Tensor:
    """Of what does not go by rows; each process has its part of the gradient."""
    return summed(array) / size if array.is_floating_point() else array


def _all_rows(arrays: list[Tensor], axis: int) -> list[Tensor]:
    """All rows of arrays, those of one type sent together."""
    found: list[Any] = [None] * len(arrays)
    for dtype in dict.fromkeys(array.dtype for array in arrays):
        places = [i for i, array in enumerate(arrays) if array.dtype == dtype]
        leading = [arrays[i].movedim(axis, 0) for i in places]
        columns = [array.detach().flatten(1) for array in leading]
        everyone = all_rows(torch.cat(columns, 1)).split([c.shape[1] for c in columns], 1)
        for i, array, rows in zip(places, leading, everyone, strict=True):
            rows = rows.reshape(len(rows), *array.shape[1:]).contiguous()
            found[i] = among_all(array, rows).movedim(0, axis)
    return found
