"""What the model gives a probability of 0 is impossible in reports, though densities clamp it."""

import warnings

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import normal

X = np.array([0.0, 1.0, 1.0])
HEADS = np.array([0.3, 0.3, 0.0])  # of x where z is 1: the last datum cannot be
HALF, EXACT = np.full(3, 0.5), np.array([0.35 / 0.85, 1.0, 0.5])


def coins(family):
    def program(ppl, data):
        with ppl.plate("data", 3):
            z = ppl.sample("z", ppl.dist.Bernoulli(probs=data["half"]))
            heads = z * data["heads"]
            if family == "Bernoulli":
                fn = ppl.dist.Bernoulli(probs=heads)
            elif family == "Binomial":
                fn = ppl.dist.Binomial(1, heads)
            else:
                sides = data["side"]
                fn = ppl.dist.Categorical(probs=sides[0] + heads[..., None] * sides[1])
            x = data["code"] if family == "Categorical" else data["x"]
            ppl.sample("x", fn, obs=x)

    return program


def guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Bernoulli(probs=data["q"]))


def case_of(shim, model, q):
    data = {"half": HALF, "heads": HEADS, "x": X, "code": X.astype(int), "q": q}
    data["side"] = np.array([[1.0, 0.0], [-1.0, 1.0]])
    return shim.Case(program_of(model, guide, {}, data))


CLAMPED = "The model gives '{}' a probability of 0, so that the ELBO is minus infinity; losses"


@pytest.mark.thrifty
@pytest.mark.parametrize("family", ["Bernoulli", "Binomial", "Categorical"])
def test_an_impossible_datum_has_no_evidence(shim, family):
    case = case_of(shim, coins(family), EXACT)
    evidence = [np.log(0.85), np.log(0.15), -np.inf]
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(gap.log_evidence, evidence, rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, evidence, rtol=1e-6)
    assert "the model allows no state of 1 of 3 data" in str(gap)
    report = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    np.testing.assert_allclose(report.iwae, evidence, rtol=1e-6)
    assert list(report.verdicts) == ["close", "one state", "broken"]  # not restricted
    if family != "Categorical":  # NumPyro's density of that is as good as minus infinity
        assert CLAMPED.format("x") in str(report)
    costs = diagnose(shim, "rate_distortion", case, num_draws=3)
    assert list(np.isinf(costs.distortion)) == [False, False, True]


def switches(ppl, data):
    """A latent that the model has surely, off and on, in two data."""
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Bernoulli(probs=data["q"]))
        ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])


def even_guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Bernoulli(probs=data["half"]))


@pytest.mark.thrifty
def test_a_guide_of_what_the_model_never_has_is_infinitely_off(shim):
    sure = np.array([0.0, 1.0, 0.5])
    data = {"half": HALF, "x": X, "q": sure}
    case = shim.Case(program_of(switches, even_guide, {}, data))
    gap = diagnose(shim, "posterior_gap", case)
    densities = normal(X, np.arange(2)[:, None])
    evidence = np.log(np.exp(densities[0]) * (1 - sure) + np.exp(densities[1]) * sure)
    np.testing.assert_allclose(gap.log_evidence, evidence, rtol=1e-10)
    last = evidence[2] - densities[:, 2].mean()
    np.testing.assert_allclose(gap.gap, [np.inf, np.inf, last], rtol=1e-6)
    np.testing.assert_allclose(gap.support_mass, 1.0)
    assert CLAMPED.format("z") in str(gap)
    report = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert list(np.isneginf(report.elbo)) == [True, True, False]
    assert list(report.verdicts) == ["off", "off", "close"]
    costs = diagnose(shim, "rate_distortion", case, num_draws=40)
    assert list(np.isinf(costs.rate)) == [True, True, False]
    assert "by one draw each" not in str(costs)
    assert np.isinf(diagnose(shim, "latent_rates", case)["z"].rate)
    loss, _ = case.run(shim.module("infer").Exact_ELBO())
    assert np.isfinite(loss)  # as the framework's own


def test_what_never_comes_says_nothing_where_the_guide_never_draws_it(thrifty_shim):
    sure = np.array([0.0, 1.0, 0.5])
    data = {"half": sure, "x": X, "q": sure}
    case = thrifty_shim.Case(program_of(switches, even_guide, {}, data))
    gap = diagnose(thrifty_shim, "posterior_gap", case)
    assert gap.clamped == ()
    assert np.isfinite(gap.gap).all()
    report = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=50)
    assert report.clamped == ()
    assert np.isfinite(report.elbo).all()


def summed_coins(ppl, data):
    """A coin that shows no head where the marked latent is 0, and one of the latent's own odds."""
    with ppl.plate("data", 4):
        b = ppl.sample("b", ppl.dist.Bernoulli(probs=data["half"]))
        z = ppl.sample("z", ppl.dist.Bernoulli(probs=data["q"]), infer={"enumerate": "parallel"})
        ppl.sample("x", ppl.dist.Bernoulli(probs=z * data["heads"]), obs=data["x"])
        ppl.sample("y", ppl.dist.Normal(40.0 * (1 - z) + b, 1.0), obs=data["y"])


def its_guide(ppl, data):
    with ppl.plate("data", 4):
        ppl.sample("b", ppl.dist.Bernoulli(probs=data["half"]))


def test_what_never_comes_is_impossible_in_a_sum_over_marked_sites(thrifty_shim):
    """The third datum cannot be, nor the fourth, whose latent is surely 0; y favours z = 0."""
    shim, heads, q = thrifty_shim, np.array([0.3, 0.3, 0.0, 0.3]), np.array([0.5, 0.5, 0.5, 0.0])
    data = {"half": np.full(4, 0.5), "heads": heads, "q": q, "y": np.full(4, 40.0)}
    data["x"] = np.array([0.0, 1.0, 1.0, 1.0])
    case = shim.Case(program_of(summed_coins, its_guide, {}, data))
    b = np.arange(2)[:, None]
    with np.errstate(divide="ignore"):
        seen = [
            np.log(1 - data["x"]) + 0 * b,
            np.log(np.where(data["x"], heads, 1 - heads)) + 0 * b,
        ]
        terms = [
            np.log(odds) + of_x + normal(data["y"], 40.0 * (1 - z) + b)
            for z, odds, of_x in zip((0, 1), (1 - q, q), seen, strict=True)
        ]
    joint = np.log(0.5) + np.logaddexp(*terms)
    evidence = np.logaddexp(*joint)
    assert np.isfinite(evidence[:2]).all()
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(gap.log_evidence, evidence, rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, joint.mean(0) + np.log(2), rtol=1e-6)
    assert set(gap.clamped) == {"z", "x"}
    assert "a probability of 0, so that the ELBO is minus infinity; losses" in str(gap)
    report = diagnose(shim, "importance_diagnostics", case, num_particles=200)
    np.testing.assert_allclose(report.iwae, evidence, atol=0.3)
    assert list(report.verdicts[2:]) == ["broken", "broken"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of two data without a weight
        idata = diagnose(shim, "to_arviz", case, num_draws=30, groups=("log_likelihood",))
    seen = idata["log_likelihood"]
    found = seen[next(name for name in seen if name != "marginal")].values[0]
    assert np.isneginf(found[:, 2:]).all()
    assert np.isfinite(found[:, :2]).all()
    loss, _ = case.run(shim.module("infer").Exact_ELBO())
    assert np.isfinite(loss)  # as the framework's own
