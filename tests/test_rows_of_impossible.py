"""Which rows of the data a model cannot make, where a loss was infinite."""

import importlib

import numpy as np
import pytest

WEIGHTS = np.array([0.0, -0.3, -np.inf, 0.2])  # the third datum cannot be
X = np.array([0.0, 1.0, 1.0, 0.0])


def programs(ppl, half, of_rows):
    """A coin for each row of the data; or one for all, in a plate of its own."""
    dist = ppl.distributions

    def model(x, weights):
        x, weights = (x, weights) if of_rows else (x[2:3], weights[2:3])
        with ppl.plate("data", len(x)):
            z = ppl.sample("z", dist.Bernoulli(half))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)
            ppl.factor("weight", weights)

    def guide(x, weights):
        with ppl.plate("data", len(x) if of_rows else 1):
            ppl.sample("z", dist.Bernoulli(half))

    return model, guide


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
@pytest.mark.parametrize(("of_rows", "expected"), [(True, [2, 6]), (False, [])])
def test_rows_are_told_where_data_are_rows(name, of_rows, expected):
    package = pytest.importorskip(name)
    array = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name]).asarray
    model, guide = programs(package, array(0.5), of_rows)
    loss = importlib.import_module(f"{name}_dvae.infer").Reinforce_ELBO(32)
    batch = importlib.import_module(f"{name}_dvae.fit.data").Batch((array(X), array(WEIGHTS)), {})
    find = importlib.import_module(f"{name}_dvae.fit.impossible").impossible_rows
    batches = [(0, batch), (4, batch)]
    if name == "pyro":
        package.clear_param_store()
        package.set_rng_seed(0)
        given = (package.infer.SVI(model, guide, package.optim.Adam({}), loss),)
    else:
        key = importlib.import_module("jax").random.key(0)
        svi = package.infer.SVI(model, guide, package.optim.Adam(0.1), loss)
        given = key, svi, svi.init(key, *batch[0])
    assert find(*given, batches) == (expected, ["z"])
