"""Is a guide calibrated? Simulation-based calibration, for discrete latents.

Latents and data are simulated from the model itself; the rank of the true latents among the
guide's draws must then be uniform. Ties, the rule with discrete latents, are broken at random, and
the joint density is ranked with the latents: it finds guides that ignore the data. What is tested
is the guide on data of this model, whether or not the model is right. It must be a function of the
data: one that keeps a posterior for each row, as a truncated guide does, knows nothing of simulated
rows. See `ops.calibration`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_dvae.diagnostics.arguments import (
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
from pyro_dvae.diagnostics.arrays import NamedArray
from pyro_dvae.diagnostics.auxiliary import check_not_summed, check_simulates
from pyro_dvae.diagnostics.labels import Readings
from pyro_dvae.diagnostics.readings import (
    Pair,
    posterior_sites,
    prepare_pair,
    score_states,
)
from pyro_dvae.diagnostics.simulations import prior_draws
from pyro_dvae.diagnostics.trained import as_trained
from pyro_dvae.diagnostics.trees import replaced
from pyro_dvae.diagnostics.uniformity import (
    Calibration,
    Simulated,
    Tally,
    check_bins,
    choose_simulations,
    on_simulated_data,
    settled,
    shared_latents,
)
from pyro_dvae.diagnostics.waiting import waited
from pyro_dvae.ops.arguments import checked

__all__ = ["simulation_based_calibration"]

_ATTEMPTS = 5  # simulations of data that may be equal to those at hand by chance


@checked
def simulation_based_calibration(
    result: Any,
    *args: Any,
    data: DataNames = None,
    num_simulations: int | None = None,
    num_draws: int = 63,
    num_bins: int = 16,
    params: Mapping[str, Tensor] | None = None,
) -> Calibration:
    """Rank latents that made the data among the guide's draws, and test that ranks are uniform.

    Where the data share latents, their ranks depend on each other: those of what is shared count
    once a simulation, and those of each datum are compared with what the draws, each in the part
    of the truth, say of the others. Entries that are masked, NaN or outside of a subsample stay as
    they are.

    Args:
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
    with trained.at_parameters():
        pair = prepare_pair(trained.model, trained.guide, called, {})
        check_not_summed(pair.layout.summed)
        record, seen = posterior_sites(pair, 1, ("observed", "seen", "subsample"))
        check_simulates(record.extras["weighed"], seen["seen"], seen["observed"])
        latents = shared_latents(trained.guide, pair.notes.shared, seen)
        places = _find_places(pair, seen, data)
        count = choose_simulations(num_simulations, record.log_p[0].numel(), latents)
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        tally = Tally(pair.layout.plates, latents, count, num_draws, num_bins, rng)
        for _ in waited(range(count), "simulations"):
            with on_simulated_data():
                matches, simulated = _simulated(pair, places, seen, num_draws)
            for site, matching in matches.items():
                if not matching:
                    refuse_places(site, places)
            tally.add(simulated)
    return tally.report()


def _find_places(pair: Pair, seen: Readings, data: DataNames) -> dict[str, list[Place]]:
    """Arguments that each site observes, and others that the user says are the same."""
    leaves = named_leaves(pair.model, pair.args)
    found: dict[str, list[Place]] = {}
    sites = list(seen["observed"])
    for site, observed in seen["observed"].items():
        wanted = names_for(site, data, sites)
        if wanted is None and bool(_kept(seen, site).all()):
            found[site] = []  # nothing of it is data
            continue
        places = find_places(site, _host(observed), leaves, _hosts(seen["subsample"]), wanted)
        faults: list[str] = []
        observing = [place for place in places if _observes(pair, seen, site, place, faults)]
        found[site] = check_places(site, places, observing, leaves, wanted, sites, faults)
    observed_too = {place.path for several in found.values() for place in several}
    for site in [n for n in sites if found[n] and names_for(n, data, sites) is None]:
        others = [t for t in twins(found[site][0], leaves) if t.path not in observed_too]
        for twin in others:
            if _is_read_by_guide(pair, seen, site, twin):
                refuse_twin(site, found[site][0], twin, sites)
    return found


