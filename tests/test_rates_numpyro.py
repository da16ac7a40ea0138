"""Rates of latents of which NumPyro has a formula that is none."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")

from numpyro import distributions as dist  # noqa: E402

from numpyro_dvae.diagnostics import latent_rates  # noqa: E402

X = np.array([0.0, 1.0, 0.3, 2.0], np.float32)


def test_a_series_that_is_cut_off_is_no_formula():
    def model(x):
        with numpyro.plate("data", 4):
            t = numpyro.sample("t", dist.Beta(1.0, 5.0))
            z = numpyro.sample("z", dist.Bernoulli(probs=t))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 4):
            numpyro.sample("t", dist.Kumaraswamy(1.0, 0.5))
            numpyro.sample("z", dist.Bernoulli(probs=0.4))

    found = latent_rates(jax.random.key(0), (model, guide), X, num_draws=1000)["t"]
    exact = np.log(0.5) + 1.0 - np.log(5.0) + 8.0  # t = 1 - u^2, u uniform
    assert 0.0 < found.error < 0.3
    assert abs(found.rate - exact) < 5 * found.error
