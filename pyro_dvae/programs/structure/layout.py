"""Run a pair once, plainly, and read its structure: plates, and sites that need the score function.

What depends on which draws, as `tracking` finds out, tells which plates the discrete latents share:
each cell of these is a datum with importance weights of its own. A draw whose value Python has
asked for (`if`, `.item()`, an index, NumPy) may have gone anywhere: all sites depend on it, so that
all data have one weight.
"""

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance
from torch import Tensor

from pyro_dvae.programs.draw import bounds_of, run_program
from pyro_dvae.programs.handlers.rows import check_guide
from pyro_dvae.programs.record import in_batch_dims
from pyro_dvae.programs.sites import Layout, Pair, Run, Site, sample_sites
from pyro_dvae.programs.structure.looking import only_looking
from pyro_dvae.programs.structure.matching import check_match
from pyro_dvae.programs.structure.tracking import Exits, TrackDraws, Tracked, find_sources, tracked
from pyro_dvae.programs.structure.ways import ways_through
from pyro_dvae.programs.summing.agreeing import check_agreement
from pyro_dvae.programs.summing.enumerating import is_marked

__all__ = ["common_layout", "find_layout", "independent_sites"]


def find_layout(pair: Pair, max_plate_nesting: float = math.inf) -> tuple[Layout, tuple]:
    """Run the pair once, without particles, and read its structure.

    The shared plates are those of all guide sites that need the score function (if there are none,
    of all latent sites under plates), less any plate that a site depending on one of them is not
    under (the sum of a datum's latents observed outside of the data plate, say): their draws then
    share one weight. So do the draws of sites that share no plate.

    Returns:
        The layout, and the structure of the run that it is of.

    Raises:
        ValueError: If guide and model do not match (a latent site in one only, different plates,
            sizes or event shapes), if the plates nest deeper than `max_plate_nesting`, or if a
            guide keeps something by rows that the data are not of.
    """
    found = tracked(pair, TrackNonReparam())
    bounded = _bounded(found)
    runs = _all_runs(pair, found)
    if summed := tuple(dict.fromkeys(name for run in runs for name in _to_be_summed(run))):
        all_sites = [s for run in runs for s in (*run.guide.values(), *run.model.values())]
        nesting = _layout_of(all_sites, set(), (), max_plate_nesting).nesting
        pair = pair._replace(layout=Layout(nesting, summed=summed))
        for run in runs:
            check_agreement(pair, run)
        found = tracked(pair, TrackNonReparam())
    check_match(found.run)
    credited = {n: s for n, s in found.run.guide.items() if s.is_credited}
    if not credited:
        found = tracked(pair, TrackDraws())
    run = found.run
    check_guide(pair, run)
    sites = [*run.guide.values(), *run.model.values()]
    shared = _shared_plates(pair, found, credited or _plated(run.guide))
    layout = _layout_of(sites, shared, tuple(credited), max_plate_nesting)
    layout = layout._replace(
        asked=_is_asked(found, credited), asks=found.asks, summed=summed, bounded=bounded
    )
    nestings = layout.nesting, pair.layout.nesting, _nesting_of_computed([run], max_plate_nesting)
    layout = layout._replace(nesting=max(nestings))
    for site in sites:
        in_batch_dims(site, site.log_prob(), layout.nesting, 1)
    return layout, run.structure()


def _is_asked(found: Tracked, latent: Mapping[str, Site]) -> bool:
    """Whether Python asks for draws without a pathwise gradient."""
    return any(site.is_credited for name, site in latent.items() if name in found.exits)


def _bounded(found: Tracked) -> tuple[str, ...] | None:
    """Observed sites whose bounds follow from draws; None if Python asks for any draw."""
    if found.exits:
        return None
    sites = ((name, site) for name, site in found.run.model.items() if site.is_observed)
    return tuple(name for name, site in sites if get_provenance(bounds_of(site.fn)))


def _all_runs(pair: Pair, found: Tracked) -> list[Run]:
    """Runs that have all sites that draws which Python asks for lead to; the run that was found."""

    def run(values: Mapping[str, Tensor]) -> tuple[Mapping[str, Site], Collection[str], Run]:
        again = tracked(pair, TrackNonReparam(), values)
        return again.run.guide, again.exits & again.run.guide.keys(), again.run

    if not found.exits & found.run.guide.keys():
        return [found.run]
    runs = {each.found.structure(): each.found for each in ways_through(run)}
    return list(runs.values())


def _to_be_summed(run: Run) -> tuple[str, ...]:
    """Marked sites of the model that the guide does not draw."""
    return tuple(n for n, s in run.model.items() if is_marked(s) and n not in run.guide)


def common_layout(runs: Sequence[Run], max_plate_nesting: float = math.inf) -> Layout:
    """The layout of runs whose sites depend on the draws.

    Python has asked for these, of all data at once, so all draws share one weight.
    """
    for run in runs:
        _check_drawn(run)
        check_match(run)
    sites = [site for run in runs for sites in (run.guide, run.model) for site in sites.values()]
    credited = (n for run in runs for n, s in run.guide.items() if s.is_credited)
    names = tuple(dict.fromkeys(credited))
    layout = _layout_of(sites, set(), names, max_plate_nesting)
    nesting = max(layout.nesting, _nesting_of_computed(runs, max_plate_nesting))
    return layout._replace(asked=True, nesting=nesting)


