"""Is a guide calibrated? Simulation-based calibration, for discrete latents.

Latents and data are simulated from the model itself; the rank of the true latents among the
guide's draws must then be uniform. Ties, the rule with discrete latents, are broken at random, and
the joint density is ranked with the latents: it finds guides that ignore the data. What is tested
is the guide on data of this model, whether or not the model is right. It must be a function of the
data: one that keeps a posterior for each row, as a truncated guide does, knows nothing of simulated
rows. See `ops.calibration`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.arguments import (
    DataNames,
    Place,
    check_places,
    find_places,
    named_leaves,
    names_for,
    refuse_places,
    refuse_twin,
    twins,
)
from numpyro_dvae.diagnostics.arrays import NamedArray
from numpyro_dvae.diagnostics.auxiliary import check_not_summed, check_simulates
from numpyro_dvae.diagnostics.labels import Readings
from numpyro_dvae.diagnostics.readings import (
    Pair,
    posterior_sites,
    score_states,
)
from numpyro_dvae.diagnostics.simulations import prior_draws
from numpyro_dvae.diagnostics.trained import Trained, as_trained
from numpyro_dvae.diagnostics.trees import replaced
from numpyro_dvae.diagnostics.uniformity import (
    Calibration,
    Simulated,
    Tally,
    check_bins,
    choose_simulations,
    on_simulated_data,
    settled,
    shared_latents,
)
from numpyro_dvae.diagnostics.waiting import waited
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.templates import split
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.programs.plans import explained
from numpyro_dvae.programs.record import Particles

__all__ = ["simulation_based_calibration"]

_ATTEMPTS = 5  # simulations of data that may be equal to those at hand by chance


class _Programs(NamedTuple):
    """A pair at its parameters, called with arrays that may be traced."""

    trained: Trained
    pair: Pair

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of (key, pair, ...), as one of (key, args, ...) that is compiled once."""
        _, template = split(Batch(self.pair.args, {}))

        @jax.jit
        def run(key: Array, params: Any, arrays: tuple[Array, ...], *rest: Any) -> Any:
            model, guide = self.trained.substituted(params)
            args = template.join(arrays).args
            return function(key, self.pair._replace(model=model, guide=guide, args=args), *rest)

        def call(key: Array, args: tuple, *rest: Any) -> Any:
            return run(key, self.trained.params, split(Batch(args, {}))[0], *rest)

        return call


@checked
@explained()
def simulation_based_calibration(
    rng_key: Array,
    result: Any,
    *args: Any,
    data: DataNames = None,
    num_simulations: int | None = None,
    num_draws: int = 63,
    num_bins: int = 16,
    params: Mapping[str, Any] | None = None,
) -> Calibration:
    """Rank latents that made the data among the guide's draws, and test that ranks are uniform.

    Where the data share latents, their ranks depend on each other: those of what is shared count
    once a simulation, and those of each datum are compared with what the draws, each in the part
    of the truth, say of the others. Entries that are masked, NaN or outside of a subsample stay as
    they are.

    Args:
        rng_key: Key of simulations and draws.
        result: What `fit` returned, or a pair (model, guide).
        *args: What model and guide are called with. Arrays that the model observes are replaced by
            simulated ones: those of which a site observes whatever is put in their place.
        data: Names of the arguments that hold the data, as ``"targets"`` or ``"batch['x']"``, for
            each site if they are a mapping; several names are of arguments that all hold the same
            data, as an encoder's input and a decoder's target. Found by trying if None.
        num_simulations: Times that all data are simulated. By default as many as make 2000 ranks,
            at least 5; 100 where the data share latents.
        num_draws: Draws of the guide for each, K.
        num_bins: The most bins of the ranks 0 ... K, of one size: a divisor of K + 1. Fewer are
            used for few ranks.
        params: Parameters by name, in place of those of `result`.

    Returns:
        Ranks and p-values, latent by latent and of the joint density "log_p"; `print` it.

    Raises:
        ValueError: If an argument cannot be used, if a site observes none of them as it is, or if
            it is not clear which; if the model sums sites out, or has a factor or a scale.
    """
    check_bins(num_simulations, num_draws, num_bins)
    trained = as_trained(result, params)
    called = trained.arguments(args)
    pair = trained.pair(rng_key, called)
    check_not_summed(pair.layout.summed)
    programs = _Programs(trained, pair)
    look = programs.compiled(_look)
    _, seen, record = look(rng_key, called)
    check_simulates(record.extras["weighed"], seen["seen"], seen["observed"])
    latents = shared_latents(trained.guide, pair.notes.shared, seen)
    places = _find_places(rng_key, programs, look, seen, data)
    count = choose_simulations(num_simulations, record.log_p[0].size, latents)
    rng = np.random.default_rng(np.asarray(jax.random.bits(rng_key, (4,), "uint32")))
    tally = Tally(pair.layout.plates, latents, count, num_draws, num_bins, rng)
    simulate = programs.compiled(partial(prior_draws, num_draws=1))
    rank = programs.compiled(
        partial(_ranked, score_key=rng_key, places=tuple(places), num_draws=num_draws)
    )
    for key in waited(jax.random.split(rng_key, count), "simulations", count):
        with on_simulated_data():
            matches, simulated = _simulated(key, simulate, rank, called, places, seen)
        for site, matching in matches.items():
            if not matching:
                refuse_places(site, places)
        tally.add(simulated)
    return tally.report()


