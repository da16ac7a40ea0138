"""Calibration of models that sum sites out: no draw of these can be ranked."""

import importlib

import numpy as np
import pytest

X = np.array([-0.3, 0.8, 1.7], np.float32)


@pytest.mark.parametrize("name", ["pyro", "numpyro"])
def test_marked_sites_are_refused_by_name(name):
    ppl = pytest.importorskip(name)
    dist, key = ppl.distributions, ()
    if name == "pyro":
        x = importlib.import_module("torch").as_tensor(X)
    else:
        x, key = X, (importlib.import_module("jax").random.key(0),)

    def model(x):
        with ppl.plate("data", 3):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            z = ppl.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            ppl.sample("x", dist.Normal(k + 2 * z, 1.0), obs=x)

    def guide(x):
        with ppl.plate("data", 3):
            ppl.sample("k", dist.Bernoulli(0.3))

    calibrate = importlib.import_module(f"{name}_dvae.diagnostics").simulation_based_calibration
    with pytest.raises(ValueError, match=r"\['z'\] are summed out.*`importance_diagnostics`"):
        calibrate(*key, (model, guide), x)