def _layout_of(
    sites: Sequence[Site], shared: set[str], credited: tuple[str, ...], max_plate_nesting: float
) -> Layout:
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    plates = sorted(shared, key=lambda name: frames[name].dim)
    dims = tuple(frames[name].dim for name in plates)
    return Layout(_nesting(frames, max_plate_nesting), tuple(plates), dims, credited)


def _nesting(frames: Mapping[str, Any], max_plate_nesting: float) -> int:
    deepest = max((-frame.dim for frame in frames.values()), default=0)
    if deepest > max_plate_nesting:
        raise ValueError(
            f"`max_plate_nesting` must cover all plates of model and guide: got "
            f"{max_plate_nesting}, but plates reach batch dim {-deepest}. Raise it or leave it out."
        )
    return deepest if math.isinf(max_plate_nesting) else int(max_plate_nesting)


def _nesting_of_computed(runs: Sequence[Run], max_plate_nesting: float) -> int:
    """Of what the guides compute, a prediction say, under plates that no site may be under."""
    sites = [site for run in runs for site in run.computed().values()]
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    return _nesting(frames, max_plate_nesting)


def _plated(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Latent sites of the data, if none needs the score function."""
    return {name: site for name, site in sites.items() if site.plates and not site.is_observed}


def _shared_plates(pair: Pair, found: Tracked, latent: dict[str, Site]) -> set[str]:
    if not latent:
        return set()
    shared = set.intersection(*(set(site.plates) for site in latent.values()))
    if not shared and all(site.plates for site in latent.values()):
        _warn_of_no_shared_plate(latent)
    if not shared:
        return shared
    frames = {name: frame for site in latent.values() for name, frame in site.plates.items()}
    sources = find_sources(pair, found, latent, [frames[name].dim for name in shared])
    sides = (found.run.guide, sources.guide), (found.run.model, sources.model)
    for sites, draws in sides:
        for name, site in sites.items():
            if draws[name] and not shared <= site.plates.keys():
                shared &= site.plates.keys()
    exits = latent.keys() if sources.mixed else found.exits
    asked = {name: latent[name] for name in sorted(exits & latent.keys())}
    mixed = {p.name for site in asked.values() for p in site.plates.values() if p.size != 1}
    if shared & mixed:
        _warn_of_values_asked_for(asked, shared & mixed)
    # As where the sites differ from draw to draw: no draw changes what makes a datum.
    return set() if _is_asked(found, latent) else shared - mixed


def _warn_of_no_shared_plate(latent: Mapping[str, Site]) -> None:
    if any(site.needs_credit for site in latent.values()):
        listed = ", ".join(f"'{name}' under {sorted(s.plates)}" for name, s in latent.items())
        warnings.warn(
            f"the discrete sites share no plate ({listed}), so all their draws have one weight: "
            "values and gradients are right, but noisier the more data there are. Put the sites "
            "under one plate, or marginalise one, where the model allows.",
            stacklevel=9,
        )


def _warn_of_values_asked_for(asked: Mapping[str, Site], plates: set[str]) -> None:
    if any(site.needs_credit for site in asked.values()):
        warnings.warn(
            f"Python asks for the values of {list(asked)} under plate {sorted(plates)} (`if`, "
            ".item(), an index, NumPy), so each datum may depend on the draws of all, and all have "
            "one weight: values and gradients are right, but noisier the more data there are. "
            "Write torch.where for `if`, and keep the values in tensors.",
            stacklevel=9,
        )


def _check_drawn(run: Run) -> None:
    if marked := _to_be_summed(run):
        raise ValueError(
            f"sites {sorted(marked)} are marked infer={{'enumerate': 'parallel'}} in a model whose "
            "sites depend on the draws, and cannot be summed out there. Sample them in the guide, "
            "or have all sites in each run, under a mask where they do not count."
        )


def independent_sites(pair: Pair, parameter: Callable[[Site], Tensor]) -> tuple[str, ...]:
    """Guide sites that need the score function and whose parameter depends on no other draw.

    Args:
        pair: The programs.
        parameter: What to look at of each such site.
    """
    assert pair.guide is not None

    def look() -> tuple[dict[str, Site], set[str]]:
        with pyro.validation_enabled(False), TrackDraws(), Exits() as exits:
            return sample_sites(run_program(pair.guide, pair.args, pair.kwargs)), exits.names

    sites, exits = only_looking(look)
    drawn = {name: s for name, s in sites.items() if s.is_credited}
    parameters = {name: parameter(site) for name, site in drawn.items()}
    if exits:  # then any site may be there, or as it is, because of them
        return ()
    return tuple(name for name, value in parameters.items() if not get_provenance(value))
