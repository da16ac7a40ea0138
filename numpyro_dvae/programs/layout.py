"""Run a model/guide pair and read its structure: plates, and which sites need the score function.

Everything that meets NumPyro's traces is here, in `particles` and `sites`. An abstract run, which
computes nothing, with the provenance of discrete draws tracked [1], tells which plates the discrete
latents share: each cell of these is a datum with importance weights of its own. A layout holds no
array, so it may be kept from one trace of a jitted function to the next.

References:
    [1] Wingate, Goodman, Stuhlmüller & Siskind. Nonstandard interpretations of probabilistic
        programs for efficient inference. NeurIPS, 2011.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.handlers import seed, trace
from numpyro.ops.provenance import eval_provenance

from numpyro_dvae.programs.draw import Draw, trace_pair
from numpyro_dvae.programs.sites import (
    Layout,
    Site,
    Trace,
    base_distribution,
    log_prob,
    needs_score,
    plates_of,
    sample_sites,
    with_batch_dims,
)


def find_layout(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    max_plate_nesting: float = math.inf,
) -> Layout:
    """Run the pair once, abstractly and without particles, and read its structure.

    The shared plates are those of all guide sites that need the score function (if there are none,
    of all latent sites under plates), less any plate that a site depending on one of them is not
    under (the sum of a datum's latents observed outside of the data plate, say): their draws then
    share one weight.

    Raises:
        ValueError: If guide and model do not match (a latent site in one only, different plates or
            sizes), if discrete sites share no plate though each has one, or if the plates nest
            deeper than `max_plate_nesting`.
    """
    found: list[Layout] = []

    def inspect() -> None:
        def run(values: Mapping[str, Array]) -> tuple[Trace, Trace]:
            return trace_pair(rng_key, model, guide, args, kwargs, Draw(rng_key, values))

        found.append(_layout(run, max_plate_nesting))

    jax.eval_shape(inspect)
    return found[0]


def _layout(
    run: Callable[[Mapping[str, Array]], tuple[Trace, Trace]], max_plate_nesting: float
) -> Layout:
    guide_trace, model_trace = run({})
    _check_match(guide_trace, model_trace)
    sites = [*sample_sites(guide_trace), *sample_sites(model_trace)]
    scored = {name: site for name, site in sample_sites(guide_trace) if needs_score(site)}
    plated = {n: s for n, s in sample_sites(guide_trace) if plates_of(s) and not s["is_observed"]}
    frames = {name: frame for _, site in sites for name, frame in plates_of(site).items()}
    found = max((-frame.dim for frame in frames.values()), default=0)
    if found > max_plate_nesting:
        raise ValueError(
            f"`max_plate_nesting` must cover all plates of model and guide: got "
            f"{max_plate_nesting}, but plates reach batch dim {-found}. Raise it or leave it out."
        )
    nesting = found if math.isinf(max_plate_nesting) else int(max_plate_nesting)
    for _, site in sites:
        with_batch_dims(site, log_prob(site), nesting)
    shared = _shared_plates(scored or plated, sites, run)
    plates = sorted(shared, key=lambda name: frames[name].dim)
    dims = tuple(frames[name].dim for name in plates)
    return Layout(nesting, tuple(plates), dims, tuple(scored))


def _shared_plates(
    latent: dict[str, Site],
    sites: list[tuple[str, Site]],
    run: Callable[[Mapping[str, Array]], tuple[Trace, Trace]],
) -> set[str]:
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
    if any(not shared <= plates_of(site).keys() for _, site in sites):
        draws = {name: site["value"] for name, site in latent.items() if not site["is_observed"]}
        for (_, site), depends in zip(sites, _depend_on(draws, run), strict=True):
            if depends and not shared <= plates_of(site).keys():
                shared &= plates_of(site).keys()
    return shared


def _depend_on(
    draws: dict[str, Array], run: Callable[[Mapping[str, Array]], tuple[Trace, Trace]]
) -> list[bool]:
    """Of each site, guide's first: whether its log-density depends on any of the draws."""

    def log_probs(draws: Mapping[str, Array]) -> list[Array]:
        return [log_prob(site) for trace in run(draws) for _, site in sample_sites(trace)]

    return [bool(names) for names in eval_provenance(log_probs, draws=draws)]


def _check_match(guide_trace: Trace, model_trace: Trace) -> None:
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


def find_pairs(rng_key: Array, guide: Callable, args: tuple, kwargs: dict) -> tuple[str, ...]:
    """Bernoulli sites of the guide whose probabilities depend on no other draw.

    Raises:
        ValueError: If a site that needs the score function is not Bernoulli.
    """
    found: list[str] = []

    def latent(draws: Mapping[str, Array]) -> dict[str, Site]:
        with Draw(rng_key, draws):
            guide_trace = trace(seed(guide, rng_key)).get_trace(*args, **kwargs)
        return {name: s for name, s in sample_sites(guide_trace) if not s["is_observed"]}

    def inspect() -> None:
        sites = latent({})
        names = [name for name, site in sites.items() if _is_binary(name, site)]
        depends = eval_provenance(
            lambda draws: {n: s["fn"].mean for n, s in latent(draws).items() if n in names},
            draws={name: site["value"] for name, site in sites.items()},
        )
        found.extend(name for name in names if not depends[name])

    jax.eval_shape(inspect)
    return tuple(found)


def _is_binary(name: str, site: Site) -> bool:
    base = base_distribution(site["fn"])
    if needs_score(site) and not isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        raise ValueError(
            f"site '{name}' of the guide is {type(base).__name__}, but antithetic pairs are of "
            "Bernoulli draws. Make it Bernoulli, or use Reinforce_ELBO, VIMCO_ELBO or DAPS_ELBO."
        )
    return needs_score(site)
