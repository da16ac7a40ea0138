"""Near-even weights are settled, and near-tied densities have ranks that are uniform."""

import numpy as np
import pytest
from scipy import stats


@pytest.mark.parametrize(
    ("khat", "largest", "share", "found"),
    [
        (1.3, 0.006, 0.97, False),  # the tail is heavy, and nothing is in it
        (1.3, 0.006, 0.85, True),
        (0.5, 0.006, 0.85, False),
        (np.nan, 0.3, 0.95, True),  # one draw has the weight
    ],
)
def test_a_heavy_tail_counts_where_weight_is_in_it(thrifty_shim, khat, largest, share, found):
    errors = thrifty_shim.module("diagnostics.errors")
    arrays = np.array([largest]), np.array([share])
    assert errors.is_unsettled(np.array([khat]), 0.67, *arrays) == [found]


def test_ranks_of_near_ties_are_those_of_any_of_them(thrifty_shim):
    """Exchangeable log-densities about -40 000, of which many are nearer than rounding to some."""
    rng, count, num_draws = np.random.default_rng(0), 20_000, 99
    values = rng.normal(-4e4, 1.0, (1 + num_draws, count))
    uniformity = thrifty_shim.module("diagnostics.uniformity")
    tally = uniformity.Tally(("data",), (), 1, num_draws, 20, rng)
    tally.add(uniformity.Simulated({}, {}, values, np.zeros(1 + num_draws)))
    apart = thrifty_shim.module("ops.calibration").random_ranks
    ranks = {
        "as any of them": tally.report().ranks["log_p"],
        "as the truth": apart(values[0], values[1:], rng.random(count), 1e-5),
    }
    p_values = {name: stats.chisquare(np.bincount(r // 5)).pvalue for name, r in ranks.items()}
    assert p_values["as any of them"] > 1e-3
    assert p_values["as the truth"] < 1e-3
