"""What the discrete latents carry: which codes are used, which latents are active, at what rate.

References:
    [1] Burda, Grosse & Salakhutdinov. Importance weighted autoencoders. ICLR, 2016. (Active units.)
    [2] Hoffman & Johnson. ELBO surgery. NIPS workshop, 2016. (The rate, latent by latent.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from numpyro_dvae.diagnostics.collect import collect, usage_of_processes
from numpyro_dvae.diagnostics.reports import ActiveLatents, CodeUsage, LatentRates
from numpyro_dvae.diagnostics.usage import (
    OF_USAGE,
    latent_rates_of,
    plates_of_data,
    usage_of,
    variances_of,
)
from numpyro_dvae.ops.arguments import checked

__all__ = ["active_latents", "code_usage", "latent_rates"]

_FEWEST_DRAWS = 8  # whose spread tells their error: fewer may agree by chance


@checked
def code_usage(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 1,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> dict[str, CodeUsage]:
    """Count the codes that the guide draws over the data; in all processes, if there are several.

    Latents under a mask do not count.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with: an epoch's worth, to know of rare codes.
        num_draws: Draws per datum.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Of each discrete site, the counts of its codes, latent by latent: of values without a
        largest one, as a Poisson's, up to the largest that was drawn, and of tables that would
        have more than 16 million counts those codes that occur, by this process alone.
    """
    draws = collect(
        rng_key, result, data, num_draws, OF_USAGE, params=params, batch_size=batch_size
    )
    return usage_of_processes(usage_of(draws))


@checked
def active_latents(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 100,
    threshold: float = 0.01,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> dict[str, ActiveLatents]:
    """Variance over the data of each latent's mean under the guide [1]: 0 if it ignores them.

    Of a code the mean is that of its indicator, and half their sum over the codes is returned: the
    variance of the mean for a binary latent, at most 1/2 for any; of counts without end, as a
    Poisson's, and of continuous latents that of their mean is. The covariance between two
    halves of the draws estimates it without bias, where the variance of a mean of draws would add
    their own.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum, at least 2; of fewer than 8 no latent is called active, since
            draws that happen to agree would show no error.
        threshold: Variance above which a latent is called active.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Of each latent site under the data's plate, the variance of each latent, over the data of
        which no mask silences it, with its error; a latent is active that is so whatever the draws
        are, and undecided where more of them tell. What the data share is not among them.

    Raises:
        ValueError: If no plate of data has latents: there are none, or they cross.
    """
    if num_draws < 2:
        raise ValueError(f"`num_draws` must be at least 2, for two halves; got {num_draws}.")
    draws = collect(
        rng_key,
        result,
        data,
        num_draws,
        ("latent", *OF_USAGE),
        params=params,
        batch_size=batch_size,
    )
    plates = draws.plates
    if not plates:  # beside discrete latents that the data share
        one = collect(rng_key, result, data, 1, ("observed",), params=params, batch_size=batch_size)
        plates = plates_of_data(draws, one["observed"])
    found = variances_of(draws, plates)
    if not found and not plates and (sites := sorted({**draws["latent"], **draws["code"]})):
        raise ValueError(
            f"`active_latents` looks at how means vary over the data, but the latents {sites} are "
            "under no plate that makes a datum: there is none, or none that they, and what is "
            "observed, have in common. Put those of a datum under one plate, or use "
            "`discrete_posterior`, which takes each site by itself."
        )
    margin = 0.0 if num_draws >= _FEWEST_DRAWS else np.inf
    return {
        name: ActiveLatents(each, threshold, error + margin)
        for name, (each, error) in found.items()
    }


@checked
def latent_rates(
    rng_key: Array,
    result: Any,
    *data: Any,
    num_draws: int = 10,
    threshold: float = 0.01,
    params: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> dict[str, LatentRates]:
    """The rate of each latent: E[log q(z_l | z_<l, x) - log p(z_l | z_<l)], and which collapsed.

    The rates sum to KL(q(z | x) ‖ p(z)). Where both chain rules take the latents in one order, each
    is a KL. Where the guide draws a latent before others on which it may depend in the model, its
    rate is that of the draws, may be below 0 and tells no collapse, as the report says. For
    independent latents each is the KL of its own posterior from its prior. Near 0, the latent has
    collapsed to the prior and carries nothing [2]. Sites whose events have no such parts in guide
    and model alike count as one latent. Given the draws before it, a rate is a sum over the values
    of the latent, or in closed form, where there is one, and else of the draws, with their error.

    Args:
        rng_key: Key of the draws.
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum.
        threshold: Rate in nats below which a latent is called collapsed.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Of each latent site, the rate of each latent in nats, in the mean over data and draws. Data
        of which a mask silences it, and draws that lack it, have a rate of 0, and no say in
        whether it has collapsed. Of a continuous latent of which the guide has one point, the
        rate is infinite. Latents that the guide computes of one draw of its own, as automatic
        guides of a joint normal do, have one rate for all, named "a, b"; and so have latents that
        depend on the same sites that are summed out: of their joint density, by their draws.
    """
    draws = collect(
        rng_key,
        result,
        data,
        num_draws,
        ("rate", "reordered", "alone", "counted"),
        params=params,
        batch_size=batch_size,
    )
    weighed = set(draws.notes["weighed"])
    reordered = {name for name, site in draws["reordered"].items() if np.any(site.values == 1)}
    return {
        name: LatentRates(
            rate,
            threshold,
            error,
            share,
            not reordered.isdisjoint({name, *name.split(", ")}),
            not weighed.isdisjoint({name, *name.split(", ")}),
        )
        for name, (rate, error, share) in latent_rates_of(draws).items()
    }
