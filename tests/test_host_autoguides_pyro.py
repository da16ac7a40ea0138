"""Pyro's autoguides, alone and beside a discrete site: the value that Pyro's own loss has."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from any_pyro import fresh, quiet  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.distributions.transforms import (  # noqa: E402
    affine_autoregressive,
    block_autoregressive,
    iterated,
)
from pyro.infer import Trace_ELBO, autoguide  # noqa: E402
from scipy import special, stats  # noqa: E402

from pyro_dvae.diagnostics.collect import collect, collect_given_shared  # noqa: E402
from pyro_dvae.guides import AutoDiscrete  # noqa: E402
from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    VIMCO_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
    WakeSleep_ELBO,
)

__all__ = ["fresh"]  # a fixture of every test here

X = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
AUTOS = [
    "AutoDelta",
    "AutoDiagonalNormal",
    "AutoGaussian",
    "AutoHierarchicalNormalMessenger",
    "AutoIAFNormal",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "AutoNormalMessenger",
    "AutoRegressiveMessenger",
    "AutoStructured",
]


def alone(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def switched(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", 3):
        size = pyro.sample("size", dist.Normal(0.0, 2.0))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z * size, scale), obs=x)


def beside(auto):
    def guide(x):
        auto(x)
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.8]))
        with auto.plates.get("data") or pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    return guide


def structured(model):
    names = ["scale", "loc" if model is alone else "size"]
    return autoguide.AutoStructured(
        model if model is alone else poutine.block(model, hide=["z"]),
        conditionals=dict.fromkeys(names, "normal"),
        dependencies={names[1]: {names[0]: "linear"}},
    )


def values(elbo, model, guide, times):
    draws = []
    for seed in range(times):
        pyro.set_rng_seed(seed)
        draws.append(float(quiet(lambda: elbo.loss_and_grads(model, guide, X))))
    return np.array(draws)


def assert_as_the_host(model, guide, losses):
    guide(X)  # parameters are made
    host = values(Trace_ELBO(num_particles=4), model, guide, 60)
    for loss in losses:
        ours = values(loss, model, guide, 40)
        errors = [draws.std(ddof=1) / len(draws) ** 0.5 for draws in (host, ours)]
        apart = abs(host.mean() - ours.mean())
        assert apart < 5 * np.hypot(*errors) + 1e-8, (type(loss), host.mean(), ours.mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOS)
def test_alone(name):
    guide = structured(alone) if name == "AutoStructured" else getattr(autoguide, name)(alone)
    losses = Reinforce_ELBO(4), DAPS_ELBO(4), VIMCO_ELBO(4), Exact_ELBO()
    assert_as_the_host(alone, guide, losses)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("AutoNormal", "AutoIAFNormal") else pytest.mark.slow
        )
        for name in AUTOS
        if not name.endswith("Messenger")
    ],
)
def test_beside_a_discrete_site(name):
    model = switched
    hidden = poutine.block(model, hide=["z"])
    auto = structured(model) if name == "AutoStructured" else getattr(autoguide, name)(hidden)
    losses = Reinforce_ELBO(4), DAPS_ELBO(4), VIMCO_ELBO(4), Exact_ELBO()
    assert_as_the_host(model, beside(auto), losses)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that it is made for TraceEnum_ELBO
@pytest.mark.parametrize("name", ["AutoNormal", "AutoDelta"])
def test_in_a_list_with_the_hosts_own_discrete_guide(name):
    model = switched
    guide = autoguide.AutoGuideList(model)
    guide.append(getattr(autoguide, name)(poutine.block(model, hide=["z"])))
    guide.append(autoguide.AutoDiscreteParallel(poutine.block(model, expose=["z"])))
    assert_as_the_host(model, guide, (Reinforce_ELBO(4), Exact_ELBO()))


def flowing(x):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(locs[..., 0] + z, 1.0), obs=x[0])


def guided_by_a_flow():
    make = partial(iterated, 1, block_autoregressive)
    guide = autoguide.AutoGuideList(flowing)
    guide.append(AutoDiscrete(flowing))
    guide.append(autoguide.AutoNormalizingFlow(poutine.block(flowing, hide=["z"]), make))
    return guide


@pytest.mark.slow
def test_a_flow_without_an_inverse_is_scored_as_it_is_drawn():
    losses = Reinforce_ELBO(4), DAPS_ELBO(4), VIMCO_ELBO(4), DisARM_ELBO(4), Exact_ELBO()
    assert_as_the_host(flowing, guided_by_a_flow(), losses)
    hidden = poutine.block(flowing, hide=["z"])
    alone = poutine.condition(flowing, {"z": torch.tensor(1.0)})
    make = partial(iterated, 1, block_autoregressive)
    guide = autoguide.AutoNormalizingFlow(hidden, make)
    assert_as_the_host(alone, guide, losses)


@pytest.mark.parametrize("make", [affine_autoregressive, block_autoregressive])
def test_a_latent_that_a_flow_draws_has_the_models_density_too(make):
    flow = make(2)

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.ones(2), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [flow]))

    assert_as_the_host(model, guide, [Reinforce_ELBO(4)])


def test_other_values_of_a_flow_without_an_inverse_are_refused_by_name():
    """It has the density of its last draw alone, and none that lacks that draw's gradient."""
    guide = guided_by_a_flow()
    assert np.isfinite(Reinforce_ELBO(1).loss(flowing, guide, X))
    with pytest.raises(ValueError, match=r"latent' is drawn by a flow without an inverse.*others?"):
        WakeSleep_ELBO(2).loss(flowing, guide, X)


@pytest.mark.slow
def test_a_latent_that_is_computed_of_what_is_given_has_its_density():
    """In single precision it is a rounding away, where a point has none; truth in double."""

    def model(x):
        a, b = (pyro.sample(name, dist.Beta(torch.tensor(2.0), 1.0)) for name in "ab")
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(a))
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=x)

    torch.set_default_dtype(torch.float32)
    guide = autoguide.AutoGuideList(model)
    guide.append(AutoDiscrete(model))
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["z"])))
    try:
        outer = collect((model, guide), (X.float(),), 60, ("latent",))
        found = collect_given_shared(
            (model, guide), (X.float(),), outer, 60, 2, lambda d, _: d.shared_importance_weights
        )
    finally:
        torch.set_default_dtype(torch.float64)
    expected = 0.0
    for name in "ab":
        values = outer["given"][name].values.reshape(60).astype(np.float64)
        loc, scale = (getattr(part, name).item() for part in (guide[1].locs, guide[1].scales))
        log_q = stats.norm.logpdf(special.logit(values), loc, scale) - np.log(values - values**2)
        expected = expected + stats.beta.logpdf(values, 2, 1) - log_q
    np.testing.assert_allclose(np.array(found), np.stack([expected, expected], 1), atol=2e-4)
