"""Run guide and model with K particles and return plain arrays, for any NumPyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

A log-density under these plates is summed over every further plate into its datum. What is outside
of them, a global continuous latent say, is kept apart in the ``shared_*`` fields: it does not
depend on the draws of a datum, which `find_layout` verifies. The scale of the
shared plates (full size / subsample size) is kept apart as well, since importance weights want the
datum's own nats: ``loss = -scale * per_datum.sum() - shared``.

Shapes: particles lead, left of all plates. The programs run as they are under `jax.vmap`, which
batches only what depends on a draw: an encoder runs once for all K particles, and its logits are
never copied K times. So any program will do, however it indexes. Values in nats.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.handlers import replay, seed, trace, uncondition

from numpyro_dvae.programs.draw import Draw, trace_pair
from numpyro_dvae.programs.record import Ledger, Particles, make_record
from numpyro_dvae.programs.sites import Layout, log_prob, mutable_values, sample_sites

__all__ = ["Particles", "dream", "run_particles"]


def run_particles(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    layout: Layout,
    num_particles: int,
    *,
    vectorize: bool | Callable = True,
    with_entropy: bool = False,
    with_codes: bool = False,
    values: Mapping[str, Array] | None = None,
    closed_forms: Mapping[str, Any] | None = None,
) -> tuple[Particles, dict[str, Any]]:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        rng_key: Key of all draws.
        model: Any NumPyro model, with its parameters substituted.
        guide: A guide for it, called with the same arguments.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        layout: What `find_layout` found for this pair.
        num_particles: K.
        vectorize: Run the particles under `jax.vmap`, or one after another under `jax.lax.map`
            (same result), or under a transformation of one's own, as NumPyro's losses.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        with_codes: Also return the discrete latents; None beside reparameterised latents of a
            datum or infinite support, where no two particles are equal.
        values: Values of sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast; every other site is then drawn once for all K. Sites
            of the model that the guide does not have take values too.
        closed_forms: Of some of the model's sites, the `models.ClosedForm`.

    Returns:
        The record, and the mutable state that the programs leave: of floats the mean over the
        particles, each of which starts from the same state; of the rest the last particle's.

    Raises:
        ValueError: If the shape of a site's log-density is not explained by its plates.
    """
    (subsample_key, draw_key), forms = jax.random.split(rng_key), closed_forms or {}

    def run(particle: tuple[Any, dict[str, Array], Any]) -> tuple[Particles, dict[str, Any]]:
        key, given, half = particle
        draw = Draw(subsample_key, given, layout, half, expand=not vectorize)
        key = draw_key if key is None else key
        traces = trace_pair(key, model, guide, args, kwargs, draw)
        mutable = mutable_values(traces[0]) | mutable_values(traces[1])
        return make_record(*traces, layout, with_entropy, with_codes, forms), mutable

    keys = None if values else jax.random.split(draw_key, num_particles)
    halves = _halves(draw_key, num_particles) if layout.paired and not values else None
    particles, mutable = _over_particles(vectorize)(run, (keys, dict(values or {}), halves))
    statistics = {n: s._replace(mask=s.mask[0]) for n, s in particles.statistics.items()}
    particles = particles._replace(scale=particles.scale[0], statistics=statistics)
    return particles, jax.tree.map(_merge, mutable)


def _halves(rng_key: Array, num_particles: int) -> tuple[Array, Array]:
    """One key for particles k and k + K/2, and which of the two is mirrored."""
    places, size = jnp.arange(num_particles), num_particles // 2
    keys = jax.random.split(jax.random.fold_in(rng_key, num_particles), size)
    return keys[places % size], places >= size


def dream(
    rng_key: Array,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    layout: Layout,
    replace_data: Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]],
) -> Float[Array, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them.

    Args:
        rng_key: Key of all draws.
        model: Any NumPyro model; its observed sites are drawn as well.
        guide: A guide for it.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        layout: What `find_layout` found for this pair.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    model_key, guide_key = jax.random.split(rng_key)
    drawn = trace(uncondition(seed(model, model_key))).get_trace(*args, **kwargs)
    sites = dict(sample_sites(drawn))
    for site in sites.values():
        site["value"] = jax.lax.stop_gradient(site["value"])
    made = {n: s["value"] for n, s in sites.items() if s["infer"].get("was_observed")}
    args, kwargs = replace_data(made, args, kwargs)
    guide_trace = trace(replay(seed(guide, guide_key), trace=drawn)).get_trace(*args, **kwargs)
    ledger = Ledger(layout, guide_trace)
    for name, site in sample_sites(guide_trace):
        if name in sites:
            ledger.add("q", site, log_prob(site))
    return ledger.total("q")


def _over_particles(vectorize: bool | Callable) -> Callable:
    if callable(vectorize):
        return vectorize
    return (lambda run, particles: jax.vmap(run)(particles)) if vectorize else jax.lax.map


def _merge(leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[-1]
    same = (leaf == leaf[0]).all(0)  # what no particle has changed stays so to the last bit
    return jnp.where(same, leaf[0], jnp.mean(leaf, 0))
