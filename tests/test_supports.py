"""What a latent can be, and how many there are, may depend on draws or data: right, or refused."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

Y = np.array([1.3, 0.1])
SHARES = np.array([0.2, 0.3, 0.5])
TRIALS = np.array([1, 3])  # of each datum


def counted_value():
    """Minus the ELBO of individuals, and of those that are counted of them."""
    total = 0.0
    for y, (n, share) in itertools.product(Y, enumerate(SHARES)):
        for w in range(n + 1):
            log_q = math.log(1 / 3) + binom.logpmf(w, n, 0.5)
            log_p = math.log(share) + binom.logpmf(w, n, 0.3) + norm.logpdf(y, w, 1.0)
            total += np.exp(log_q) * (log_q - log_p)
    return total


def program(backend, *, is_model, trials=None):
    sample, plate, dist, asarray = backend

    def run(y):
        with plate("data", 2):
            if trials is None:
                probs = asarray(SHARES if is_model else np.full(3, 1 / 3))
                n = sample("n", dist.Categorical(probs))
            else:
                n = asarray(trials)
            w = sample("w", dist.Binomial(n, asarray(0.3 if is_model else 0.5)))
            if is_model:
                sample("y", dist.Normal(w, 1.0), obs=y)

    return run


def rate_of_trials():
    return TRIALS.mean() * (0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)) / math.log(2)


# ----------------------------------------------------------------------------------------- Pyro


@pytest.fixture
def pyro_pair():
    torch = pytest.importorskip("torch")
    pyro = pytest.importorskip("pyro")
    pyro.set_rng_seed(0)
    backend = pyro.sample, pyro.plate, pyro.distributions, lambda x: torch.as_tensor(x) * 1.0

    def make(trials=None):
        return tuple(program(backend, is_model=m, trials=trials) for m in (True, False))

    return make


def test_pyro_samples_counts_of_other_trials(pyro_pair):
    torch = pytest.importorskip("torch")
    from pyro_dvae.infer import Reinforce_ELBO

    loss, (model, guide), y = Reinforce_ELBO(4), pyro_pair(), torch.tensor(Y)
    losses = np.array([float(loss.loss(model, guide, y)) for _ in range(200)])
    assert abs(losses.mean() - counted_value()) < 5 * losses.std(ddof=1) / len(losses) ** 0.5


@pytest.mark.parametrize("trials", [None, TRIALS])
def test_pyro_lists_no_counts_of_other_trials(pyro_pair, trials):
    torch = pytest.importorskip("torch")
    from pyro_dvae.diagnostics import posterior_gap
    from pyro_dvae.infer import Exact_ELBO, Truncated_ELBO, TruncatedGuide

    model, guide = pyro_pair(trials)
    y = torch.tensor(Y)
    for run in (
        lambda: Exact_ELBO().loss(model, guide, y),
        lambda: posterior_gap((model, guide), y),
        lambda: Truncated_ELBO().loss(model, TruncatedGuide(model, 2), y),
    ):
        with pytest.raises(ValueError, match=r"'w' .Binomial.* may have other values"):
            run()


def test_pyro_diagnoses_counts_of_other_trials(pyro_pair):
    torch = pytest.importorskip("torch")
    from pyro_dvae.diagnostics import code_usage, evaluate

    pair, y = pyro_pair(TRIALS), torch.tensor(Y)
    assert code_usage(pair, y, num_draws=50)["w"].counts.shape == (4,)
    found = evaluate(pair, y, num_particles=400)
    np.testing.assert_allclose(found.rate, rate_of_trials(), atol=0.15)


# -------------------------------------------------------------------------------------- NumPyro


@pytest.fixture
def numpyro_pair():
    jnp = pytest.importorskip("jax.numpy")
    numpyro = pytest.importorskip("numpyro")
    backend = numpyro.sample, numpyro.plate, numpyro.distributions, jnp.asarray

    def make(trials=None):
        return tuple(program(backend, is_model=m, trials=trials) for m in (True, False))

    return make


def test_numpyro_samples_counts_of_other_trials(numpyro_pair):
    jax = pytest.importorskip("jax")
    from any_numpyro import assert_mean, draws_of

    from numpyro_dvae.infer import Reinforce_ELBO

    loss, y = Reinforce_ELBO(4), jax.numpy.asarray(Y)
    model, guide = numpyro_pair()
    assert_mean(draws_of("counts", lambda k: loss.loss(k, {}, model, guide, y)), counted_value())


@pytest.mark.parametrize("trials", [None, TRIALS])
def test_numpyro_lists_no_counts_of_other_trials(numpyro_pair, trials):
    jax = pytest.importorskip("jax")
    from numpyro_dvae.diagnostics import posterior_gap
    from numpyro_dvae.infer import SVI, Exact_ELBO, Truncated_ELBO, TruncatedGuide

    (model, guide), key, y = numpyro_pair(trials), jax.random.key(0), jax.numpy.asarray(Y)
    optim = pytest.importorskip("numpyro").optim.Adam(0.1)
    for run in (
        lambda: Exact_ELBO().loss(key, {}, model, guide, y),
        lambda: posterior_gap(key, (model, guide), y),
        lambda: SVI(model, TruncatedGuide(model, 2), optim, Truncated_ELBO()).init(key, y),
    ):
        with pytest.raises(ValueError, match=r"'w' .Binomial.* may have other values"):
            run()


def test_numpyro_diagnoses_counts_of_other_trials(numpyro_pair):
    jax = pytest.importorskip("jax")
    from numpyro_dvae.diagnostics import code_usage, evaluate

    pair, key, y = numpyro_pair(TRIALS), jax.random.key(0), jax.numpy.asarray(Y)
    assert code_usage(key, pair, y, num_draws=50)["w"].counts.shape == (4,)
    found = evaluate(key, pair, y, num_particles=400)
    np.testing.assert_allclose(found.rate, rate_of_trials(), atol=0.15)
