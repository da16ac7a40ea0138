"""Run guide and model with K particles and return plain arrays, for any NumPyro program.

Every algorithm gets the same record, `Particles`, so that none of them meets a trace:
log-densities per particle and per datum. A datum is one cell of the plates that all guide sites
without a pathwise gradient share: usually the data plate; no plate at all if such a site is global,
and then the whole batch carries one weight per particle.

Shapes: particles lead, left of all plates. The programs run as they are under `jax.vmap`, which
batches only what depends on a draw: an encoder runs once for all K particles, and its logits are
never copied K times. So any program will do, however it indexes. Values in nats.

References:
    [1] Schulman, Heess, Weber & Abbeel. Gradient estimation using stochastic computation graphs.
        NeurIPS, 2015.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.handlers import replay, trace, uncondition

from numpyro_dvae.programs.draw import Draw, Sampler, run_pair, seeded
from numpyro_dvae.programs.handlers.steps import InShape, SharedRows, StepsChecked
from numpyro_dvae.programs.messages import with_values
from numpyro_dvae.programs.record import Ledger, Particles, Reader, make_record
from numpyro_dvae.programs.sites import Pair, sample_sites
from numpyro_dvae.programs.structure.stand_ins import with_stand_ins

__all__ = ["ReplaceData", "check_dreams", "dream", "run_particles"]

# From data that a model made, by site, and a call's (args, kwargs) to the guide's.
ReplaceData = Callable[[dict[str, Any], tuple, dict], tuple[tuple, dict]]


def run_particles(
    rng_key: Array,
    pair: Pair,
    num_particles: int,
    *,
    reads: Mapping[str, Reader] = MappingProxyType({}),
    with_entropy: bool = False,
    values: Mapping[str, Array] | None = None,
    sampler: Sampler | None = None,
    pathwise: bool = True,
) -> tuple[Particles, dict[str, Any]]:
    """Draw K particles from the guide and score them under guide and model.

    Args:
        rng_key: Key of all draws.
        pair: The programs, with their layout and how they are run over particles.
        num_particles: K.
        reads: What to read of the run beside the log-densities, into `Particles.extras`.
        with_entropy: Also collect closed-form entropies; None if a site offers none.
        values: Values of latent sites in place of draws, ``(K, *batch, *event)`` with singleton
            batch dims where they broadcast; every other site is then drawn once for all K. The
            guide may lack sites that are given.
        sampler: Draws some sites in its own way.
        pathwise: Whether reparameterised draws of a datum keep their gradient.

    Returns:
        The record, and the mutable state that the programs leave: of floats the mean over the
        particles, each of which starts from the same state; of the rest the last particle's.

    Raises:
        ValueError: If the shape of a site's log-density is not explained by its plates.
    """
    subsample_key, draw_key = jax.random.split(rng_key)
    keys = None if values else jax.random.split(draw_key, num_particles)
    places = None if sampler is None else jnp.arange(num_particles)
    draw = partial(Draw, subsample_key, pair.layout, sampler=sampler, pathwise=pathwise)
    record = partial(make_record, reads=reads, with_entropy=with_entropy)

    def run_one(particle: tuple[Any, dict[str, Array], Any]) -> tuple[Particles, dict[str, Any]]:
        key, given, place = particle
        handler = draw(given, particle=place, expand=pair.expand or not pair.vectorize)
        run = run_pair(draw_key if key is None else key, pair, handler)
        return record(run, pair.layout, num_particles), run.mutable()

    all_particles = keys, dict(values or {}), places
    particles, mutable = _over_particles(pair.vectorize)(run_one, all_particles)
    return particles._replace(scale=particles.scale[0]), jax.tree.map(_merge, mutable)


def _over_particles(vectorize: bool | Callable) -> Callable:
    if callable(vectorize):
        return vectorize
    return (lambda run, particles: jax.vmap(run)(particles)) if vectorize else jax.lax.map


def _merge(leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[-1]
    same = (leaf == leaf[0]).all(0)  # what no particle has changed stays so to the last bit
    return jnp.where(same, leaf[0], jnp.mean(leaf, 0))


def check_dreams(rng_key: Array, pair: Pair, replace_data: ReplaceData) -> None:
    """See that the data which a model draws follow from its latents alone, and not from the data.

    Raises:
        ValueError: If a site is computed from what is to be replaced.
    """
    leaves, structure = jax.tree.flatten((pair.args, pair.kwargs))

    def drawn(data: Mapping[int, Array]) -> dict[str, Any]:
        given = [data.get(place, leaf) for place, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(structure, given)
        return _dreamt(rng_key, pair._replace(args=args, kwargs=kwargs))[1]

    def looked() -> None:
        after = jax.tree.leaves(replace_data(drawn({}), pair.args, pair.kwargs))
        both = enumerate(zip(leaves, after, strict=True))
        data = {place: jnp.asarray(leaf) for place, (leaf, new) in both if new is not leaf}
        program, made = jax.make_jaxpr(drawn, return_shape=True)(data)
        run = with_stand_ins(program)
        one, other = (
            run({k: np.full(v.shape, n, v.dtype) for k, v in data.items()}) for n in (0, 1)
        )
        for name, before, now in zip(sorted(made), one, other, strict=True):
            if not np.array_equal(before, now):
                raise _of_two_data(name)

    jax.eval_shape(looked)


def _of_two_data(name: str) -> ValueError:
    return ValueError(
        f"`sleep`: what the model draws at '{name}' depends on data whose place it takes, so that "
        "a dream would be of two data. Compute with the values that numpyro.sample returns, or "
        "pass sleep=0."
    )


def _dreamt(rng_key: Array, pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of the model in which its data are drawn, too; and these."""
    simulated = uncondition(seeded(pair.model, rng_key))
    model_trace = trace(simulated).get_trace(*pair.args, **pair.kwargs)
    drawn = {n: jax.lax.stop_gradient(s.value) for n, s in sample_sites(model_trace).items()}
    model_trace = with_values(model_trace, drawn)
    sites = sample_sites(model_trace)
    return model_trace, {n: s.value for n, s in sites.items() if s.infer.get("was_observed")}


def dream(rng_key: Array, pair: Pair, replace_data: ReplaceData) -> Float[Array, "*plates"]:
    """Log q of latents that the model draws, given the data that it makes of them, as weighed.

    Args:
        rng_key: Key of all draws.
        pair: The programs; the model's observed sites are drawn as well.
        replace_data: Maps (made data by site, args, kwargs) to the guide's (args, kwargs).
    """
    model_key, guide_key = jax.random.split(rng_key)
    with SharedRows(model_key):
        model_trace, made = _dreamt(model_key, pair)
    sites = sample_sites(model_trace)
    args, kwargs = replace_data(made, pair.args, pair.kwargs)
    replayed = InShape(replay(seeded(pair.guide, guide_key), trace=model_trace))
    with SharedRows(model_key), StepsChecked():
        dreamt = sample_sites(trace(replayed).get_trace(*args, **kwargs))
    latent = [site for name, site in dreamt.items() if name in sites]
    ledger = Ledger(pair.layout, latent)
    for site in latent:
        ledger.add("q", site, site.log_prob())
    return ledger.scale() * ledger.total("q")
