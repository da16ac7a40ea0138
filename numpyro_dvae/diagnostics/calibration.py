"""Is a guide calibrated? Simulation-based calibration, for discrete latents.

Latents and data are simulated from the model itself; the rank of the true latents among the
guide's draws must then be uniform. Ties, the rule with discrete latents, are broken at random, and
the joint density is ranked with the latents: it finds guides that ignore the data. What is tested
is the guide on data of this model, whether or not the model is right. It must be a function of the
data: one that keeps a posterior for each row, as a truncated guide does, knows nothing of simulated
rows. See `ops.calibration`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.arguments import TreePath, find_arguments, replaced
from numpyro_dvae.diagnostics.arrays import NamedArray, split_data
from numpyro_dvae.diagnostics.readings import (
    Pair,
    posterior_sites,
    prior_draws,
    score_states,
)
from numpyro_dvae.diagnostics.reports import Calibration
from numpyro_dvae.diagnostics.trained import as_trained
from numpyro_dvae.fit.data import Batch
from numpyro_dvae.fit.templates import split
from numpyro_dvae.ops.arguments import checked
from numpyro_dvae.ops.calibration import chi_square, random_ranks

__all__ = ["simulation_based_calibration"]

_ROUNDING = 1e-5  # log-densities nearer than this, as a part of themselves, are of one state


@checked
def simulation_based_calibration(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_simulations: int = 20,
    num_draws: int = 63,
    num_bins: int = 16,
    params: Mapping[str, Any] | None = None,
) -> Calibration:
    """Rank latents that made the data among the guide's draws, and test that ranks are uniform.

    Args:
        rng_key: Key of simulations and draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with. Arrays that the model observes are replaced by
            simulated ones; they give the shapes alone.
        num_simulations: Times that all data are simulated; each row of a data plate counts.
        num_draws: Draws of the guide for each, K.
        num_bins: Bins of the ranks 0 ... K, of one size: a divisor of K + 1.
        params: Parameters by name, in place of those of `result`.

    Returns:
        Ranks and p-values, latent by latent and of the joint density "log_p"; `print` it.

    Raises:
        ValueError: If an argument cannot be used, or a site observes none of `data` as it is.
    """
    _check_counts(num_simulations, num_draws, num_bins)
    trained = as_trained(result, params)
    args = trained.arguments(data)
    pair = trained.pair(rng_key, args)
    paths = find_arguments(args, _observed(rng_key, pair))
    arrays, template = split(Batch(args, {}))

    @jax.jit
    def run(keys: Array, params: Any, arrays: tuple[Array, ...]) -> dict[str, NamedArray]:
        model, guide = trained.substituted(params)
        now = pair._replace(model=model, guide=guide, args=template.join(arrays).args)
        return jax.lax.map(lambda key: _ranks(key, now, paths, num_draws), keys)

    keys = jax.random.split(rng_key, num_simulations)
    ranks = jax.device_get(run(keys, trained.params, arrays))
    return _summarize(ranks, pair.layout.plates, num_draws, num_bins)


def _observed(rng_key: Array, pair: Pair) -> dict[str, np.ndarray]:
    """What each site observes."""
    observed = jax.jit(lambda key: posterior_sites(key, pair, 1, ("observed",))[1]["observed"])
    return {name: np.asarray(array.values) for name, array in observed(rng_key).items()}


def _ranks(
    rng_key: Array, pair: Pair, paths: Mapping[str, TreePath], num_draws: int
) -> dict[str, NamedArray]:
    """Ranks of one simulation."""
    prior_key, draw_key, score_key, tie_key = jax.random.split(rng_key, 4)
    simulated, truth = prior_draws(prior_key, pair, 1)
    args = pair.args
    for name, path in paths.items():
        args = replaced(args, path, partial(_in_place_of, simulated["predictive"][name].values))
    pair = pair._replace(args=args)
    record, readings = posterior_sites(draw_key, pair, num_draws, ("latent",))
    log_p = score_states(score_key, pair, truth).log_p[0]
    ranks = {
        "log_p": NamedArray(pair.layout.plates, _rank(tie_key, log_p, record.log_p, _ROUNDING))
    }
    for i, (name, array) in enumerate(readings["latent"].items(), 1):
        key, truth_of_site = jax.random.fold_in(tie_key, i), simulated["latent"][name].values[0]
        ranks[name] = NamedArray(array.dims, _rank(key, truth_of_site, array.values, 0.0))
    return ranks


def _in_place_of(new: Array, old: Array) -> Array:
    return new.reshape(old.shape).astype(old.dtype)


def _rank(rng_key: Array, truth: Array, draws: Array, tolerance: float) -> Array:
    return random_ranks(truth, draws, jax.random.uniform(rng_key, truth.shape), tolerance)


def _summarize(
    ranks: Mapping[str, NamedArray], plates: tuple[str, ...], num_draws: int, num_bins: int
) -> Calibration:
    """Test the ranks of each latent for uniformity."""
    by_site: dict[str, np.ndarray] = {}
    for name, array in ranks.items():
        shared = tuple(plate for plate in plates if plate in array.dims)
        values = split_data(array, shared)
        by_site[name] = values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])
    report = Calibration(by_site, {}, num_draws, num_bins)
    counts = [report.counts(name).reshape(-1, num_bins) for name in by_site]
    p_values = np.asarray(jax.jit(chi_square)(np.concatenate(counts))[1])
    parts = np.split(p_values, np.cumsum([len(each) for each in counts])[:-1])
    for (name, values), part in zip(by_site.items(), parts, strict=True):
        report.p_values[name] = part.reshape(values.shape[1:])
    return report


def _check_counts(num_simulations: int, num_draws: int, num_bins: int) -> None:
    """Raise unless the ranks fill the bins evenly."""
    if num_simulations < 1:
        raise ValueError(f"`num_simulations` must be at least 1; got {num_simulations}.")
    if not 2 <= num_bins <= num_draws + 1 or (num_draws + 1) % num_bins:
        raise ValueError(
            f"`num_bins`, {num_bins}, must divide the number of ranks, `num_draws` + 1 = "
            f"{num_draws + 1}, into at least 2 bins."
        )
