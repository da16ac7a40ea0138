"""Where restarted codes of a table that is a parameter are: in the parameters, or in the state."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import numpyro  # noqa: E402
from numpyro import handlers  # noqa: E402
from quantized import TABLE, V, X, numpyro_kit, pair  # noqa: E402

from numpyro_dvae.infer import SVI, VQ_ELBO  # noqa: E402

FAR = TABLE + np.float32(100) * (np.arange(V) < 2)[:, None]
OPTIMS = [numpyro.optim.Adam, numpyro.optim.SGD, numpyro.optim.Momentum]


def trained(svi_class, optim):
    model, guide = pair(numpyro_kit(), "gradient", FAR, min_count=2.0)
    rate = (1e-3, 0.9) if optim is numpyro.optim.Momentum else (1e-3,)
    svi = svi_class(model, guide, optim(*rate), VQ_ELBO())
    state = jax.jit(svi.init)(jax.random.key(0), X)
    return guide, svi, state, jax.jit(svi.update)(state, X)[0]


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda optim: optim.__name__)
def test_svi_adds_restarts_to_the_parameters(optim):
    guide, svi, before, after = trained(SVI, optim)
    first, params = svi.get_params(before), svi.get_params(after)
    np.testing.assert_array_equal(first["codebook$table"][:2], FAR[:2])
    assert np.abs(params["codebook$table"]).max() < 20
    np.testing.assert_array_equal(after.mutable_state["codebook$state"]["moved"], 0.0)
    for data in (params, {**params, **after.mutable_state}):  # alone, or with the state
        with handlers.substitute(data=data):
            np.testing.assert_array_equal(guide.codebook.table, params["codebook$table"])


def test_numpyros_own_leaves_them_to_the_state():
    guide, svi, _, after = trained(numpyro.infer.SVI, numpyro.optim.Adam)
    params = svi.get_params(after)
    assert np.abs(params["codebook$table"][:2]).min() > 50
    with handlers.substitute(data={**params, **after.mutable_state}):
        assert np.abs(guide.codebook.table).max() < 20
