"""Sentences and numbers of reports that were false of some models, beside what is right."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from truncated_zoo import SetProgram

X = np.array([0.25, 4.5, -1.5])


def half_seen(ppl, data):
    with ppl.plate("data", 3):
        with ppl.mask(mask=data["known"]):
            z = ppl.sample(
                "z", ppl.dist.Bernoulli(logits=ppl.param("slope", data) + 0.0 * data["x"])
            )
        ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])


HALF_SEEN = SetProgram(
    "half seen",
    half_seen,
    None,
    (2,),
    {"slope": np.array(0.3)},
    {"x": X, "known": np.array([True, False, True])},
)


@pytest.mark.parametrize("name", ["importance_diagnostics", "posterior_gap", "rate_distortion"])
def test_a_factor_that_the_package_makes_is_none_of_the_users(thrifty_shim, name):
    """A truncated guide takes what masks silence out of its log q by one."""
    found = thrifty_shim.diagnose_sets(HALF_SEEN, num_states=2, name=name)
    assert found.factors == ()
    assert "factor" not in str(found)


# Reconstructions that are perfect in some draws


def steps(ppl, data):
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(data["x"] * (1 + data["off"] * z), 1.0), obs=data["x"])


def steps_guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Bernoulli(logits=40.0 * data["one"]))


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_a_perfect_reconstruction_is_of_100_decibels(thrifty_shim, off):
    data = {"x": X, "one": np.array([-1.0, 1.0, 1.0]), "off": np.full(3, off)}
    case = thrifty_shim.Case(program_of(steps, steps_guide, {}, data))
    errors = np.where(data["one"] > 0, off * X, 0.0) ** 2
    span = X.max() - X.min()
    with np.errstate(divide="ignore"):
        decibels = np.minimum(10 * np.log10(span**2 / errors), 100.0)
    found = diagnose(thrifty_shim, "rate_distortion", case, num_draws=3)
    np.testing.assert_allclose(found.psnr, decibels, rtol=1e-6)
    assert found.data_range == span
    assert f"PSNR {decibels.mean():.2f} dB" in str(found)
    table = diagnose(thrifty_shim, "evaluate", case, num_particles=3)
    np.testing.assert_allclose(table.psnr, decibels.mean(), rtol=1e-6)
    assert table.data_range == span


# What the data share, and automatic guides compute of sites of their own


NAMES = "What the data share, 'level': "


def test_a_shared_latent_and_what_it_is_computed_of_are_one():
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    from pyro_dvae import diagnostics

    def model(x):
        level = pyro.sample("level", pyro.distributions.HalfNormal(1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", pyro.distributions.Bernoulli(0.5 * torch.ones(3)))
            pyro.sample("x", pyro.distributions.Normal(level + z, 1.0), obs=x)

    x = torch.tensor(X)
    for automatic in (AutoNormal, AutoMultivariateNormal):
        pyro.clear_param_store()
        shared = automatic(pyro.poutine.block(model, hide=["z", "x"]))

        def guide(x, shared=shared):
            shared(x)
            with pyro.plate("data", 3):
                pyro.sample("z", pyro.distributions.Bernoulli(0.5 * torch.ones(3)))

        report = diagnostics.importance_diagnostics((model, guide), x, num_particles=50)
        assert report.shared.sites == ("level",)
        assert NAMES in str(report)
        assert NAMES in str(diagnostics.rate_distortion((model, guide), x))


@pytest.mark.slow
def test_a_shared_latent_and_what_it_is_computed_of_are_one_in_numpyro():
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    from numpyro_dvae import diagnostics
    from numpyro_dvae.infer import SVI, Reinforce_ELBO

    def model(x):
        level = numpyro.sample("level", numpyro.distributions.HalfNormal(1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", numpyro.distributions.Bernoulli(0.5))
            numpyro.sample("x", numpyro.distributions.Normal(level + z, 1.0), obs=x)

    x, key = jax.numpy.asarray(X), jax.random.key(0)
    for automatic in (AutoNormal, AutoMultivariateNormal):
        shared = automatic(numpyro.handlers.block(model, hide=["z", "x"]))

        def guide(x, shared=shared):
            shared(x)
            with numpyro.plate("data", 3):
                numpyro.sample("z", numpyro.distributions.Bernoulli(0.5))

        svi = SVI(model, guide, numpyro.optim.Adam(0.1), Reinforce_ELBO(num_particles=2))
        params = svi.get_params(svi.init(key, x))
        options = {"params": params, "num_particles": 50}
        report = diagnostics.importance_diagnostics(key, (model, guide), x, **options)
        assert report.shared.sites == ("level",)
        found = diagnostics.rate_distortion(key, (model, guide), x, params=params)
        assert NAMES in str(report)
        assert NAMES in str(found)


# Calibration


def test_an_error_of_simulated_data_says_so():
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    from pyro_dvae.diagnostics import simulation_based_calibration

    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", pyro.distributions.Bernoulli(0.5 * torch.ones(3)))
            pyro.sample("x", pyro.distributions.Normal(30.0 * z, 1.0), obs=x)

    def guide(x):
        if x.max() > 20:
            raise ValueError("x is too large.")
        with pyro.plate("data", 3):
            pyro.sample("z", pyro.distributions.Bernoulli(logits=x))

    said = r"Simulated data, and not those given, make this error: x is too large\. Write"
    for options in ({}, {"data": "x"}):
        pyro.set_rng_seed(1)
        with pytest.raises(ValueError, match=said):
            simulation_based_calibration((model, guide), torch.tensor(X), **options)


def test_an_error_of_simulated_data_is_kept(thrifty_shim):
    with pytest.raises(ValueError, match=r"not: some reason. \(in simulated data\)") as said:
        with thrifty_shim.module("diagnostics.uniformity").on_simulated_data():
            raise ValueError("some reason.")
    assert str(said.value.__cause__) == "some reason."
