"""Two fits of programs that name their parameters alike: each result is diagnosed by its own."""

import importlib

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from quick_numpyro import QuickSVI
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import FitResult, fit
from numpyro_dvae.infer import Exact_ELBO

X = np.linspace(-1.5, 2.0, 6)
KEY = jax.random.key(0)
CONSTRAINTS = {2: constraints.positive, 3: constraints.interval(0.1, 3.0)}


def mixture(classes):
    def model(x):
        loc = numpyro.param("loc", jnp.linspace(-1.0, 1.0, classes))
        scale = numpyro.param("scale", jnp.ones(classes), constraint=CONSTRAINTS[classes])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(classes) / classes))
            numpyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    def guide(x):
        logits = numpyro.param("logits", jnp.zeros((len(x), classes)))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Categorical(logits=logits))

    return model, guide


def expected(params):
    """Evidence and ELBO of each datum."""
    loc, scale, logits = (
        np.asarray(params[n], dtype=np.float64) for n in ("loc", "scale", "logits")
    )
    log_joint = norm.logpdf(X[:, None], loc, scale) - np.log(len(loc))
    log_q = log_softmax(logits, -1)
    return logsumexp(log_joint, -1), (np.exp(log_q) * (log_joint - log_q)).sum(-1)


def check(result, **options):
    found = posterior_gap(KEY, result, jnp.asarray(X), **options)
    evidence, elbo = expected(options.get("params", result.params))
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-5)
    np.testing.assert_allclose(found.elbo, elbo, rtol=1e-5)


def test_each_result_stands_for_itself():
    results = {}
    for classes in (2, 3):
        svi = QuickSVI(*mixture(classes), numpyro.optim.Adam(0.05), Exact_ELBO())
        results[classes] = fit(KEY, svi, jnp.asarray(X), num_steps=4, progress=False)
    given = {name: np.array(value) for name, value in results[2].params.items()}
    for classes in (2, 3):  # the first after the second was fitted
        check(results[classes])
    assert all((np.asarray(results[2].params[name]) == given[name]).all() for name in given)
    moved = {name: value + 0.25 for name, value in results[2].params.items()}
    check(results[2], params=moved)
    check(FitResult(*mixture(2), given, np.zeros(0)))  # arrays of NumPy, as from a file
    with pytest.raises(ValueError, match=r"`params` has \['lok'\], for which neither .*'loc'"):
        check(results[2], params={"lok": given["loc"]})
    lacking = {name: value for name, value in given.items() if name != "scale"}
    with pytest.raises(ValueError, match=r"`params` lacks \['scale'\]"):
        check(FitResult(*mixture(2), lacking, np.zeros(0)))


def test_a_second_report_of_the_same_programs_compiles_nothing_again():
    """Other parameters, and functions that are made anew; other data are another program."""
    compiled = []

    def report(x, shift):
        model, guide = mixture(2)
        params = {"loc": jnp.array([-1.0, 1.0]) + shift, "scale": jnp.ones(2)}
        params["logits"] = jnp.zeros((len(x), 2))
        found = posterior_gap(KEY, FitResult(model, guide, params, np.zeros(0)), jnp.asarray(x))
        compiled.append(set(kept))
        return found.log_evidence

    kept = importlib.import_module("numpyro_dvae.fit.compiled")._PROGRAMS
    ends = [report(X, 0.0), report(X, 0.5), report(X[:4], 0.0)]
    assert compiled[0] == compiled[1] != compiled[2]
    assert np.abs(ends[0] - ends[1]).max() > 0.01
    np.testing.assert_allclose(ends[0][:4], ends[2], rtol=1e-6)
