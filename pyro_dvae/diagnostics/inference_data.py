"""A trained model and guide as ArviZ data.

The result is saved by ``.to_netcdf(path)``, and read by `arviz.from_netcdf`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from pyro_dvae.diagnostics.collect import collect
from pyro_dvae.diagnostics.groups import GROUPS, make_groups, readings_for
from pyro_dvae.diagnostics.importance import diagnose
from pyro_dvae.ops.arguments import checked

__all__ = ["to_arviz"]

_GIVEN_SHARED = 100  # draws of a datum's own latents at each of what the data share


@checked
def to_arviz(
    result: Any,
    *data: Any,
    num_draws: int = 1000,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    groups: Collection[str] = GROUPS,
) -> Any:
    """Draw from the guide at the trained parameters, as data for ArviZ.

    The groups, each left out if it is empty:

    - posterior: draws of the guide (chain 1), discrete ones as integers, dims named by the plates
      and "z_dim_0" within an event; the model's deterministic sites at these draws;
    - posterior_predictive, prior_predictive: observations simulated from them, from the prior;
    - prior: draws of the model alone;
    - log_likelihood: of each observation given its latents, for `arviz.loo`, whose k̂ is high where
      a datum has latents of its own: without the datum, they are another's;
    - sample_stats: of each draw and datum, `lp` (log p), `log_q`, and `log_weight`, their
      difference;
    - observed_data: what the model observes; constant_data: the other arrays of `data`;
    - vi_stats: the loss over the steps and the rows of the log; of each datum, ELBO and
      importance-weighted bound, effective sample size, k̂, largest weight and verdict of the
      draws; of each discrete latent, the share of each code in all data (`z_code_share`), and by
      place its probabilities and most likely value (`z_probs`, `z_most_likely`).

    Args:
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum, of guide and prior.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate. What is returned
            grows with the data all the same; `groups` limits it.
        groups: Which of `GROUPS` to make.

    Returns:
        An `arviz.InferenceData`, of ArviZ 1 an `xarray.DataTree`.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    wanted = readings_for(groups)
    priors = wanted & {"prior", "prior_predictive"}
    draws = collect(
        result,
        data,
        num_draws,
        wanted - priors,
        params=params,
        batch_size=batch_size,
        prior=bool(priors),
    )
    report, evidences = diagnose(draws, result, data, num_draws, _GIVEN_SHARED, params)
    return make_groups(draws, report, evidences, result, data, groups)
