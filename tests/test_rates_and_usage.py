"""Rates and usage of latents of which the host's formula, or a part of it, is another's."""

import importlib

import numpy as np
import pytest
from scipy import integrate


def diagnose(name, function, model, guide, **options):
    keys, x = (), np.array([0.0, 1.0, 2.0, 0.5], np.float32)
    if name == "numpyro":
        keys = (importlib.import_module("jax").random.key(0),)
    else:
        importlib.import_module("pyro").set_rng_seed(0)
        x = importlib.import_module("torch").as_tensor(x)
    find = getattr(importlib.import_module(f"{name}_dvae.diagnostics"), function)
    return find(*keys, (model, guide), x, **options)


@pytest.mark.parametrize("guide_is_uniform", [False, True])
def test_a_uniform_beside_a_continuous_bernoulli(guide_is_uniform):
    """Torch's formula is infinite where the two have the same bounds."""
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    dist = pyro.distributions
    pair = [dist.Uniform(torch.tensor(0.0), 1.0), dist.ContinuousBernoulli(torch.tensor(0.3))]
    q, p = pair if guide_is_uniform else pair[::-1]

    def model(x):
        with pyro.plate("data", 4):
            t = pyro.sample("t", p)
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z + t, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("t", q)
            pyro.sample("z", dist.Bernoulli(0.5))

    total = integrate.quad(lambda t: 0.3**t * 0.7 ** (1 - t), 0, 1)[0]

    def log_density(t):
        return t * np.log(0.3) + (1 - t) * np.log(0.7) - np.log(total)

    expected = integrate.quad(
        lambda t: -log_density(t) if guide_is_uniform else np.exp(log_density(t)) * log_density(t),
        *(0, 1),
    )[0]
    found = diagnose("pyro", "latent_rates", model, guide, num_draws=2000)["t"]
    assert abs(found.rate.item() - expected) < 5 * found.error.item() < 0.05


def test_a_multinomial_has_a_largest_count():
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    dist, probs = pyro.distributions, torch.tensor([0.5, 0.3, 0.2])

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Multinomial(3, probs=probs))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Multinomial(3, probs=probs))

    found = diagnose("pyro", "code_usage", model, guide, num_draws=500)["z"]
    assert str(found).startswith("100% of 4 codes occur in the mean of 3 latents")


@pytest.mark.parametrize("name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def test_rates_say_that_a_scale_is_left_out(name):
    ppl = pytest.importorskip(name)
    handlers, dist = ppl.poutine if name == "pyro" else ppl.handlers, ppl.distributions

    def pair(scale):
        def model(x):
            with ppl.plate("data", 4):
                with handlers.scale(scale=scale):
                    z = ppl.sample("z", dist.Bernoulli(0.4 + 0 * x))
                ppl.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

        def guide(x):
            with ppl.plate("data", 4), handlers.scale(scale=scale):
                ppl.sample("z", dist.Bernoulli(0.7 + 0 * x))

        return model, guide

    rate = 0.7 * np.log(0.7 / 0.4) + 0.3 * np.log(0.3 / 0.6)
    for scale, weighed in ((1.0, False), (0.25, True)):
        found = diagnose(name, "latent_rates", *pair(scale))["z"]
        np.testing.assert_allclose(found.rate, rate, rtol=1e-5)
        assert found.weighed is weighed
        assert ("these rates are without" in str(found)) is weighed


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_a_prior_of_all_data_is_summed_over(name):
    """Its values have fewer batch dims than those of the guide: they were taken for others."""
    host = pytest.importorskip(name)
    diagnostics = pytest.importorskip(f"{name}_dvae.diagnostics")
    dist = importlib.import_module(f"{name}.distributions")
    is_pyro = name == "pyro"
    array = importlib.import_module("torch").tensor if is_pyro else np.asarray
    probs = np.array([0.2, 0.7, 0.9])

    def model(x):
        with host.plate("data", 3):
            z = host.sample("z", dist.Bernoulli(0.3))
            host.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)

    def guide(x):
        with host.plate("data", 3):
            host.sample("z", dist.Bernoulli(array(probs)))

    key = () if is_pyro else (importlib.import_module("jax").random.key(0),)
    found = diagnostics.latent_rates(*key, (model, guide), array(np.zeros(3)), num_draws=2)["z"]
    expected = probs * np.log(probs / 0.3) + (1 - probs) * np.log((1 - probs) / 0.7)
    np.testing.assert_allclose(found.rate, expected.mean(), rtol=1e-6)
    assert found.error == 0.0
