"""A trained model and guide as ArviZ data.

The result is saved by ``.to_netcdf(path)``, and read by `arviz.from_netcdf`.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from numpyro_dvae.diagnostics.collect import collect
from numpyro_dvae.diagnostics.discrete import summed_posteriors
from numpyro_dvae.diagnostics.groups import GROUPS, make_groups, readings_for
from numpyro_dvae.diagnostics.importance import NUM_SHARED, diagnose
from numpyro_dvae.diagnostics.names import labels_of
from numpyro_dvae.ops.arguments import checked

__all__ = ["to_arviz"]

_GIVEN_SHARED = 100  # draws of a datum's own latents at each of what the data share


@checked
def to_arviz(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 1000,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    groups: Collection[str] = GROUPS,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw from the guide at the trained parameters, as data for ArviZ.

    The groups, each left out if it is empty:

    - posterior: draws of the guide (chain 1), discrete ones as integers, dims named by the plates
      and "z_dim_0" within an event; the model's deterministic sites at these draws;
    - posterior_predictive, prior_predictive: observations simulated from them, from the prior; of
      a site that the model sums out the first takes a draw given the data and the other draws,
      as the deterministic sites do. All these are left out, with a warning, where these are steps
      of a `scan`;
    - prior: draws of the model alone;
    - log_likelihood: of each observation given its latents; and `marginal`, the evidence of each
      datum, from which its latents are summed out by their weights, given what the data share. For
      `arviz.loo(..., var_name="marginal")` and `arviz.compare`, which then rank models as their
      evidence does, where the data share no latent, and else by how well a datum is foretold from
      the others, the guide's draws of what is shared being taken for the posterior's: a warning
      says where their weights tell that they are not (see `shared_verdict`), and of how many data
      `marginal` is not the evidence, as the guide cannot draw all states, or none (see `verdict`);
      both warn of weights with a high k̂. There is none where the guide has one point of a
      continuous latent of a datum. Trained parameters are not integrated over: of the data that
      they were fitted to, both favour the larger model. Where a datum has latents, that of an
      observation has a high k̂ in itself: without the datum, they are another's. What a mask
      silences is not among them: the dim is then "x_seen", whose labels are the places
      of what is left: numbers, or labels, of the rows of a plate, and else places row by row;
    - sample_stats: of each draw and datum, `lp` (log p), `log_q`, and `log_weight`, their
      difference; of what the data share, the same (`lp_shared`), and of all, where they share
      sites or have a scale, `log_weight_whole`, whose mean is minus the loss;
    - observed_data: what the model observes, NaN where a mask silences it, as `x_seen` says here
      and beside the posterior predictive draws (`arviz.plot_ppc` wants what is seen alone: see
      "ArviZ" in docs/diagnostics.md); constant_data: the other arrays of the arguments, also those
      within dicts, and all that hold the very numbers that are observed, if they are more than the
      sites; no dim of theirs is taken for a plate, unless `dims` names it;
    - vi_stats: the loss over the steps and the rows of the log; of each datum, ELBO and
      importance-weighted bound, effective sample size, k̂, largest weight and verdict of the
      draws, and of what they share, in the attribute "given", and the whole (`shared_verdict`,
      `whole_elbo`, of which each datum's `elbo` has its part; `given_elbo` is without), see
      `importance_diagnostics`; of each discrete latent, the share of each code in all data
      (`z_code_share`), and by place its probabilities and most likely value (`z_probs`,
      `z_most_likely`, but of tables of more than 2^26 entries), also of those that are summed out;
      where a mask silences some places, which are as the guide draws them, `z_counted` says which
      it does not.

    A "/" in a name, as of NumPyro's `scope`, is a "." in ArviZ: files would take it for a folder.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum, of guide and prior.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate. What is returned
            grows with the data all the same; `groups` limits it.
        groups: Which of `GROUPS` to make.
        coords: Labels along dims, by the dim: ``{"data": names, "pixel": range(64)}``.
        dims: Names of the event dims of sites, in place of "z_dim_0", and of those of constant
            data: ``{"x": ["pixel"], "age": ["data"]}``.

    Returns:
        An `arviz.InferenceData`, of ArviZ 1 an `xarray.DataTree`.

    Raises:
        ValueError: If an argument cannot be used, if model and guide do not match, or if names of
            sites and plates clash with each other, or with ArviZ's, in a group.
    """
    labels = labels_of(groups, coords, dims)
    wanted = readings_for(groups)
    priors = wanted & {"prior", "prior_predictive"}
    keys = jax.random.split(rng_key)
    draws = collect(
        keys[0],
        result,
        data,
        num_draws,
        wanted - priors,
        params=params,
        batch_size=batch_size,
        prior=bool(priors),
    )
    most = num_draws if "log_likelihood" in groups else NUM_SHARED  # it has an evidence of each
    report, evidences = diagnose(keys[1], draws, result, data, most, _GIVEN_SHARED, params)
    told = set(groups) - (set() if evidences is not None else {"log_likelihood"})
    of_data = report.warning if "log_likelihood" in told else ""
    of_shared = report.shared.warning_in(told) if report.shared else ""
    for said in filter(None, (of_data, of_shared)):
        warnings.warn(said, stacklevel=3)
    summed = {}
    if draws.summed_sites and "vi_stats" in groups:
        options = {"params": params, "batch_size": batch_size}
        key = jax.random.fold_in(rng_key, 2)
        summed = summed_posteriors(key, result, data, num_draws, **options)
    return make_groups(draws, report, evidences, result, data, labels, summed)
