"""Guides that have one point of a latent: no verdict, and bounds on the density with the point."""

import numpy as np
import pytest
from quiet import group_names
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

X = np.array([1.3, 0.2, 2.4, -0.5])
AT, SPREAD = 0.7, 0.05  # so narrow that the density at the point is above the evidence


def under(ppl, data):
    return ppl.plate("data", len(X))


def shared_model(ppl, data):
    mu = ppl.sample("mu", ppl.dist.Normal(0.0 * data["at"], 1.0))
    with under(ppl, data):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(mu + 2.0 * z, 1.0), obs=data["x"])


def shared_guide(ppl, data):
    mu = ppl.sample("mu", ppl.dist.Delta(data["at"]))
    with under(ppl, data):
        ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 2.0 * (data["x"] - mu - 1.0)))


def local_model(ppl, data):
    with under(ppl, data):
        c = ppl.sample("c", ppl.dist.Normal(0.0 * data["x"], 1.0))
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(c + 2.0 * z, SPREAD), obs=data["x"])


def local_guide(ppl, data):
    with under(ppl, data):
        ppl.sample("c", ppl.dist.Delta(data["x"]))
        ppl.sample("z", ppl.dist.Bernoulli(logits=-4.0 + 0.0 * data["x"]))


def certain_model(ppl, data):
    with under(ppl, data):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])


def certain_guide(ppl, data):
    with under(ppl, data):
        ppl.sample("z", ppl.dist.Delta(1.0 * (data["x"] > 1.0)))


def moving_guide(ppl, data):
    """As an automatic guide writes what it draws, beside a point."""
    noise = ppl.sample("noise", ppl.dist.Normal(data["at"], 0.5), infer={"is_auxiliary": True})
    ppl.sample("mu", ppl.dist.Delta(noise))
    with under(ppl, data):
        ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 2.0 * (data["x"] - AT - 1.0)))


def case_of(shim, model, guide):
    return shim.Case(program_of(model, guide, {}, {"x": X, "at": np.array(AT)}))


def sum_out(loc, spread=1.0):
    """Log p(x) of each datum with the code summed out."""
    codes = np.arange(2)[:, None]
    log_p = bernoulli(codes, -0.4) + normal(X, loc + 2.0 * codes, np.log(spread))
    return np.logaddexp.reduce(log_p, axis=0)


SENTENCE = (
    "The guide has one point of '{}': ELBO and bounds are on log p of the data and that point"
)


@pytest.mark.thrifty
def test_a_point_of_what_the_data_share(shim):
    case = case_of(shim, shared_model, shared_guide)
    found = diagnose(shim, "importance_diagnostics", case, num_particles=100, num_shared=25)
    assert found.points == found.shared.points == ("mu",)
    assert found.shared.verdict == "point"
    assert (found.verdicts == "close").all()  # the codes, given the point
    density = sum_out(AT).sum() + normal(AT, 0.0)
    np.testing.assert_allclose(found.whole.iwae, density, rtol=1e-6)  # the codes are exact
    text = str(found)
    assert "'mu', has one point in the guide" in text
    assert text.count("close to the posterior") == 1
    assert SENTENCE.format("mu") in text
    table = diagnose(shim, "evaluate", case, num_particles=30)
    assert SENTENCE.format("mu") in str(table)
    cost = diagnose(shim, "rate_distortion", case)
    assert SENTENCE.format("mu") in str(cost)
    np.testing.assert_allclose(-np.log(2) * cost.shared.rate, normal(AT, 0.0), rtol=1e-6)
    rates = diagnose(shim, "latent_rates", case)
    assert np.isinf(rates["mu"].rate).all()
    assert not (rates["mu"].collapsed | rates["mu"].undecided).any()
    assert np.isfinite(rates["z"].rate).all()
    with pytest.warns(UserWarning, match="as if they were .* no verdict, the guide having a point"):
        stats = diagnose(shim, "to_arviz", case, num_draws=30)["vi_stats"]
    assert stats["shared_verdict"] == "point"
    assert stats.attrs["points"] == "mu"


@pytest.mark.thrifty
def test_a_point_of_each_datum_has_a_density_above_the_evidence(shim):
    case = case_of(shim, local_model, local_guide)
    found = diagnose(shim, "importance_diagnostics", case, num_particles=100)
    assert (found.verdicts == "point").all()
    evidence = sum_out(0.0, np.hypot(1.0, SPREAD))
    assert (found.iwae > evidence + 0.5).any()  # it is none of the evidence's bounds
    assert "4 no verdict, the guide having a point and no distribution" in str(found)
    assert SENTENCE.format("c") in str(found)
    idata = diagnose(shim, "to_arviz", case, num_draws=30)
    assert "log_likelihood" in group_names(idata)
    assert "marginal" not in idata["log_likelihood"]


@pytest.mark.thrifty
def test_a_point_of_a_code_is_a_guide_of_one_state(shim):
    case = case_of(shim, certain_model, certain_guide)
    found = diagnose(shim, "importance_diagnostics", case, num_particles=100)
    assert found.points == ()
    assert (found.verdicts == "restricted").all()
    codes = 1.0 * (X > 1.0)
    expected = bernoulli(codes, -0.4) + normal(X, 2.0 * codes)
    np.testing.assert_allclose(found.elbo, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="continuous, or a Delta's"):
        diagnose(shim, "posterior_gap", case)


@pytest.mark.thrifty
@pytest.mark.parametrize("num_draws", [1, 30])
def test_what_moves_with_another_draw_is_no_point(shim, num_draws):
    case = case_of(shim, shared_model, moving_guide)
    cost = diagnose(shim, "rate_distortion", case, num_draws=num_draws)
    assert cost.points == ()
    assert "point" not in str(cost)
