"""Calibration of guides that are exact, shifted, and blind, where each datum is on its own."""

import functools

import numpy as np
import pytest
from scipy import stats
from test_diagnostics import program_of

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
    assert found.shared == ()
    assert found.ranks["z"].shape == (40 * 90, 2)
    assert found.ranks["log_p"].shape == (40 * 90,)
    assert (found.ranks["z"].min(), found.ranks["z"].max()) == (0, 31)
    assert found.counts("z").shape == (2, 8)
    np.testing.assert_allclose(
        found.p_values["z"], stats.chisquare(found.counts("z"), axis=-1).pvalue, rtol=1e-3
    )
    assert "40 simulations of 90 data, ranks among 31 draws: NOT calibrated: " in str(found)
    even = found._replace(p_values={"z": np.array([0.3, 0.02])})
    assert even.miscalibrated == []
    assert "calibrated, as far as they can tell (smallest of 2 p-values 0.02;" in str(even)


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


# A likelihood that is made of the data before


def series(ppl, data):
    with ppl.plate("data", 40):
        z = ppl.sample("z", ppl.dist.Bernoulli(probs=data["half"]))
        mean = z[..., None] + data["x"] @ data["before"]
        ppl.sample("x", ppl.dist.Normal(mean, 1.0).to_event(1), obs=data["x"])
        ppl.sample("y", ppl.dist.Normal(z - 2.0 * data["x"][..., 0], 1.0), obs=data["y"])


def its_posterior(ppl, data):
    x = data["x"]
    logits = (x - x @ data["before"] - 0.5).sum(-1) + data["y"] + 2.0 * x[..., 0] - 0.5
    with ppl.plate("data", 40):
        ppl.sample("z", ppl.dist.Bernoulli(logits=data["knows"] * logits))


def judged(shim, before, knows=1.0):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(40, 3)), "y": rng.normal(size=40), "half": np.full(40, 0.5)}
    data |= {"before": before, "knows": np.array(knows)}
    case = shim.Case(program_of(series, its_posterior, {}, data))
    simulate = shim.module("diagnostics").simulation_based_calibration
    return shim.diagnose(simulate, case, num_simulations=20, num_draws=15, num_bins=8)


@pytest.mark.thrifty
def test_data_that_are_made_of_each_other_are_simulated_one_after_the_other(shim):
    before = np.triu(np.full((3, 3), 1.5), 1)  # each value has those before it in its mean
    assert min(values.min() for values in judged(shim, before).p_values.values()) > 0.001
    assert judged(shim, before, 0.5).miscalibrated
    assert judged(shim, before, 0.0).miscalibrated == ["log_p"]
    with pytest.raises(ValueError, match="values depend on each other or on themselves"):
        judged(shim, np.full((3, 3), 0.1))
