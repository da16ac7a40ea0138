"""Latents of more values than any array has: what draws alone tell is told, tables are refused."""

import math

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import normal

V = 2**30
CODES = np.array([[5, 2**29], [V - 1, 5], [5, V - 2]])
X = np.array([0.5, -1.0, 0.0])
LOG_LIKELIHOOD = normal(X, np.array([1.0, 0.0, 1.0]))


@pytest.fixture
def case(shim):
    distributions = shim.module("distributions")

    def model(ppl, data):
        with ppl.plate("data", 3):
            prior = distributions.UniformCategorical(V, data["like"])
            z = ppl.sample("z", prior.to_event(1))
            ppl.sample("x", ppl.dist.Normal(1.0 * (z[..., 0] == 5), 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 3):
            known = distributions.CertainCategorical(V, data["codes"])
            ppl.sample("z", known.to_event(1))

    data = {"codes": CODES, "x": X, "like": np.zeros(CODES.shape)}
    return shim.Case(program_of(model, guide, {}, data))


def test_usage_counts_the_codes_that_occur(shim, case):
    usage = diagnose(shim, "code_usage", case, num_draws=2)["z"]
    np.testing.assert_array_equal(usage.codes, [5, 2**29, V - 2, V - 1])
    np.testing.assert_array_equal(usage.counts, [[4, 0, 0, 2], [2, 2, 2, 0]])
    np.testing.assert_allclose(usage.share_used, [2 / V, 3 / V])
    np.testing.assert_allclose(usage.table_share_used, 4 / V)
    shares = np.array([6, 2, 2, 2]) / 12
    np.testing.assert_allclose(usage.table_perplexity, np.exp(-(shares * np.log(shares)).sum()))
    assert "2.3e-07% of 1073741824 codes occur in the mean of 2 latents" in str(usage)


def test_bounds_and_rates_need_no_table(shim, case):
    rates = diagnose(shim, "latent_rates", case)["z"]
    np.testing.assert_allclose(rates.rate, math.log(V), rtol=1e-6)
    report = diagnose(shim, "importance_diagnostics", case, num_particles=30)
    np.testing.assert_allclose(report.elbo, LOG_LIKELIHOOD - 2 * math.log(V), rtol=1e-6)
    assert report.restricted.all()
    found = diagnose(shim, "evaluate", case, num_particles=30)
    np.testing.assert_allclose(found.elbo, report.elbo.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.usage, 2.5 / V)
    active = diagnose(shim, "active_latents", case, num_draws=4)["z"]
    of_codes = np.array([[2 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]], dtype=object)
    expected = [sum(p * (1 - p) for p in shares) * 3 / 2 / 2 for shares in of_codes]
    np.testing.assert_allclose(active.variance, expected, rtol=1e-6)


def test_arviz_has_the_codes_that_occur(shim, case):
    stats = diagnose(
        shim, "to_arviz", case, num_draws=30, groups=["posterior", "vi_stats"]
    ).vi_stats
    np.testing.assert_array_equal(stats["z_code"], [5, 2**29, V - 2, V - 1])
    np.testing.assert_array_equal(stats["z_most_likely"], CODES)
    np.testing.assert_allclose(stats["z_probs"].sum("z_code"), 1.0)


def test_a_guide_of_uniform_codes_has_its_entropy(shim, case):
    def guide(ppl, data):
        with ppl.plate("data", 3):
            codes = shim.module("distributions").UniformCategorical(V, data["like"])
            ppl.sample("z", codes.to_event(1))

    even = shim.Case(case.program._replace(guide=guide))
    elbo = shim.module("infer").Reinforce_ELBO(num_particles=4)
    expected = -normal(X, np.zeros(3)).sum()  # of codes that are not 5
    np.testing.assert_allclose(even.run(elbo)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("posterior_gap", r"1073741824 codes, of which at most 33554432 are listed"),
        ("discrete_posterior", r"'z' has 1073741824 values .* read its draws from `to_arviz`"),
    ],
)
def test_tables_of_all_values_are_refused(shim, case, name, message):
    with pytest.raises(ValueError, match=message):
        diagnose(shim, name, case)
