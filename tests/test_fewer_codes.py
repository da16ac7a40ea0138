"""A guide of fewer codes than the model: bounds, rates and gaps are of the states that it draws."""

import importlib

import numpy as np
import pytest
from scipy import stats

X = np.array([1.0, 0.2, 2.0, 1.0])
PRIOR = np.array([0.5, 0.3, 0.2])
DRAWN = np.array([0.35, 0.65])


class Kit:
    """Diagnostics of a package on a guide that draws two of three codes."""

    def __init__(self, name, family):
        self.name, self.family = name, family
        self.ppl = pytest.importorskip(name)
        self.np = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name])

    def array(self, values):
        return self.np.asarray(np.asarray(values, np.float32))

    def model(self, x):
        dist = self.ppl.distributions
        with self.ppl.plate("data", 4):
            z = self.ppl.sample("z", dist.Categorical(self.array(PRIOR)))
            self.ppl.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)

    def guide(self, x):
        dist = self.ppl.distributions
        of = {"Categorical": lambda: dist.Categorical(self.array(DRAWN))}
        of["Bernoulli"] = lambda: dist.Bernoulli(self.array(DRAWN[1]))
        of["Binomial"] = lambda: dist.Binomial(1, self.array(DRAWN[1]))
        with self.ppl.plate("data", 4):
            z = self.ppl.sample("z", of[self.family]())
        return z

    def __call__(self, name, **options):
        keys = ()
        if self.name == "numpyro":
            keys = (importlib.import_module("jax").random.key(0),)
        else:
            self.ppl.set_rng_seed(0)
        diagnose = getattr(importlib.import_module(f"{self.name}_dvae.diagnostics"), name)
        return diagnose(*keys, (self.model, self.guide), self.array(X), **options)


@pytest.mark.parametrize("name", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
@pytest.mark.parametrize("family", ["Categorical", "Bernoulli", "Binomial"])
def test_of_its_states(name, family):
    kit = Kit(name, family)
    joint = np.log(PRIOR) + stats.norm.logpdf(X[:, None], np.arange(3))
    evidence = np.logaddexp.reduce(joint, 1)
    rate = (DRAWN * np.log(DRAWN / PRIOR[:2])).sum()
    elbo = (DRAWN * (joint[:, :2] - np.log(DRAWN))).sum(1)
    gap = kit("posterior_gap")
    np.testing.assert_allclose(gap.log_evidence, evidence, atol=1e-5)
    np.testing.assert_allclose(gap.elbo, elbo, atol=1e-5)
    mass = np.exp(np.logaddexp.reduce(joint[:, :2], 1) - evidence)
    np.testing.assert_allclose(gap.support_mass, mass, atol=1e-5)
    found = kit("latent_rates", num_draws=2)["z"]
    np.testing.assert_allclose(np.concatenate([found.rate, found.error]), [rate, 0.0], atol=1e-6)
    assert (kit("importance_diagnostics", num_particles=100).restricted).all()
