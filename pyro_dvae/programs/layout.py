"""Run a model/guide pair and read its structure: plates, and which sites need the score function.

Everything that meets Pyro's traces is here, in `particles` and `sites`. A plain run, with the
provenance of discrete draws tracked [1], tells which plates the discrete latents share: each cell
of these is a datum with importance weights of its own.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_dvae.programs.draw import DrawTogether, trace_pair
from pyro_dvae.programs.sites import (
    Layout,
    Site,
    base_distribution,
    log_prob,
    needs_score,
    plates_of,
    sample_sites,
    with_particle_axis,
)


def find_layout(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, max_plate_nesting: float = math.inf
) -> Layout:
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
    guide_trace, model_trace = _tracked_traces(model, guide, args, kwargs, TrackNonReparam())
    _check_match(guide_trace, model_trace)
    scored = {name: site for name, site in sample_sites(guide_trace) if needs_score(site)}
    if not scored:
        guide_trace, model_trace = _tracked_traces(model, guide, args, kwargs, _TrackDraws())
    sites = [*sample_sites(guide_trace), *sample_sites(model_trace)]
    shared = _shared_plates(scored or _plated(guide_trace), sites)
    frames = {name: frame for _, site in sites for name, frame in plates_of(site).items()}
    found = max((-frame.dim for frame in frames.values()), default=0)
    if found > max_plate_nesting:
        raise ValueError(
            f"`max_plate_nesting` must cover all plates of model and guide: got "
            f"{max_plate_nesting}, but plates reach batch dim {-found}. Raise it or leave it out."
        )
    plates = sorted(shared, key=lambda name: frames[name].dim)
    nesting = found if math.isinf(max_plate_nesting) else int(max_plate_nesting)
    for _, site in sites:
        with_particle_axis(site, log_prob(site), nesting, 1)
    dims = tuple(frames[name].dim for name in plates)
    return Layout(nesting, tuple(plates), dims, tuple(scored))


def _tracked_traces(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, tracker: Messenger
) -> tuple[poutine.Trace, poutine.Trace]:
    draw = DrawTogether(None, Layout(0, (), (), ()), {})
    with torch.no_grad(), tracker:
        return trace_pair(model, guide, args, kwargs, draw)


def _plated(trace: poutine.Trace) -> dict[str, Site]:
    """Latent sites of the data, if none needs the score function."""
    return {n: s for n, s in sample_sites(trace) if plates_of(s) and not s["is_observed"]}


def _shared_plates(latent: dict[str, Site], sites: list[tuple[str, Site]]) -> set[str]:
    if not latent:
        return set()
    plates = [set(plates_of(site)) for site in latent.values()]
    shared = set.intersection(*plates)
    if not shared and all(plates) and any(map(needs_score, latent.values())):
        listed = ", ".join(f"'{name}' under {sorted(plates_of(s))}" for name, s in latent.items())
        raise ValueError(
            "discrete guide sites must share a plate, so that their datum has one weight, or one "
            f"of them must be global; got {listed}. Put them under one plate, or marginalise one."
        )
    for _, site in sites:
        if not shared <= plates_of(site).keys():
            if get_provenance(log_prob(site)) & latent.keys():
                shared &= plates_of(site).keys()
    return shared


def _check_match(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    guide_sites, model_sites = dict(sample_sites(guide_trace)), dict(sample_sites(model_trace))
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    for name, site in guide_sites.items():
        if site["is_observed"] or site["infer"].get("is_auxiliary"):
            continue
        if name not in latent:
            raise ValueError(
                f"site '{name}' of the guide is not a latent site of the model, which has "
                f"{sorted(latent)}. Rename it, or mark it infer={{'is_auxiliary': True}}."
            )
        _check_plates(name, plates_of(site), plates_of(model_sites[name]))
    if missing := sorted(latent - guide_sites.keys()):
        raise ValueError(
            f"sites {missing} of the model are neither observed nor sampled by the guide, which "
            f"has {sorted(guide_sites)}. Sample them in the guide, observe or marginalise them."
        )


def _check_plates(name: str, guide: dict[str, Any], model: dict[str, Any]) -> None:
    def described(frames: dict[str, Any]) -> list[str]:
        return [f"'{f.name}' (dim {f.dim}, size {f.size})" for f in frames.values()] or ["no plate"]

    if {(f.name, f.dim, f.size) for f in guide.values()} != {
        (f.name, f.dim, f.size) for f in model.values()
    }:
        raise ValueError(
            f"site '{name}' is under {', '.join(described(guide))} in the guide, but under "
            f"{', '.join(described(model))} in the model. Give both the same plates and sizes."
        )


def find_pairs(guide: Callable, args: tuple, kwargs: dict) -> tuple[str, ...]:
    """Bernoulli sites of the guide whose probabilities depend on no other draw.

    Raises:
        ValueError: If a site that needs the score function is not Bernoulli.
    """
    with torch.no_grad(), _TrackDraws():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    scored = {n: s for n, s in sample_sites(trace) if needs_score(s) and not s["is_observed"]}
    for name, site in scored.items():
        base = base_distribution(site["fn"])
        if not isinstance(base, torch.distributions.Bernoulli):
            raise ValueError(
                f"site '{name}' of the guide is {type(base).__name__}, but antithetic pairs are "
                "of Bernoulli draws. Make it Bernoulli, or use Reinforce_ELBO, VIMCO_ELBO or "
                "DAPS_ELBO."
            )
    return tuple(name for name, site in scored.items() if not get_provenance(site["fn"].mean))


class _TrackDraws(Messenger):
    """Mark what depends on the draw of any latent site, reparameterised or not."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))
