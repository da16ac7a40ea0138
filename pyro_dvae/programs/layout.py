"""Run a pair once, plainly, and read its structure: plates, and sites that need the score function.

The run tracks the provenance of draws [1], which tells which plates the discrete latents share:
each cell of these is a datum with importance weights of its own.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_dvae.programs.draw import Draw, run_pair, run_program
from pyro_dvae.programs.pair import Layout, Pair, Run
from pyro_dvae.programs.sites import Site, in_batch_dims, is_drawn, sample_sites

__all__ = ["find_layout", "independent_sites"]


def find_layout(pair: Pair, max_plate_nesting: float = math.inf) -> Layout:
    """Run the pair once, without particles, and read its structure.

    The shared plates are those of all guide sites that need the score function (if there are none,
    of all latent sites under plates), less any plate that a site depending on one of them is not
    under (the sum of a datum's latents observed outside of the data plate, say): their draws then
    share one weight.

    Raises:
        ValueError: If guide and model do not match (a latent site in one only, different plates or
            sizes), if discrete sites share no plate though each has one, or if the plates nest
            deeper than `max_plate_nesting`.
    """
    run = _tracked(pair, TrackNonReparam())
    _check_match(run)
    scored = {name: site for name, site in run.guide.items() if site.needs_score}
    if not scored:
        run = _tracked(pair, _TrackDraws())
    sites = [*run.guide.values(), *run.model.values()]
    shared = _shared_plates(scored or _plated(run.guide), sites)
    frames = {name: frame for site in sites for name, frame in site.plates.items()}
    nesting = _nesting(frames, max_plate_nesting)
    plates = sorted(shared, key=lambda name: frames[name].dim)
    for site in sites:
        in_batch_dims(site, site.log_prob(), nesting, 1)
    dims = tuple(frames[name].dim for name in plates)
    return Layout(nesting, tuple(plates), dims, tuple(scored))


def _nesting(frames: Mapping[str, Any], max_plate_nesting: float) -> int:
    deepest = max((-frame.dim for frame in frames.values()), default=0)
    if deepest > max_plate_nesting:
        raise ValueError(
            f"`max_plate_nesting` must cover all plates of model and guide: got "
            f"{max_plate_nesting}, but plates reach batch dim {-deepest}. Raise it or leave it out."
        )
    return deepest if math.isinf(max_plate_nesting) else int(max_plate_nesting)


def _tracked(pair: Pair, tracker: Messenger) -> Run:
    with torch.no_grad(), tracker:
        return run_pair(pair, Draw(Layout(), None))


def _plated(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Latent sites of the data, if none needs the score function."""
    return {name: site for name, site in sites.items() if site.plates and not site.is_observed}


def _shared_plates(latent: dict[str, Site], sites: list[Site]) -> set[str]:
    if not latent:
        return set()
    plates = [set(site.plates) for site in latent.values()]
    shared = set.intersection(*plates)
    if not shared and all(plates) and any(site.needs_score for site in latent.values()):
        listed = ", ".join(f"'{name}' under {sorted(s.plates)}" for name, s in latent.items())
        raise ValueError(
            "discrete guide sites must share a plate, so that their datum has one weight, or one "
            f"of them must be global; got {listed}. Put them under one plate, or marginalise one."
        )
    for site in sites:
        if not shared <= site.plates.keys():
            if get_provenance(site.log_prob()) & latent.keys():
                shared &= site.plates.keys()
    return shared


def _check_match(run: Run) -> None:
    latent = {name for name, site in run.model.items() if not site.is_observed}
    for name, site in run.guide.items():
        if site.is_observed or site.is_auxiliary:
            continue
        if name not in latent:
            raise ValueError(
                f"site '{name}' of the guide is not a latent site of the model, which has "
                f"{sorted(latent)}. Rename it, or mark it infer={{'is_auxiliary': True}}."
            )
        _check_plates(name, site.plates, run.model[name].plates)
    if missing := sorted(latent - run.guide.keys()):
        raise ValueError(
            f"sites {missing} of the model are neither observed nor sampled by the guide, which "
            f"has {sorted(run.guide)}. Sample them in the guide, observe or marginalise them."
        )


def _check_plates(name: str, guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    def described(frames: Mapping[str, Any]) -> list[str]:
        return [f"'{f.name}' (dim {f.dim}, size {f.size})" for f in frames.values()] or ["no plate"]

    if {(f.name, f.dim, f.size) for f in guide.values()} != {
        (f.name, f.dim, f.size) for f in model.values()
    }:
        raise ValueError(
            f"site '{name}' is under {', '.join(described(guide))} in the guide, but under "
            f"{', '.join(described(model))} in the model. Give both the same plates and sizes."
        )


def independent_sites(pair: Pair, parameter: Callable[[Site], Tensor]) -> tuple[str, ...]:
    """Guide sites that need the score function and whose parameter depends on no other draw.

    Args:
        pair: The programs.
        parameter: What to look at of each such site.
    """
    assert pair.guide is not None
    with torch.no_grad(), _TrackDraws():
        sites = sample_sites(run_program(pair.guide, pair.args, pair.kwargs))
    drawn = {name: s for name, s in sites.items() if s.needs_score and not s.is_observed}
    parameters = {name: parameter(site) for name, site in drawn.items()}
    return tuple(name for name, value in parameters.items() if not get_provenance(value))


class _TrackDraws(Messenger):
    """Mark what depends on the draw of any latent site, reparameterised or not."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_drawn(msg):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))
