"""Rate and distortion of the data, and the gap to the exact posterior where it can be listed.

References:
    [1] Alemi, Poole, Fischer, Dillon, Saurous & Murphy. Fixing a broken ELBO. ICML, 2018.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_dvae.diagnostics.arguments import check_data_range
from pyro_dvae.diagnostics.collect import collect, collect_states
from pyro_dvae.diagnostics.reports import PosteriorGap, RateDistortion
from pyro_dvae.diagnostics.summaries import gap_of, rate_distortion_of
from pyro_dvae.diagnostics.usage import MOST_LISTED
from pyro_dvae.ops.arguments import checked

__all__ = ["posterior_gap", "rate_distortion"]


@checked
def rate_distortion(
    result: Any,
    *data: Any,
    num_draws: int = 1,
    data_range: float | None = None,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> RateDistortion:
    """What the latents cost and what they leave out: rate in bits, distortion, MSE, PSNR [1].

    A reconstruction is the mean of p(x | z) at a draw of the guide. Observations that a mask
    silences do not count in its error.

    Args:
        result: What `fit` returned, or a pair (model, guide).
        *data: What model and guide are called with.
        num_draws: Draws per datum.
        data_range: Span of the data's values, to which the PSNR refers. By default, as in
            `evaluate`, 1 for data in [0, 1], and else their largest value less the smallest.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Rate, distortion, MSE and PSNR of each datum, in the mean over the draws, with its part of
        what the data share; rate and distortion of that, and of all together, as the loss sums
        them.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    check_data_range(data_range)
    wanted = ("mean", "observed", "seen")
    draws = collect(result, data, num_draws, wanted, params=params, batch_size=batch_size)
    return rate_distortion_of(draws, data_range)


@checked
def posterior_gap(
    result: Any,
    *data: Any,
    max_states: int = MOST_LISTED,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> PosteriorGap:
    """The exact evidence, ELBO and gap ``KL(q(z | x) ‖ p(z | x))`` of each datum, by enumeration.

    For a truncated guide, q is the posterior restricted to a set, and the gap is minus the log of
    the posterior mass of that set, `support_mass`.

    Args:
        result: What `fit` returned, or a pair (model, guide), without continuous latents.
        *data: What model and guide are called with.
        max_states: Largest number of joint states of a datum that is accepted; 65536 by default.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once; all by default.

    Returns:
        Log evidence, ELBO, gap and mass of the guide's support of each datum.

    Raises:
        ValueError: If there are too many states, continuous latents, or sites of the guide alone.
    """
    return gap_of(collect_states(result, data, max_states, params=params, batch_size=batch_size))
