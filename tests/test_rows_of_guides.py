"""Guides that keep something of each row, beside data of other rows, are refused by name."""

import importlib

import numpy as np
import pytest

X = np.array([-0.5, 2.0, 0.3, 1.2])
LOGITS = np.array([0.4, -0.3, 0.1, 0.7])


@pytest.fixture(params=["pyro", "numpyro"])
def package(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return request.param


def loss(package, model, guide, x):
    ppl = importlib.import_module(package)
    array = importlib.import_module("torch" if package == "pyro" else "jax.numpy").asarray
    dist = importlib.import_module(f"{package}.distributions")
    elbo = importlib.import_module(f"{package}_dvae.infer").Exact_ELBO()
    programs = [
        lambda data, program=program: program(ppl, dist, array(LOGITS), data)
        for program in (model, guide)
    ]
    if package == "pyro":
        ppl.set_rng_seed(0)
        return float(elbo.loss(*programs, array(x)))
    return float(elbo.loss(importlib.import_module("jax").random.key(0), {}, *programs, array(x)))


def by_rows(ppl, dist, logits, x):
    with ppl.plate("data", 4, subsample_size=2) as rows:
        ppl.sample("z", dist.Bernoulli(logits=logits[rows]))


def of_data(ppl, dist, logits, x):
    with ppl.plate("data", 4, subsample_size=2):
        ppl.sample("z", dist.Bernoulli(logits=x))


def passed(ppl, dist, logits, x):
    with ppl.plate("data", 4, subsample_size=2):
        z = ppl.sample("z", dist.Bernoulli(logits=0.0 * x))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)


def taken(ppl, dist, logits, x):
    with ppl.plate("data", 4, subsample_size=2) as rows:
        z = ppl.sample("z", dist.Bernoulli(logits=0.0 * x[rows]))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def test_rows_of_a_guide_are_those_of_the_data(package):
    with pytest.raises(ValueError, match=r"plate 'data' draws 2 of 4 rows by itself.* the guide"):
        loss(package, passed, by_rows, X[:2])
    assert np.isfinite(loss(package, passed, of_data, X[:2]))
    q = 1 / (1 + np.exp(-LOGITS))
    rates = q * np.log(2 * q) + (1 - q) * np.log(2 * (1 - q))
    costs = rates + 0.5 * (q * (X - 1) ** 2 + (1 - q) * X**2 + np.log(2 * np.pi))
    pairs = [2 * (costs[i] + costs[j]) for i in range(4) for j in range(i)]
    found = loss(package, taken, by_rows, X)
    assert np.abs(np.array(pairs) - found).min() < 1e-5
