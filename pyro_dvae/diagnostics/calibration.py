"""Is a guide calibrated? Simulation-based calibration, for discrete latents.

Latents and data are simulated from the model itself; the rank of the true latents among the
guide's draws must then be uniform. Ties, the rule with discrete latents, are broken at random, and
the joint density is ranked with the latents: it finds guides that ignore the data. What is tested
is the guide on data of this model, whether or not the model is right. It must be a function of the
data: one that keeps a posterior for each row, as a truncated guide does, knows nothing of simulated
rows. See `ops.calibration`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dvae.diagnostics.arguments import TreePath, find_arguments, replaced
from pyro_dvae.diagnostics.arrays import NamedArray, split_data
from pyro_dvae.diagnostics.readings import (
    Pair,
    posterior_sites,
    prepare_pair,
    prior_draws,
    score_states,
)
from pyro_dvae.diagnostics.reports import Calibration
from pyro_dvae.diagnostics.trained import as_trained
from pyro_dvae.ops.arguments import checked
from pyro_dvae.ops.calibration import chi_square, random_ranks

__all__ = ["simulation_based_calibration"]

_ROUNDING = 1e-5  # log-densities nearer than this, as a part of themselves, are of one state


@checked
def simulation_based_calibration(
    result: Any,
    *data: Any,
    num_simulations: int = 20,
    num_draws: int = 63,
    num_bins: int = 16,
    params: Mapping[str, Tensor] | None = None,
) -> Calibration:
    """Rank latents that made the data among the guide's draws, and test that ranks are uniform.

    Args:
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
    with trained.at_parameters():
        pair = prepare_pair(trained.model, trained.guide, args, {})
        paths = find_arguments(args, _observed(pair))
        ranks = [_ranks(pair, paths, num_draws) for _ in range(num_simulations)]
    stacked = {
        name: replace(array, values=np.stack([each[name].values for each in ranks]))
        for name, array in ranks[0].items()
    }
    return _summarize(stacked, pair.layout.plates, num_draws, num_bins)


def _observed(pair: Pair) -> dict[str, np.ndarray]:
    """What each site observes."""
    sites = posterior_sites(pair, 1, ("observed",))[1]["observed"]
    return {name: array.values.cpu().numpy() for name, array in sites.items()}


def _ranks(pair: Pair, paths: Mapping[str, TreePath], num_draws: int) -> dict[str, NamedArray]:
    """Ranks of one simulation."""
    simulated, truth = prior_draws(pair, 1)
    args = pair.args
    for name, path in paths.items():
        args = replaced(args, path, partial(_in_place_of, simulated["predictive"][name].values))
    pair = pair._replace(args=args)
    record, readings = posterior_sites(pair, num_draws, ("latent",))
    log_p = score_states(pair, truth).log_p[0]
    ranks = {"log_p": NamedArray(pair.layout.plates, _rank(log_p, record.log_p, _ROUNDING))}
    for name, array in readings["latent"].items():
        truth_of_site = simulated["latent"][name].values[0]
        ranks[name] = NamedArray(array.dims, _rank(truth_of_site, array.values, 0.0))
    return ranks


def _in_place_of(new: Tensor, old: Tensor) -> Tensor:
    return new.reshape(old.shape).to(old.dtype)


def _rank(truth: Tensor, draws: Tensor, tolerance: float) -> np.ndarray:
    uniforms = torch.rand(truth.shape, device=truth.device)
    return random_ranks(truth, draws, uniforms, tolerance).cpu().numpy()


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
    p_values = chi_square(torch.from_numpy(np.concatenate(counts)))[1].numpy()
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
