"""Handlers that mask or weigh one site as the draw of another says."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm

X = np.array([1.3, 0.2, -0.4])
PRIOR, LOGITS = 0.4, np.array([0.3, -0.2, 0.1])
ON_ALL = -1.7  # log-density of what is observed of all data together


def right(weigh):
    """Minus the ELBO and its gradient, by all states of three coins."""
    q = 1 / (1 + np.exp(-LOGITS))
    loss, slope = 0.0, np.zeros(3)
    for z in map(np.array, itertools.product((0, 1), repeat=3)):
        log_q = np.log(np.where(z, q, 1 - q)).sum()
        log_p = np.log(np.where(z, PRIOR, 1 - PRIOR)).sum() + norm.logpdf(X, z).sum()
        signal = log_p + weigh(z.sum()) * ON_ALL - log_q
        loss -= np.exp(log_q) * signal
        slope -= np.exp(log_q) * signal * (z - q)
    return loss, slope


WEIGH = {"scale": lambda count: 1.0 + count, "mask": lambda count: 1.0 * (count > 1)}


def assert_near(draws, expected):
    draws = np.asarray(draws)
    error = draws.std(0, ddof=1) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - expected) < 5 * error).all(), (draws.mean(0), expected, error)


@pytest.mark.parametrize("handler", WEIGH)
def test_pyro(handler):
    torch = pytest.importorskip("torch")
    pyro = pytest.importorskip("pyro")
    from pyro import distributions as dist

    from pyro_dvae.infer import Exact_ELBO, Reinforce_ELBO

    pyro.set_rng_seed(0)
    logits, x = torch.tensor(LOGITS, requires_grad=True), torch.tensor(X)

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(PRIOR)))
            pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)
        weight = WEIGH[handler](z.sum(-1, True))
        with getattr(pyro.poutine, handler)(
            **{handler: weight.bool() if handler == "mask" else weight}
        ):
            pyro.factor("all", torch.tensor(ON_ALL))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    def both(elbo):
        logits.grad = None
        value = elbo.loss_and_grads(model, guide)
        return np.array([float(value), *logits.grad.tolist()])

    expected = np.append(*right(WEIGH[handler]))
    np.testing.assert_allclose(both(Exact_ELBO()), expected, rtol=1e-5)
    elbo = Reinforce_ELBO(8)
    assert_near([both(elbo) for _ in range(150)], expected)


@pytest.mark.parametrize("handler", WEIGH)
def test_numpyro(handler):
    jax = pytest.importorskip("jax")
    numpyro = pytest.importorskip("numpyro")
    from numpyro import distributions as dist

    from numpyro_dvae.infer import Exact_ELBO, Reinforce_ELBO

    def model():
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Bernoulli(PRIOR))
            numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=X)
        weight = WEIGH[handler](z.sum(-1))
        given = {handler: weight > 0 if handler == "mask" else weight}
        with getattr(numpyro.handlers, handler)(**given):
            numpyro.factor("all", ON_ALL)

    def guide():
        logits = numpyro.param("logits", LOGITS)
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Bernoulli(logits=logits))

    def both(elbo):
        def function(key):
            value, slope = jax.value_and_grad(lambda p: elbo.loss(key, p, model, guide))(
                {"logits": LOGITS}
            )
            return jax.numpy.append(value, slope["logits"])

        return jax.jit(function)

    expected = np.append(*right(WEIGH[handler]))
    np.testing.assert_allclose(both(Exact_ELBO())(jax.random.key(0)), expected, rtol=1e-5)
    draws = jax.lax.map(both(Reinforce_ELBO(8)), jax.random.split(jax.random.key(1), 300))
    assert_near(draws, expected)
