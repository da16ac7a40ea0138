"""Scales of some sites alone, and factors of the guide: reports say what their bounds are of."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

X = np.array([1.7, -0.4, 0.9, 2.2, -1.3])
SCALED = "A scale of its own weighs the density of 'z': ELBO, bounds, evidences and verdicts are of"
FACTOR = "The guide has factors, 'f', which count with log q: ELBO and weighted bounds are bounds"


def case_of(shim, model=1.0, guide=1.0, all_sites=1.0):
    def of(weight, observes):
        def program(ppl, data):
            with ppl.scale(scale=all_sites), ppl.plate("data", len(X)):
                with ppl.scale(scale=weight):
                    logits = -0.4 + 0.0 * data["x"] if observes else 8.0 * data["x"] - 8.0
                    z = ppl.sample("z", ppl.dist.Bernoulli(logits=logits))
                if observes:
                    ppl.sample("x", ppl.dist.Normal(2.0 * z, 0.4), obs=data["x"])

        return program

    return shim.Case(program_of(of(model, True), of(guide, False), {}, {"x": X}))


def evidence(weight=1.0):
    z = np.arange(2)[:, None]
    log_p = weight * bernoulli(z, -0.4) + normal(X, 2.0 * z, np.log(0.4))
    return np.logaddexp.reduce(log_p, axis=0)


@pytest.mark.thrifty
@pytest.mark.parametrize(("model", "guide"), [(0.1, 0.1), (1.0, 0.1), (0.1, 1.0)])
def test_a_scale_of_one_site_is_told(shim, model, guide):
    """As where the rate is weighed in training: the ELBO passes the evidence by nats."""
    case = case_of(shim, model, guide)
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(gap.log_evidence, evidence(model), rtol=1e-6)
    if model < 1:
        assert gap.whole_elbo > evidence().sum() + 2  # the fault
    report = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert not report.is_bound.any()
    assert "the guide misses" not in str(report)
    others = [diagnose(shim, "evaluate", case, num_particles=30)]
    others += [diagnose(shim, "rate_distortion", case)]
    for found in (gap, report, *others):
        assert found.weighed == ("z",)
        assert found.factors == ()
        assert SCALED in str(found)
    stats = diagnose(shim, "to_arviz", case, num_draws=30)["vi_stats"]
    assert stats.attrs["weighed"] == "z"


@pytest.mark.thrifty
@pytest.mark.parametrize("all_sites", [1.0, 0.2])
def test_a_weight_of_each_datum_is_no_other_density(shim, all_sites):
    case = case_of(shim, all_sites=all_sites)
    report = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(gap.whole_log_evidence, all_sites * evidence().sum(), rtol=1e-6)
    assert report.weighed == gap.weighed == ()
    assert report.is_bound.all()
    assert "scale of its own" not in str(report) + str(gap)


def test_a_factor_of_the_guide_is_told():
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.diagnostics import importance_diagnostics, posterior_gap

    x = torch.tensor(X)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Bernoulli(logits=-0.4 + 0.0 * x))
            pyro.sample("x", pyro.distributions.Normal(2.0 * z, 0.4), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Bernoulli(logits=8.0 * x - 8.0))
            pyro.factor("f", -2.0 + 0.0 * x, has_rsample=True)

    for diagnose_pair in (importance_diagnostics, posterior_gap):
        found = diagnose_pair((model, guide), x)
        assert found.factors == ("f",)
        assert FACTOR in str(found)
        assert "masked" not in str(found)


@pytest.mark.slow
def test_a_factor_of_the_guide_is_told_in_numpyro():
    numpyro, jnp = pytest.importorskip("numpyro"), pytest.importorskip("jax.numpy")
    import jax

    from numpyro_dvae.diagnostics import importance_diagnostics, posterior_gap

    x = jnp.asarray(X)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", numpyro.distributions.Bernoulli(logits=-0.4 + 0.0 * x))
            numpyro.sample("x", numpyro.distributions.Normal(2.0 * z, 0.4), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", numpyro.distributions.Bernoulli(logits=8.0 * x - 8.0))
            numpyro.factor("f", -2.0 + 0.0 * x)

    for diagnose_pair in (importance_diagnostics, posterior_gap):
        found = diagnose_pair(jax.random.key(0), (model, guide), x)
        assert found.factors == ("f",)
        assert FACTOR in str(found)
        assert "masked" not in str(found)
