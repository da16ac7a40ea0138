"""NumPyro's autoguides, alone and beside a discrete site: the value that NumPyro's own loss has."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY, quiet  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.infer import Trace_ELBO, autoguide  # noqa: E402
from numpyro_shim import quickly  # noqa: E402

from numpyro_dvae.infer import DAPS_ELBO, SVI, VIMCO_ELBO, Exact_ELBO, Reinforce_ELBO  # noqa: E402

X = np.array([0.0, 1.0, 3.0])
OPTIONS = {
    "AutoBNAFNormal": {"num_flows": 1, "hidden_factors": [2]},
    "AutoDAIS": {"K": 2},
    "AutoIAFNormal": {"num_flows": 1, "hidden_dims": [4, 4]},
}
AUTOS = [
    "AutoBNAFNormal",
    "AutoBatchedLowRankMultivariateNormal",
    "AutoBatchedMultivariateNormal",
    "AutoDAIS",
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
]
FAST = ("AutoNormal",)


def alone(x):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("data", 3):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        numpyro.sample("x", dist.Normal(loc, scale), obs=x)


def switched(x):
    with numpyro.plate("data", 3):
        size = numpyro.sample("size", dist.Normal(0.0, 2.0))
        shift = numpyro.sample("shift", dist.Normal(0.0, 0.5))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(z * size + shift, 1.0), obs=x)


def shared(x):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("data", 3):
        size = numpyro.sample("size", dist.Normal(0.0, 2.0))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(z * size, scale), obs=x)


def auto_of(name, model):
    hidden = handlers.block(handlers.seed(model, 0), hide=["z"])
    options = {"batch_ndim": 1} if name.startswith("AutoBatched") else OPTIONS.get(name, {})
    return getattr(autoguide, name)(hidden, **options)


def beside(auto):
    def guide(x):
        auto(x)
        logits = numpyro.param("logits", jnp.array([0.3, -0.2, 0.8]))
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Bernoulli(logits=logits))

    return guide


def values(name, elbo, model, guide, params, times):
    keys = jax.random.split(jax.random.key(times), times)
    run = quickly(
        f"{name} {type(elbo).__name__}",
        lambda keys: jax.lax.map(lambda k: elbo.loss(k, params, model, guide, X), keys),
    )
    return np.asarray(quiet(lambda: run(keys)))


def assert_as_the_host(name, model, guide, losses):
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Exact_ELBO())
    params = svi.get_params(svi.init(KEY, X))
    host = values(name, Trace_ELBO(4), model, guide, params, 400)
    for loss in losses:
        ours = values(name, loss, model, guide, params, 300)
        errors = [draws.std(ddof=1) / len(draws) ** 0.5 for draws in (host, ours)]
        apart = abs(host.mean() - ours.mean())
        assert apart < 5 * np.hypot(*errors) + 1e-5, (type(loss), host.mean(), ours.mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in AUTOS if not n.startswith("AutoBatched")])
def test_alone(name):
    losses = Reinforce_ELBO(4), DAPS_ELBO(4), VIMCO_ELBO(4), Exact_ELBO()
    assert_as_the_host(f"{name} alone", alone, auto_of(name, alone), losses)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in AUTOS]
)
def test_beside_a_discrete_site(name):
    model = switched if name.startswith("AutoBatched") else shared
    guide = beside(auto_of(name, model))
    losses = (Reinforce_ELBO(4), Exact_ELBO())
    if name not in FAST:
        losses = (*losses, DAPS_ELBO(4), VIMCO_ELBO(4))
    assert_as_the_host(f"{name} beside", model, guide, losses)
