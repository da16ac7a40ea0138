"""Ranks and their test, and calibration of guides that are exact, shifted, and blind."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats
from test_diagnostics import program_of

values = st.integers(-3, 3).map(float)


@functools.cache
def operation(backend, name):
    return backend.jit(getattr(backend.module("ops.calibration"), name))


def test_by_hand(backend):
    """Two draws below and none tied; one below, two tied; all tied."""
    draws = np.array([[1.0, 2, 2], [1, 2, 2], [3, 1, 2], [4, 5, 2]])
    arrays = map(backend.asarray, (np.full(3, 2.0), draws, np.array([0.99, 0.5, 0.9])))
    ranks = np.asarray(operation(backend, "random_ranks")(*arrays))
    np.testing.assert_array_equal(ranks, [2, 1 + 1, 0 + 4])
    counts = np.array([[10, 20, 30], [7, 7, 7]])
    statistic, p_value = operation(backend, "chi_square")(backend.asarray(counts))
    np.testing.assert_allclose(np.asarray(statistic), [10.0, 0.0])  # (100 + 0 + 100) / 20
    np.testing.assert_allclose(np.asarray(p_value), [np.exp(-5.0), 1.0], rtol=1e-5)


@given(
    truth=npst.arrays(np.float64, 3, elements=values),
    draws=npst.arrays(np.float64, (5, 3), elements=values),
    uniforms=npst.arrays(np.float64, 3, elements=st.sampled_from([0.0, 0.3, 0.7, 0.999])),
)
def test_rank_is_below_and_a_share_of_the_ties(backend, truth, draws, uniforms):
    arrays = map(backend.asarray, (truth, draws, uniforms))
    found = np.asarray(operation(backend, "random_ranks")(*arrays))
    below, tied = (draws < truth).sum(0), (draws == truth).sum(0)
    np.testing.assert_array_equal(found, below + np.floor(uniforms * (tied + 1)))


def test_rounding_is_a_tie(backend):
    truth, draws = np.array([-500.0]), np.array([[-500.00001], [-501.0], [-499.0]])
    random_ranks = backend.module("ops.calibration").random_ranks
    ranks = [
        random_ranks(*map(backend.asarray, (truth, draws, np.array([u]))), 1e-5) for u in (0.0, 0.6)
    ]
    assert [int(rank[0]) for rank in ranks] == [1, 2]


def test_chi_square_is_that_of_scipy(backend):
    counts = np.random.default_rng(0).integers(5, 20, size=(4, 8))
    found = operation(backend, "chi_square")(backend.asarray(counts))
    expected = stats.chisquare(counts, axis=-1)
    np.testing.assert_allclose(found[0], expected.statistic, rtol=1e-6)
    np.testing.assert_allclose(found[1], expected.pvalue, rtol=1e-5)


# A model whose exact posterior is known: two coins, and a reading of each with noise


PRIOR, ROWS = np.array([0.4, -0.8]), 30
GUIDES = {  # strength and shift of the log odds
    "exact": (1.0, 0.0),
    "shifted": (1.0, 1.0),
    "blind": (0.0, 0.0),  # the prior: right on average, whatever the data
}
DATA = {"x": np.zeros((ROWS * len(GUIDES), 2))}
PARAMS = {
    "prior": PRIOR,
    "strength": np.repeat([guide[0] for guide in GUIDES.values()], ROWS)[:, None],
    "shift": np.repeat([guide[1] for guide in GUIDES.values()], ROWS)[:, None],
}


def model(ppl, data):
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("prior", data)).to_event(1))
        ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.5).to_event(1), obs=data["x"])


def guide(ppl, data):
    """The prior's log odds and those of a Gaussian reading, or more, or without."""
    strength, shift = ppl.param("strength", data), ppl.param("shift", data)
    logits = ppl.param("prior", data) + strength * (data["x"] - 1.0) * 2.0 / 1.5**2 + shift
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Bernoulli(logits=logits).to_event(1))


@functools.cache
def calibration(shim):
    case = shim.Case(program_of(model, guide, PARAMS, DATA))
    simulate = shim.module("diagnostics").simulation_based_calibration
    return shim.diagnose(simulate, case, num_simulations=40, num_draws=31, num_bins=8)


def p_values(shim, name, guide):
    """Of the rows with one of the guides."""
    ranks = calibration(shim).ranks[name].reshape(40, len(GUIDES), ROWS, -1)
    bins = ranks[:, list(GUIDES).index(guide)].reshape(40 * ROWS, -1) // 4
    return stats.chisquare([(bins == i).sum(0) for i in range(8)]).pvalue


SIGNIFICANT = 1e-4


def test_an_exact_posterior_is_calibrated(shim):
    assert p_values(shim, "z", "exact").min() > SIGNIFICANT
    assert p_values(shim, "log_p", "exact").min() > SIGNIFICANT


def test_a_shifted_posterior_is_not(shim):
    assert (p_values(shim, "z", "shifted") < SIGNIFICANT).all()


def test_a_guide_that_ignores_the_data_is_found_by_the_density_alone(shim):
    assert p_values(shim, "z", "blind").min() > SIGNIFICANT
    assert p_values(shim, "log_p", "blind").min() < SIGNIFICANT


def test_the_report(shim):
    found = calibration(shim)
    assert found.ranks["z"].shape == (40 * 90, 2)
    assert found.ranks["log_p"].shape == (40 * 90,)
    assert (found.ranks["z"].min(), found.ranks["z"].max()) == (0, 31)
    assert found.counts("z").shape == (2, 8)
    np.testing.assert_allclose(
        found.p_values["z"], stats.chisquare(found.counts("z"), axis=-1).pvalue, rtol=1e-3
    )
    assert "3600 simulated data, ranks among 31 draws: NOT calibrated: " in str(found)
    even = found._replace(p_values={"z": np.array([0.3, 0.02])})
    assert even.miscalibrated == []
    assert "calibrated, as far as they can tell (smallest p-value 0.02)" in str(even)


def test_data_that_no_argument_holds_cannot_be_simulated(shim):
    def hidden(ppl, data):
        with ppl.plate("data", len(data["x"])):
            ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("prior", data)).to_event(1))
            ppl.sample("x", ppl.dist.Normal(0.0, 1.0).to_event(0), obs=data["x"][..., 0] + 1.0)

    case = shim.Case(program_of(hidden, guide, PARAMS, DATA))
    simulate = shim.module("diagnostics").simulation_based_calibration
    with pytest.raises(ValueError, match="site 'x' observes none of the arguments"):
        shim.diagnose(simulate, case)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 60, "num_bins": 16}, r"`num_bins`, 16, must divide .*61"),
        ({"num_simulations": 0}, "`num_simulations` must be at least 1; got 0"),
    ],
)
def test_arguments_are_checked(shim, options, message):
    case = shim.Case(program_of(model, guide, PARAMS, DATA))
    simulate = shim.module("diagnostics").simulation_based_calibration
    with pytest.raises(ValueError, match=message):
        shim.diagnose(simulate, case, **options)
