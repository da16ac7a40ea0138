"""Diagnostics run at the trained parameters, or say which are missing."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from quick_numpyro import QuickSVI

from numpyro_dvae.diagnostics import gradient_variance, importance_diagnostics
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import Reinforce_ELBO

X = np.random.default_rng(0).normal(size=(6, 2))


def model(x):
    mean = numpyro.param("mean", jnp.ones(2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(mean * z[..., None], 1.0).to_event(1), obs=x)


def guide(x):
    logits = numpyro.param("logits", jnp.full(6, 60.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=logits))


def test_missing_parameters_are_named():
    with pytest.raises(ValueError, match=r"`params` lacks \['logits', 'mean'\]"):
        importance_diagnostics(jax.random.key(0), (model, guide), X)
    losses = {"leave-one-out": Reinforce_ELBO(2)}
    with pytest.raises(ValueError, match=r"`params` lacks \['logits'\]"):
        gradient_variance(
            jax.random.key(0), (model, guide), X, losses=losses, params={"mean": np.ones(2)}
        )


@pytest.mark.slow
def test_the_result_of_fit_is_taken_as_it_is():
    svi = QuickSVI(model, guide, optax.sgd(0.5), Reinforce_ELBO(2))
    check(fit(jax.random.key(0), svi, X, num_steps=3, progress=False))


def check(result):
    found = importance_diagnostics(jax.random.key(0), result, X)
    z = result.params["logits"] > 0  # sure of them, so that the weights are known
    mean = result.params["mean"] * z[:, None]
    expected = dist.Normal(mean, 1.0).log_prob(X).sum(-1) + np.log(0.5)
    assert not np.allclose(result.params["mean"], 1.0)
    np.testing.assert_allclose(found.elbo, expected, rtol=1e-6)
