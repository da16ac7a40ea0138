"""Factors in the steps of a `scan`, which NumPyro gives the dims of one step."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY, normal  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

from numpyro_dvae.diagnostics import to_arviz  # noqa: E402
from numpyro_dvae.infer import Exact_ELBO  # noqa: E402

X = np.array([[0.3, -1.0], [1.4, 0.2], [-0.6, 0.5]])


def one_number(z, x, seen):
    numpyro.factor("f", -0.1 * x[0])


def one_in_the_dim(z, x, seen):
    numpyro.factor("f", -0.1 * x[:1])


def of_each_datum(z, x, seen):
    numpyro.factor("f", -0.1 * z * x)


def under_a_mask(z, x, seen):
    with handlers.mask(mask=seen):
        numpyro.factor("f", -0.1 * x[0])


FACTORS = {  # and their values, [S, N], of a code
    one_number: lambda z, x: -0.1 * x[:, :1] + 0 * x,
    one_in_the_dim: lambda z, x: -0.1 * x[:, :1] + 0 * x,
    of_each_datum: lambda z, x: -0.1 * z * x,
    under_a_mask: lambda z, x: np.where(x > 0, -0.1 * x[:, :1], 0),
}


@pytest.mark.parametrize("num_steps", [2, 3])
@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.__name__)
def test_factors_of_steps_count_for_each_datum(factor, num_steps):
    """Two data, as many as steps or fewer; NumPyro refuses one number for several data."""
    x = X[:num_steps]

    def model(x):
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.4))

        def step(carry, now):
            with numpyro.plate("data", 2):
                factor(z, now, now > 0)
                numpyro.sample("x", dist.Normal(z, 1.0), obs=now)
            return carry, None

        scan(step, 0, x)

    def guide(x):
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(0.4))

    joint = [
        np.log(p) + (FACTORS[factor](z, x) + normal(x, z)).sum(0) for z, p in ((0, 0.6), (1, 0.4))
    ]
    elbo = (0.6 * joint[0] + 0.4 * joint[1] - 0.6 * np.log(0.6) - 0.4 * np.log(0.4)).sum()
    loss = Exact_ELBO().loss(KEY, {}, model, guide, jnp.asarray(x))
    np.testing.assert_allclose(loss, -elbo, rtol=1e-10)
    draws = to_arviz(KEY, (model, guide), jnp.asarray(x), params={}, num_draws=3)
    found = draws.log_likelihood["f"]
    found = found.sum([dim for dim in found.dims if dim not in ("chain", "draw")])
    expected = [FACTORS[factor](z, x).sum() for z in draws.posterior.z.values[0]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
