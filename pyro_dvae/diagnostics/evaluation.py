"""All that a table of results has of a trained model and guide, in one call."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_dvae.diagnostics.arguments import check_evaluation
from pyro_dvae.diagnostics.collect import collect, usage_of_processes
from pyro_dvae.diagnostics.importance import NUM_SHARED, diagnose
from pyro_dvae.diagnostics.reports import Evaluation
from pyro_dvae.diagnostics.summaries import evaluation_of
from pyro_dvae.diagnostics.usage import OF_USAGE, usage_of
from pyro_dvae.ops.arguments import checked

__all__ = ["evaluate"]


@checked
def evaluate(
    result: Any,
    *data: Any,
    num_particles: int = 100,
    beta: float = 1.0,
    data_range: float | None = None,
    params: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluate a trained model and guide on data: bounds, rate, distortion, PSNR, codes in use.

    What no datum owns, a global latent for instance, is split evenly among the data, so that means
    times what the data count are what the loss sums, if all count alike, and has rows of its own as
    well; the effective sample size of a datum is then given its draws, see
    `importance_diagnostics`. PSNR and codes in use are
    those of one draw for each datum; observations that a mask silences do not count in the PSNR.

    Args:
        result: What `fit` returned, or a pair (model, guide). A guide that keeps a posterior for
            each row, as a truncated one does, must be one of these data (`guide.for_data`).
        *data: What model and guide are called with.
        num_particles: K, draws per datum, of the importance-weighted bound and of all means.
        beta: Weight of the rate in the beta-ELBO.
        data_range: Span of the data's values, to which the PSNR refers. By default 1 for data in
            [0, 1], and else their largest value less the smallest.
        params: Parameters by name, in place of those of `result`.
        batch_size: Rows of the data that go through the programs at once, for data of many rows;
            all by default. Latents must be those of a row, under one plate.

    Returns:
        Means over the data, and what they are means of in `per_datum`; `print` it for a table.

    Raises:
        ValueError: If an argument cannot be used, or model and guide do not match.
    """
    check_evaluation(num_particles, data_range)
    all_draws = collect(result, data, num_particles, (), params=params, batch_size=batch_size)
    wanted = (*OF_USAGE, "mean", "observed", "seen")
    one_draw = collect(result, data, 1, wanted, params=params, batch_size=batch_size)
    report, _ = diagnose(all_draws, result, data, NUM_SHARED, num_particles, params)
    return evaluation_of(
        all_draws,
        one_draw,
        report,
        usage_of_processes(usage_of(one_draw)),
        beta=beta,
        data_range=data_range,
    )
