"""A factor of the guide's beside the data counts in its ELBO, and in no evidence."""

import importlib

import numpy as np
import pytest

X, PROB, FACTOR = np.array([0.5, -1.0]), 0.4, -2.0


def by_hand():
    """The log evidence of each datum, by its states."""
    states = np.array([0.0, 1.0])
    log_prior = np.log([1 - PROB, PROB])
    terms = log_prior - 0.5 * (X[:, None] - 2.0 * states) ** 2 - 0.5 * np.log(2 * np.pi)
    return np.logaddexp.reduce(terms, 1)


def posterior():
    """The probability of 1 given each datum, as logits."""
    return np.log(PROB / (1 - PROB)) - 0.5 * (X - 2.0) ** 2 + 0.5 * X**2


@pytest.fixture(params=["pyro", "numpyro"])
def gap(request):
    host = pytest.importorskip(request.param)
    diagnostics = pytest.importorskip(f"{request.param}_dvae.diagnostics")
    is_pyro = request.param == "pyro"
    array = importlib.import_module("torch").tensor if is_pyro else np.asarray
    dist = importlib.import_module(f"{request.param}.distributions")

    def model(x):
        with host.plate("data", 2):
            z = host.sample("z", dist.Bernoulli(array(PROB)))
            host.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        host.factor("g", array(FACTOR))
        with host.plate("data", 2):
            host.sample("z", dist.Bernoulli(logits=array(posterior())))

    def run():
        if is_pyro:
            return diagnostics.posterior_gap((model, guide), array(X))
        key = importlib.import_module("jax").random.key(0)
        return diagnostics.posterior_gap(key, (model, guide), X)

    return run


def test_the_evidence_is_the_models(gap):
    found, evidence = gap(), by_hand()
    np.testing.assert_allclose(found.whole_log_evidence, evidence.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.whole_elbo, evidence.sum() - FACTOR, rtol=1e-6)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-6)
    np.testing.assert_allclose(found.gap, found.log_evidence - found.elbo, rtol=1e-6)
    assert found.factors == ("g",)
    assert not found.is_bound.any()  # the ELBO is above the evidence
