"""Run a model/guide pair and read its structure: plates, and which sites need the score function.

Everything that meets Pyro's traces is here, in `particles` and `sites`. A plain run, with the
provenance of discrete draws tracked [1], tells which plates the discrete latents share: each cell
of these is a datum with importance weights of its own.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_dvae.ops.multisample import antithetic_draw

__all__ = ["Layout", "find_layout", "find_pairs"]

Site = Any  # pyro's Message, a TypedDict whose every field is optional


class Layout(NamedTuple):
    """What one plain run tells of the structure of a model/guide pair, and how to draw from it."""

    nesting: int  # plates take the batch dims -1 ... -nesting, particles -nesting - 1
    plates: tuple[str, ...]  # that make a datum, leftmost first
    dims: tuple[int, ...]  # their batch dims
    scored: tuple[str, ...]  # guide sites without a pathwise gradient
    paired: tuple[str, ...] = ()  # drawn antithetically by particles k and k + K/2
    pathwise: bool = True  # whether reparameterised draws of a datum keep their gradient


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


def base_distribution(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):  # Independent, ExpandedDistribution, MaskedDistribution
        fn = fn.base_dist
    return fn


class DrawTogether(Messenger):
    """Draw each unobserved site once for all particles, or take the value that is given.

    Args:
        num_draws: K; None to let the program draw, one particle at a time.
        layout: How the sites are drawn.
        values: Values of sites, in place of draws.
        uniforms: For one particle at a time: the uniforms of its pair; filled by the first of the
            two, mirrored by the second.
    """

    def __init__(
        self,
        num_draws: int | None,
        layout: Layout,
        values: Mapping[str, Tensor],
        uniforms: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_draws, self.layout, self.values = num_draws, layout, values
        self.uniforms = {} if uniforms is None else uniforms

    def _pyro_sample(self, msg: Site) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self._given(msg), True
        elif msg["name"] in self.layout.paired:
            msg["value"], msg["done"] = self._draw_pairs(msg), True
        elif self.num_draws is not None:
            msg["value"], msg["done"] = self._draw(msg, self.num_draws), True

    def _pyro_post_sample(self, msg: Site) -> None:
        if self.layout.pathwise or msg["is_observed"] or site_is_subsample(msg):
            return
        if plates_of(msg).keys() >= frozenset(self.layout.plates):
            msg["value"] = msg["value"].detach()

    def _given(self, msg: Site) -> Tensor:
        value = self.values[msg["name"]]
        if self.num_draws is not None:
            return value
        shape = (*msg["fn"].batch_shape, *msg["fn"].event_shape)  # as the program would draw it
        return value.reshape(value.shape[value.dim() - len(shape) :]).expand(shape)

    def _draw(self, msg: Site, num_draws: int) -> Tensor:
        batch = msg["fn"].batch_shape
        missing = self.layout.nesting + 1 - len(batch)
        if missing > 0:
            return msg["fn"](torch.Size((num_draws, *[1] * (missing - 1))))
        if batch[0] == 1 < num_draws:  # an axis the program made, not yet the particles'
            msg["fn"] = msg["fn"].expand((num_draws, *batch[1:]))
        return msg["fn"]()

    def _draw_pairs(self, msg: Site) -> Tensor:
        name, probs = msg["name"], msg["fn"].mean.detach()
        if self.num_draws is None:
            mirrored = name in self.uniforms
            uniforms = self.uniforms.setdefault(name, torch.rand_like(probs))
            return antithetic_draw(probs, uniforms, mirrored).to(probs.dtype)
        missing = self.layout.nesting + 1 - len(msg["fn"].batch_shape)
        own = (*[1] * (missing - 1), *probs.shape) if missing > 0 else probs.shape[1:]
        uniforms = probs.new_empty((self.num_draws // 2, *own)).uniform_()
        halves = [antithetic_draw(probs, uniforms, mirrored) for mirrored in (False, True)]
        return torch.cat(halves).to(probs.dtype)


def trace_pair(
    model: Callable, guide: Callable | None, args: tuple, kwargs: dict, draw: Messenger
) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.Trace()
    with draw:
        if guide is not None:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            if not (site["infer"] or {}).get("_deterministic"):
                yield name, site


def needs_score(site: Site) -> bool:
    return not getattr(site["fn"], "has_rsample", False)


def plates_of(site: Site) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def log_prob(site: Site) -> Tensor:
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def with_particle_axis(site: Site, value: Tensor, nesting: int, num_particles: int) -> Tensor:
    """View with ``nesting + 1`` batch dims; every size above 1 must be a plate's or K."""
    name, shape = site["name"], tuple(value.shape)
    sizes = {-nesting - 1: num_particles} | {f.dim: f.size for f in plates_of(site).values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)):
            raise ValueError(
                f"site '{name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, nesting, num_particles, site)}. Either declare the dim with "
                ".to_event(1), or put the site under a plate with "
                f"dim={dim}, or write the program so that it broadcasts over a particle axis left "
                "of all plates (x[..., i], sum(-1), no bare reshape)."
            )
    return value.reshape((1,) * (nesting + 1 - len(shape)) + shape)


def _meaning(dim: int, nesting: int, num_particles: int, site: Site) -> str:
    if dim == -nesting - 1:
        return f"the particles', of size {num_particles}"
    for frame in plates_of(site).values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"