def _observes(pair: Pair, seen: Readings, site: str, place: Place, faults: list[str]) -> bool:
    """Whether a site observes what is put in the place of an argument; errors go to `faults`."""
    before = seen["observed"][site].values
    for _ in range(_ATTEMPTS):
        simulated = prior_draws(pair, 1)[0]["predictive"]
        args = _filled(pair.args, {site: [place]}, simulated, seen)
        try:
            readings = posterior_sites(pair._replace(args=args), 1, ("observed",))[1]
        except (IndexError, RuntimeError, ValueError) as error:
            faults.append(str(error).partition("\n")[0])
            return False  # it is no place for such values
        if not _is_as_simulated(site, readings, simulated, seen):
            return False
        if not torch.equal(readings["observed"][site].values, before):
            return True
    return True


def _is_read_by_guide(pair: Pair, seen: Readings, site: str, place: Place) -> bool:
    """Whether the guide depends on what is in an argument."""
    simulated, values = prior_draws(pair, 1)
    args = _filled(pair.args, {site: [place]}, simulated["predictive"], seen)
    one, other = (score_states(each, values) for each in (pair, pair._replace(args=args)))
    return not (torch.equal(one.log_q, other.log_q) and torch.equal(one.shared_q, other.shared_q))


def _simulated(
    pair: Pair, places: Mapping[str, Sequence[Place]], seen: Readings, num_draws: int
) -> tuple[dict[str, bool], Simulated]:
    """One simulation: which sites observe it, the truth, and draws of the guide given its data."""
    state = pyro.util.get_rng_state()

    def draw(args: tuple) -> tuple[Readings, dict[str, Tensor]]:
        pyro.util.set_rng_state(state)
        return prior_draws(pair._replace(args=args), 1)

    simulated, truth, args = settled(
        draw,
        lambda made: _filled(pair.args, places, made["predictive"], seen),
        partial(_changes, places, seen),
        pair.args,
    )
    pair = pair._replace(args=args)
    wanted = ("latent", "counted", "observed")
    record, readings = posterior_sites(pair, num_draws, wanted)
    matches = {
        site: _is_as_simulated(site, readings, simulated["predictive"], seen) for site in places
    }
    true = score_states(pair, truth)
    latents = {
        name: NamedArray(array.dims, _stacked(simulated["latent"][name].values, array.values))
        for name, array in readings["latent"].items()
    }
    counted = {
        name: NamedArray(array.dims, array.values[:1].cpu().numpy())
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
    kept = [_kept(seen, site).expand(two[0].shape) for site, two in zip(sites, pairs, strict=True)]
    apart = [_differ(*two) & ~keep for two, keep in zip(pairs, kept, strict=True)]
    return sum(int(each.sum()) for each in apart), sum(int((~keep).sum()) for keep in kept)


def _differ(one: Tensor, other: Tensor) -> Tensor:
    return (one != other) & ((one == one) | (other == other))  # two NaNs are the same


def _is_as_simulated(
    site: str, readings: Readings, simulated: Mapping[str, NamedArray], seen: Readings
) -> bool:
    """Whether a site observes what was simulated, to the digits of the argument that holds it."""
    found, made = readings["observed"][site].values, simulated[site].values[0]
    kept = _kept(seen, site).expand(made.shape)
    return torch.allclose(found.double()[~kept], made.double()[~kept], rtol=1e-6, atol=1e-30)


def _kept(seen: Readings, site: str) -> Tensor:
    """Entries that are no data: masked, or NaN."""
    observed = seen["observed"][site].values
    return ~seen["seen"][site].values[0] | torch.isnan(observed)


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


def _with_data(new: Tensor, kept: Tensor, axis: int | None, rows: Tensor | None, leaf: Any) -> Any:
    """An argument with new data, in some rows or in all, where the old are not kept."""
    if isinstance(leaf, np.ndarray):  # within a dict of the user's
        return _with_data(new, kept, axis, rows, torch.from_numpy(leaf.copy())).numpy()
    new, kept = new.to(leaf), kept.to(leaf.device)
    rows = rows if rows is None else rows.to(leaf.device)
    old = leaf if axis is None or rows is None else leaf.index_select(axis, rows)
    merged = torch.where(kept, old.reshape(new.shape), new)
    if axis is None or rows is None:
        return merged.reshape(leaf.shape)
    return leaf.index_copy(axis, rows, merged.reshape(old.shape))


def _stacked(truth: Tensor, draws: Tensor) -> np.ndarray:
    return torch.cat([truth, draws]).cpu().numpy()


def _hosts(arrays: Mapping[str, NamedArray]) -> dict[str, NamedArray]:
    return {name: _host(array) for name, array in arrays.items()}


def _host(array: NamedArray) -> NamedArray:
    return NamedArray(array.dims, array.values.cpu().numpy())