def _look(rng_key: Array, pair: Pair) -> tuple[dict[str, NamedArray], Readings, Particles]:
    """Simulated observations, and a run with the arguments at hand."""
    prior_key, draw_key = jax.random.split(rng_key)
    simulated = prior_draws(prior_key, pair, 1)[0]["predictive"]
    record, seen = posterior_sites(draw_key, pair, 1, ("observed", "seen", "subsample"))
    return simulated, seen, record


def _find_places(
    rng_key: Array, programs: _Programs, look: Callable[..., Any], seen: Readings, data: DataNames
) -> dict[str, list[Place]]:
    """Arguments that each site observes, and others that the user says are the same."""
    leaves = named_leaves(programs.trained.model, programs.pair.args)
    found: dict[str, list[Place]] = {}
    sites = list(seen["observed"])
    for site, observed in seen["observed"].items():
        wanted = names_for(site, data, sites)
        if wanted is None and bool(_kept(seen, site).all()):
            found[site] = []  # nothing of it is data
            continue
        places = find_places(site, _host(observed), leaves, _hosts(seen["subsample"]), wanted)
        observing = [
            place
            for place in places
            if _observes(rng_key, look, programs.pair.args, seen, site, place)
        ]
        found[site] = check_places(site, places, observing, leaves, wanted, sites)
    observed_too = {place.path for several in found.values() for place in several}
    for site in [n for n in sites if found[n] and names_for(n, data, sites) is None]:
        for twin in twins(found[site][0], leaves):
            if twin.path not in observed_too and _is_read_by_guide(
                rng_key, programs, look, seen, site, twin
            ):
                refuse_twin(site, found[site][0], twin, sites)
    return found


def _observes(
    rng_key: Array, look: Callable[..., Any], args: tuple, seen: Readings, site: str, place: Place
) -> bool:
    """Whether a site observes what is put in the place of an argument."""
    before = seen["observed"][site].values
    for key in jax.random.split(rng_key, _ATTEMPTS):
        simulated = look(key, args)[0]
        readings = look(key, _filled(args, {site: [place]}, simulated, seen))[1]
        if not bool(_is_as_simulated(site, readings, simulated, seen)):
            return False
        if not np.array_equal(readings["observed"][site].values, before):
            return True
    return True


def _is_read_by_guide(
    rng_key: Array,
    programs: _Programs,
    look: Callable[..., Any],
    seen: Readings,
    site: str,
    place: Place,
) -> bool:
    """Whether the guide depends on what is in an argument."""

    def log_q(key: Array, pair: Pair) -> tuple[Array, Array]:
        values = prior_draws(key, pair, 1)[1]
        record = score_states(rng_key, pair, values)
        return record.log_q, record.shared_q

    args, score = programs.pair.args, programs.compiled(log_q)
    other = _filled(args, {site: [place]}, look(rng_key, args)[0], seen)
    pairs = zip(score(rng_key, args), score(rng_key, other), strict=True)
    return not all(np.array_equal(one, two) for one, two in pairs)


def _simulated(
    rng_key: Array,
    simulate: Callable[..., Any],
    rank: Callable[..., Any],
    called: tuple,
    places: Mapping[str, Sequence[Place]],
    seen: Readings,
) -> tuple[dict[str, np.ndarray], Simulated]:
    """One simulation: which sites observe it, and what `_ranked` makes of it."""
    prior_key, draw_key = jax.random.split(rng_key)
    made, truth, filled = settled(
        partial(simulate, prior_key),
        lambda made: _filled(called, places, made["predictive"], seen),
        partial(_changes, places, seen),
        called,
    )
    return jax.device_get(rank(draw_key, filled, made, truth, seen))


