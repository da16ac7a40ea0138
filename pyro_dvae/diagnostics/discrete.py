"""What the discrete latents are, given the data: probabilities, most likely values, draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_dvae.diagnostics.collect import collect
from pyro_dvae.diagnostics.importance import NUM_SHARED, diagnose
from pyro_dvae.diagnostics.posteriors import (
    DiscretePosterior,
    SitePosterior,
    are_summed,
    check_posterior,
    choose_sites,
    is_affordable,
    most_draws,
    of_summed,
    posterior_of,
)
from pyro_dvae.ops.arguments import checked

__all__ = ["discrete_posterior", "summed_posteriors"]


@checked
def discrete_posterior(
    result: Any,
    *data: Any,
    sites: Sequence[str] | None = None,
    num_draws: int = 1000,
    corrected: bool = False,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> DiscretePosterior:
    """The posterior of each discrete latent, by any guide.

    Args:
        result: What `fit` returned, or a pair (model, guide); relaxed ones, too.
        *data: What model and guide are called with.
        sites: Names of discrete sites; all by default. Of one that is summed out
            (`infer={"enumerate": "parallel"}`) the probabilities are those given each draw of the
            others, in the mean over these, weighted or not.
        num_draws: K, draws per datum; at least 25.
        corrected: Whether to weigh the draws by p / q, so that the probabilities are those of the
            posterior itself as K grows, on the states that the guide can draw. `report` says what
            the weights are worth. By default they are the guide's. Where the data share latents,
            weights are those of 100 draws of these, at each of which K of the others are made.
            Latents under a mask, on which nothing else depends, stay as the guide draws them; their
            places are those where `counted` of a site is False, and no part of the table's means.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate.

    Returns:
        Probabilities, most likely values, entropies and draws by site, and what the weights of
        the draws say of the guide; `print` it for a table.

    Raises:
        ValueError: If an argument cannot be used, if a site is missing or continuous, if model and
            guide do not match, or if draws that are to be weighted are relaxed.
    """
    check_posterior(num_draws)
    options: dict[str, Any] = {"params": params, "batch_size": batch_size}
    few = collect(result, data, 1, ("latent", "conditional", "summed"), **options)
    names, wanted = choose_sites(few, sites), {"latent", "outside", "counted"}
    if is_affordable(few, num_draws) and not corrected:
        wanted.add("conditional")
    if are_summed(few, names, num_draws):
        wanted.add("summed")
    draws = collect(result, data, num_draws, wanted, **options)
    report, _ = diagnose(draws, result, data, NUM_SHARED, num_draws, params)
    return posterior_of(draws, few, names, report, corrected=corrected)


def summed_posteriors(
    result: Any, data: tuple, num_draws: int, **options: Any
) -> dict[str, SitePosterior]:
    """The posterior of each site that the model sums out, in the mean over draws of the others.

    Of as many draws as can be kept; of very large tables there is none.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        data: What model and guide are called with.
        num_draws: Draws of the others.
        **options: `params` and `batch_size`, as of `discrete_posterior`.
    """
    few = collect(result, data, 1, ("summed",), **options)
    if not (count := min(num_draws, most_draws(few))):
        return {}
    draws = collect(result, data, count, ("summed", "counted"), **options)
    return {name: of_summed(name, draws, None) for name in draws["summed"]}
