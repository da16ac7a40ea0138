"""The loss on held-out data is the exact mean over all of them."""

import pytest

jax = pytest.importorskip("jax")
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.infer import SVI, Trace_ELBO  # noqa: E402

from numpyro_dvae.fit.devices import Devices  # noqa: E402
from numpyro_dvae.fit.evaluation import HeldOut  # noqa: E402

X = np.array([0.3, -1.0, 2.0, 0.1, 5.0], np.float32)


def model(x):
    loc = numpyro.param("loc", 0.5)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def nothing(x):
    pass


def test_five_data_in_batches_of_two():
    svi = SVI(model, nothing, numpyro.optim.Adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(0), X)
    found = HeldOut(jax.random.key(1), svi, X, 2, Devices(None)).loss(state)
    expected = (0.5 * (X.astype(float) - 0.5) ** 2 + 0.5 * np.log(2 * np.pi)).mean()
    assert found == pytest.approx(expected, rel=1e-6)