def _ranked(
    rng_key: Array,
    pair: Pair,
    simulated: Readings,
    truth: Mapping[str, Array],
    seen: Readings,
    *,
    score_key: Array,
    places: Sequence[str],
    num_draws: int,
) -> tuple[dict[str, Array], Simulated]:
    """The truth, and draws of the guide given the data that it made."""
    wanted = ("latent", "counted", "observed")
    record, readings = posterior_sites(rng_key, pair, num_draws, wanted)
    matches = {
        site: _is_as_simulated(site, readings, simulated["predictive"], seen) for site in places
    }
    true = score_states(score_key, pair, truth)  # at the rows of all other runs
    latents = {
        name: NamedArray(array.dims, _stacked(simulated["latent"][name].values, array.values))
        for name, array in readings["latent"].items()
    }
    counted = {
        name: NamedArray(array.dims, array.values[:1])
        for name, array in readings["counted"].items()
    }
    shared = [each.shared_likelihood + each.shared_prior for each in (true, record)]
    log_p = _stacked(true.log_p, record.log_p)
    return matches, Simulated(latents, counted, log_p, _stacked(*shared))


def _changes(
    places: Mapping[str, Sequence[Place]], seen: Readings, one: Readings, other: Readings
) -> tuple[int, int]:
    """How many values that have a place differ between two simulations, and how many there are."""
    sites = [site for site, several in places.items() if several]
    pairs = [[each["predictive"][site].values for each in (one, other)] for site in sites]
    kept = [_kept(seen, site) for site in sites]
    apart = [_differ(*two) & ~keep for two, keep in zip(pairs, kept, strict=True)]
    sizes = [jnp.broadcast_to(~keep, two[0].shape) for two, keep in zip(pairs, kept, strict=True)]
    return sum(int(each.sum()) for each in apart), sum(int(each.sum()) for each in sizes)


def _differ(one: Array, other: Array) -> Array:
    return (one != other) & ((one == one) | (other == other))  # two NaNs are the same


def _is_as_simulated(
    site: str, readings: Readings, simulated: Mapping[str, NamedArray], seen: Readings
) -> Array:
    """Whether a site observes what was simulated, to the digits of the argument that holds it."""
    found, made = readings["observed"][site].values, simulated[site].values[0]
    found = jnp.where(_kept(seen, site), made, found)
    return jnp.allclose(found, made, rtol=1e-6, atol=1e-30)


def _kept(seen: Readings, site: str) -> Array:
    """Entries that are no data: masked, or NaN."""
    observed = seen["observed"][site].values
    return ~seen["seen"][site].values[0] | jnp.isnan(observed)


def _filled(
    args: tuple,
    places: Mapping[str, Sequence[Place]],
    simulated: Mapping[str, NamedArray],
    seen: Readings,
) -> tuple:
    """Arguments with simulated data in their places."""
    for site, several in places.items():
        for place in several:
            rows = seen["subsample"][place.plate].values if place.plate else None
            change = partial(
                _with_data, simulated[site].values[0], _kept(seen, site), place.axis, rows
            )
            args = replaced(args, place.path, change)
    return args


def _with_data(new: Array, kept: Array, axis: int | None, rows: Array | None, leaf: Array) -> Array:
    """An argument with new data, in some rows or in all, where the old are not kept."""
    old = leaf if axis is None or rows is None else jnp.take(leaf, rows, axis)
    merged = jnp.where(kept, old.reshape(new.shape), new.astype(leaf.dtype)).astype(leaf.dtype)
    if axis is None or rows is None:
        return merged.reshape(leaf.shape)
    index = (*[slice(None)] * axis, rows)
    return leaf.at[index].set(merged.reshape(old.shape))


def _stacked(truth: Array, draws: Array) -> Array:
    return jnp.concatenate([truth, draws])


def _hosts(arrays: Mapping[str, NamedArray]) -> dict[str, NamedArray]:
    return {name: _host(array) for name, array in arrays.items()}


def _host(array: NamedArray) -> NamedArray:
    return NamedArray(array.dims, np.asarray(array.values))
