"""Sites that have a density and no draws: losses take them, and reports that draw them say so."""

import numpy as np
import pytest
from scipy.stats import norm

Y = np.array([0.5, -1.0])
GROUPS = ["posterior", "log_likelihood", "sample_stats", "vi_stats"]
SHIFT = 0.3  # that the guide has no doubt about


def in_pyro():
    torch = pytest.importorskip("torch")
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist

    from pyro_dvae import diagnostics, infer

    shift = torch.tensor(SHIFT, dtype=torch.float64)

    def model(y):
        m = pyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.full((), 0.5, dtype=torch.float64)))
            pyro.sample("y", dist.Normal(m * z, 1.0), obs=y)

    def guide(y):
        pyro.sample("m", dist.Delta(shift))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.full((), 0.5, dtype=torch.float64)))

    y = torch.as_tensor(Y)
    pyro.set_rng_seed(0)
    loss = infer.Exact_ELBO().loss(model, guide, y)
    return loss, lambda **options: diagnostics.to_arviz((model, guide), y, **options)


def in_numpyro():
    jax = pytest.importorskip("jax")
    import numpyro
    import numpyro.distributions as dist

    from numpyro_dvae import diagnostics, infer

    def model(y):
        m = numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(m * z, 1.0), obs=y)

    def guide(y):
        numpyro.sample("m", dist.Delta(SHIFT))
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(0.5))

    y, key = jax.numpy.asarray(Y), jax.random.key(0)
    loss = infer.Exact_ELBO().loss(key, {}, model, guide, y)
    return loss, lambda **options: diagnostics.to_arviz(key, (model, guide), y, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`posterior`, and")  # the guide has a point
@pytest.mark.parametrize("programs", [in_pyro, in_numpyro])
def test_an_improper_prior_is_scored_and_its_draws_are_refused_by_name(programs):
    loss, report = programs()
    expected = -(norm.logpdf(Y, 0) + norm.logpdf(Y, SHIFT)).sum() / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"site 'm' \(ImproperUniform\) cannot be drawn.*groups="):
        report(num_draws=30)
    found = report(num_draws=30, groups=GROUPS)
    means = found.posterior["z"].values[0] * SHIFT
    seen = found.log_likelihood["y"].values[0]
    np.testing.assert_allclose(seen, norm.logpdf(Y, means), rtol=1e-5)


def test_a_chain_that_is_summed_out_by_its_own_density_is_scored_and_not_drawn():
    """Pyro's `DiscreteHMM` draws only where it is told how long it is, by an assertion."""
    torch = pytest.importorskip("torch")
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist

    from pyro_dvae import diagnostics

    def model(y):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            steps = dist.Normal(z[..., None, None] + torch.tensor([0.0, 1.0]), 1.0)
            pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), steps), obs=y)

    def guide(y):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))

    with pytest.raises(ValueError, match=r"site 'y' \(DiscreteHMM\) cannot be drawn"):
        diagnostics.to_arviz((model, guide), torch.zeros(2, 3), num_draws=30)
