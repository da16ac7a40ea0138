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
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_dvae.distributions import sample_codes
from numpyro_dvae.ops.multisample import antithetic_draw

__all__ = ["Layout", "find_layout", "find_pairs"]

Site = Any  # numpyro's Message, a dict
Trace = Mapping[str, Site]


class Layout(NamedTuple):
    """What one plain run tells of the structure of a model/guide pair, and how to draw from it."""

    nesting: int  # plates take the batch dims -1 ... -nesting, particles are left of them
    plates: tuple[str, ...]  # that make a datum, leftmost first
    dims: tuple[int, ...]  # their batch dims
    scored: tuple[str, ...]  # guide sites without a pathwise gradient
    paired: tuple[str, ...] = ()  # drawn antithetically by particles k and k + K/2
    pathwise: bool = True  # whether reparameterised draws of a datum keep their gradient


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


def base_distribution(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


class Draw(Messenger):
    """Draw each unobserved site, or take the value that is given; no gradient into drawn codes.

    Entered around a seeded program, so it meets a site last, after its plates and its key.
    Subsamples have a key of their own, so all particles see one minibatch; so has the pair of which
    this particle is a `half`, mirrored or not.
    """

    def __init__(
        self,
        subsample_key: Array,
        values: Mapping[str, Array],
        layout: Layout | None = None,
        half: tuple[Array, Array] | None = None,
        *,
        expand: bool = False,
    ) -> None:
        super().__init__()
        self.subsample_key, self.values, self.expand = subsample_key, values, expand
        self.layout, self.half = layout or Layout(0, (), (), ()), half

    def process_message(self, msg: Site) -> None:
        """Set the value of a latent site, or the key of a plate."""
        if msg["type"] == "plate" and msg["value"] is None:
            name = zlib.crc32(msg["name"].encode())
            msg["kwargs"]["rng_key"] = jax.random.fold_in(self.subsample_key, name)
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        if msg["name"] in self.values:
            msg["value"] = self._given(msg)
            return
        if self.half is not None and msg["name"] in self.layout.paired:
            self._draw_half(msg, *self.half)
        else:
            self._draw(msg)
        of_datum = plates_of(msg).keys() >= frozenset(self.layout.plates)
        if needs_score(msg) or (of_datum and not self.layout.pathwise):
            msg["value"], msg["intermediates"] = jax.lax.stop_gradient(msg["value"]), []

    def _given(self, msg: Site) -> Array:
        value, shape = self.values[msg["name"]], msg["fn"].shape()
        value = value.reshape(value.shape[value.ndim - len(shape) :])
        return jnp.broadcast_to(value, shape) if self.expand else value

    def _draw(self, msg: Site) -> None:
        fn, options = msg["fn"], msg["kwargs"]
        base = base_distribution(fn)
        if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
            shape = options["sample_shape"] + fn.batch_shape + fn.event_shape
            msg["value"] = _draw_codes(options["rng_key"], base.logits, shape)
        else:
            drawn = fn(sample_intermediates=True, **options)
            msg["value"], msg["intermediates"] = drawn

    def _draw_half(self, msg: Site, pair_key: Array, mirrored: Array) -> None:
        probs = msg["fn"].mean
        key = jax.random.fold_in(pair_key, zlib.crc32(msg["name"].encode()))
        shape = msg["fn"].shape(msg["kwargs"]["sample_shape"])
        uniforms = jax.random.uniform(key, shape, probs.dtype)
        msg["value"] = antithetic_draw(probs, uniforms, mirrored).astype(int)


def _draw_codes(rng_key: Array, logits: Array, shape: tuple[int, ...]) -> Array:
    """Codes of a shape to which the batch shape of the logits broadcasts."""
    batch = logits.shape[:-1]
    own = shape[len(shape) - len(batch) :]
    uniforms = jax.random.uniform(rng_key, (math.prod(shape[: len(shape) - len(own)]), *own))
    codes = sample_codes(jnp.broadcast_to(logits, (*own, logits.shape[-1])), uniforms)
    return codes.reshape(shape)


def trace_pair(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    draw: Draw,
    *,
    settled: bool = False,
) -> tuple[Trace, Trace]:
    """One plain run of guide and model; the model sees the guide's draws and mutable state.

    `settled` keeps the model at its own state: what a guide learns by running is not for it.
    """
    guide_key, model_key = jax.random.split(rng_key)
    with draw:
        guide_trace = trace(seed(guide, guide_key)).get_trace(*args, **kwargs)
        if not settled:
            model = substitute(model, data=mutable_values(guide_trace))
        replayed = replay(seed(model, model_key), trace=guide_trace)
        model_trace = trace(replayed).get_trace(*args, **kwargs)
    return guide_trace, model_trace


def mutable_values(trace: Trace) -> dict[str, Any]:
    return {name: site["value"] for name, site in trace.items() if site["type"] == "mutable"}


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.items():
        if site["type"] == "sample":
            yield name, site


def needs_score(site: Site) -> bool:
    base = base_distribution(site["fn"])
    # NumPyro's default is true of a distribution without parameters, whatever its support.
    by_default = type(base).has_rsample is dist.Distribution.has_rsample
    if by_default and not base.arg_constraints and base.support.is_discrete:
        return True
    return not base.has_rsample


def plates_of(site: Site) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"]}


def log_prob(site: Site) -> Array:
    if site["intermediates"]:
        return site["fn"].log_prob(site["value"], site["intermediates"])
    return site["fn"].log_prob(site["value"])


def with_batch_dims(site: Site, value: Array, nesting: int) -> Array:
    """View with `nesting` batch dims; every size above 1 must be a plate's."""
    name, shape = site["name"], jnp.shape(value)
    sizes = {frame.dim: frame.size for frame in plates_of(site).values()}
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] not in (1, sizes.get(dim, 1)):
            raise ValueError(
                f"site '{name}': its log-density has shape {shape}, but batch dim {dim} is "
                f"{_meaning(dim, site)}. Either declare the dim with .to_event(1), or put the "
                f"site under a plate with dim={dim}."
            )
    return jnp.reshape(value, (1,) * (nesting - len(shape)) + shape[max(len(shape) - nesting, 0) :])


def _meaning(dim: int, site: Site) -> str:
    for frame in plates_of(site).values():
        if frame.dim == dim:
            return f"that of plate '{frame.name}', of size {frame.size}"
    return "under no plate"
