"""`AutoDiscrete` of models with loops of JAX: what it does not guide in them stays in the model."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.contrib.control_flow import cond, scan  # noqa: E402
from numpyro.handlers import block  # noqa: E402

from numpyro_dvae.guides import AutoDiscrete  # noqa: E402
from numpyro_dvae.infer import SVI, Exact_ELBO  # noqa: E402

X, CHANCE = np.array([0.3, -1.0, 1.4]), 0.3


def chain(x):
    """A switch of all, and a chain that is summed out."""
    k = numpyro.sample("k", dist.Bernoulli(CHANCE))

    def step(z, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.5 * z), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(1.0 * z + k, 1.0), obs=x)
        return z, None

    scan(step, 0, x)


def series(x):
    k = numpyro.sample("k", dist.Bernoulli(CHANCE))

    def step(before, x):
        numpyro.sample("x", dist.Normal(0.5 * before + k, 1.0), obs=x)
        return x, None

    scan(step, 0.0, x)


def chosen(x):
    k = numpyro.sample("k", dist.Bernoulli(CHANCE))
    mean = cond(x[0] > 0, lambda mean: mean, lambda mean: -mean, 1.0 * k)
    numpyro.sample("x", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=x)


def normal(mean):
    return np.exp(-0.5 * (X - mean) ** 2) / np.sqrt(2 * np.pi)


def of_chain(k):
    states = np.array([1.0, 0.0])
    for n in range(3):
        on = 0.2 + 0.5 * np.arange(2)
        moved = np.array([states @ (1 - on), states @ on])
        states = moved * [normal(k)[n], normal(1.0 + k)[n]]
    return np.log(states.sum())


GIVEN = {
    chain: of_chain,
    series: lambda k: np.log(normal(0.5 * np.array([0.0, *X[:-1]]) + k)).sum(),
    chosen: lambda k: np.log(normal(1.0 * k)).sum(),
}


@pytest.mark.parametrize(
    ("model", "is_hidden"),
    [
        pytest.param(chain, True, marks=pytest.mark.slow),
        pytest.param(series, True, marks=pytest.mark.slow),
        (series, False),
        (chosen, False),
    ],
)
def test_it_starts_at_the_prior_beside_a_loop_of_jax(model, is_hidden):
    guide = AutoDiscrete(block(model, hide=["z"]) if is_hidden else model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Exact_ELBO())
    state = svi.init(jax.random.key(0), jnp.array(X))
    wanted = -(1 - CHANCE) * GIVEN[model](0) - CHANCE * GIVEN[model](1)
    np.testing.assert_allclose(svi.evaluate(state, jnp.array(X)), wanted, rtol=1e-5)
