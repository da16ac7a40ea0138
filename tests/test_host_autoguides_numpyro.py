"""NumPyro's autoguides, alone and beside a discrete site: the value that NumPyro's own loss has."""

from dataclasses import replace

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
from scipy import special, stats  # noqa: E402

from numpyro_dvae.diagnostics import evaluate, importance_diagnostics  # noqa: E402
from numpyro_dvae.diagnostics.collect import collect, collect_given_shared  # noqa: E402
from numpyro_dvae.guides import AutoDiscrete  # noqa: E402
from numpyro_dvae.infer import DAPS_ELBO, SVI, VIMCO_ELBO, Exact_ELBO, Reinforce_ELBO  # noqa: E402
from numpyro_dvae.programs.densities import given_steps, has_inverse, steps_of  # noqa: E402
from numpyro_dvae.programs.sites import Site  # noqa: E402

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


@pytest.mark.slow
def test_a_draw_of_a_flow_without_an_inverse_is_given_with_how_it_was_drawn():
    """Its density, given later, is that of the draw; beside it nothing is given."""
    guide = auto_of("AutoBNAFNormal", alone)
    run = {n: m for n, m in of_guide(guide).items() if m["type"] == "sample"}
    site = Site.of(run["_auto_latent"])
    assert not has_inverse(site)
    steps = given_steps(site, steps_of(site))
    assert site.fn.log_prob(site.value, steps) == site.log_prob()
    assert given_steps(replace(site, name="other"), steps_of(site)) == []


def of_guide(guide):
    return handlers.trace(handlers.seed(guide, KEY)).get_trace(X)


def evidence_of_coins():
    """Of `coins`, by quadrature in the mean and the logarithm of the scale."""
    mean, log = np.linspace(-5, 5, 401)[:, None, None], np.linspace(-2, 2, 321)[:, None]
    each = 0.7 * stats.norm.pdf(X, mean, np.exp(log)) + 0.3 * stats.norm.pdf(
        X, mean + 1, np.exp(log)
    )
    joint = stats.norm.pdf(mean) * stats.norm.pdf(log, 0, 0.3) * each.prod(-1, keepdims=True)
    return np.log(joint.sum() * (10 / 400) * (4 / 320))


def coins(x):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(mean + z, scale), obs=x)


@pytest.mark.slow
def test_diagnostics_of_a_flow_without_an_inverse_that_the_data_share():
    hidden = handlers.block(coins, hide=["z"])
    guide = autoguide.AutoGuideList(hidden)
    guide.append(AutoDiscrete(coins))
    guide.append(autoguide.AutoBNAFNormal(hidden, **OPTIONS["AutoBNAFNormal"]))
    svi = SVI(coins, guide, numpyro.optim.Adam(0.02), Reinforce_ELBO(4))
    state, update = svi.init(KEY, X), jax.jit(svi.update)
    for _ in range(300):
        state, _ = update(state, X)
    options = {"params": {**svi.get_params(state), **(state.mutable_state or {})}}
    whole = importance_diagnostics(KEY, (coins, guide), X, num_particles=200, **options).whole
    assert abs(whole.iwae - evidence_of_coins()) < 5 * whole.iwae_error
    assert whole.elbo < whole.iwae
    found = evaluate(KEY, (coins, guide), X, num_particles=50, **options)
    assert abs(found.elbo * 3 - whole.elbo) < 5 * np.hypot(3 * found.elbo_error, whole.elbo_error)


@pytest.mark.slow
def test_a_latent_that_is_computed_of_what_is_given_has_its_density():
    """In single precision it may be a rounding away, where a point has none; truth in double."""

    def model(x):
        a, b = (numpyro.sample(name, dist.Beta(2.0, 1.0)) for name in "ab")
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Bernoulli(a))
            numpyro.sample("x", dist.Normal(z + b, 1.0), obs=x)

    data = np.asarray(X, np.float32)
    jax.config.update("jax_enable_x64", False)
    try:
        key = jax.random.key(0)
        hidden = handlers.block(model, hide=["z"])
        guide = autoguide.AutoGuideList(hidden)
        guide.append(AutoDiscrete(model))
        guide.append(autoguide.AutoNormal(hidden))
        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Exact_ELBO())
        params = svi.get_params(svi.init(key, data))
        outer = collect(key, (model, guide), (data,), 60, ("latent",), params=params)
        found = collect_given_shared(
            *(key, (model, guide), (data,), outer, 60, 2, lambda d, _: d.shared_importance_weights),
            params=params,
        )
    finally:
        jax.config.update("jax_enable_x64", True)
    expected = 0.0
    for name in "ab":
        values = outer["given"][name].values.reshape(60).astype(np.float64)
        loc, scale = (float(params[f"{name}_auto_{part}"]) for part in ("loc", "scale"))
        log_q = stats.norm.logpdf(special.logit(values), loc, scale) - np.log(values - values**2)
        expected = expected + stats.beta.logpdf(values, 2, 1) - log_q
    np.testing.assert_allclose(np.array(found), np.stack([expected, expected], 1), atol=2e-4)
