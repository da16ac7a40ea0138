"""Guides of any kind that NumPyro's protocols allow: the right value, or a refusal.

The right values are sums over all states, of NumPyro's own log-densities or by plain NumPy.
"""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from any_numpyro import (
    KEY,
    SAMPLED,
    assert_mean,
    bits,
    draws_of,
    exact_loss,
    normal,
    quiet,
    sequences,
)
from numpyro import handlers
from numpyro.infer import TraceGraph_ELBO, autoguide
from numpyro_shim import quickly
from quick_numpyro import QuickSVI

from numpyro_dvae.infer import (
    DAPS_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
)

# --------------------------------------------------------------------------- NumPyro's protocols


def coin():
    numpyro.sample("b", dist.Bernoulli(0.5))


def weighted_coin():
    logit = numpyro.param("logit", 0.5)
    numpyro.sample("b", dist.Bernoulli(logits=logit))
    numpyro.factor("f", 3 * logit)


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED, DisARM_ELBO])
def test_a_factor_in_a_guide_belongs_to_log_q(loss):
    p = 1 / (1 + np.exp(-0.5))
    expected = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)) + 1.5  # 1.530
    slope = p * (1 - p) * 0.5 + 3  # 3.118
    elbo = Exact_ELBO() if loss is Exact_ELBO else loss(4)

    def both(key):
        def value(logit):
            return elbo.loss(key, {"logit": logit}, coin, weighted_coin)

        return jnp.stack(jax.value_and_grad(value)(0.5))

    if loss is Exact_ELBO:
        np.testing.assert_allclose(jax.jit(both)(KEY), (expected, slope), rtol=1e-10)
        return
    draws = draws_of(f"factor {loss.__name__}", both)
    assert_mean(draws[:, 0], expected)
    if loss in (Reinforce_ELBO, DisARM_ELBO):
        assert_mean(draws[:, 1], slope)


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED, DisARM_ELBO])
def test_event_shapes_that_disagree_are_refused(loss):
    def three():
        numpyro.sample("z", dist.Bernoulli(0.3 * jnp.ones(3)).to_event(1))

    def single():
        numpyro.sample("z", dist.Bernoulli(jnp.array([0.3])).to_event(1))

    with pytest.raises(ValueError, match=r"'z' has event shape \(1,\).*\(3,\)"):
        loss().loss(KEY, {}, three, single)


def nothing():
    pass


def test_programs_without_latents_or_without_sites():
    def observed():
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=1.0)

    @jax.jit
    def losses(key):
        elbos = Exact_ELBO(), Reinforce_ELBO(3), DAPS_ELBO(3)
        programs = observed, nothing
        return [[elbo.loss(key, {}, f, nothing) for elbo in elbos] for f in programs]

    found = losses(KEY)
    np.testing.assert_allclose(found[0], -normal(1.0, 0.0), rtol=1e-12)
    np.testing.assert_array_equal(found[1], 0.0)


@pytest.mark.parametrize("crossed", [False, True])
def test_sites_that_share_no_plate_have_one_weight(crossed):
    def sites(p, q, y):
        columns, rows = numpyro.plate("columns", 2, dim=-1), numpyro.plate("rows", 2, dim=-2)
        with columns:
            x = numpyro.sample("x", dist.Bernoulli(p))
        with rows:
            z = numpyro.sample("z", dist.Bernoulli(q).expand([2, 1]))
        if y is not None and crossed:
            with rows, columns:
                numpyro.sample("y", dist.Normal(x * z, 1.0), obs=y)

    def model(params, y):
        sites(0.3, 0.6, y)

    def guide(params, y):
        sites(jax.nn.sigmoid(params), 0.4, None)

    y, elbo, exact = sequences(2, 2), Reinforce_ELBO(4), Exact_ELBO()

    def expected(a):
        return exact_loss(model, guide, {"x": bits(2), "z": bits(2, 1)}, a, y)

    value, slope = quickly(f"crossed by hand {crossed}", jax.value_and_grad(expected))(0.3)
    of_exact = jax.value_and_grad(lambda a: exact.loss(KEY, {}, model, guide, a, y))
    with pytest.warns(UserWarning, match="share no plate"):
        found = quickly(f"crossed {crossed}", of_exact)(0.3)
    np.testing.assert_allclose(found, (value, slope), rtol=1e-10)

    def both(key):
        return jnp.stack(jax.value_and_grad(lambda a: elbo.loss(key, {}, model, guide, a, y))(0.3))

    draws = quiet(lambda: draws_of(f"crossed sampled {crossed}", both, 400))
    assert_mean(draws, (value, slope))


# -------------------------------------------------------------------------------------- autoguides


def local(x):
    """A positive and a discrete latent for each datum."""
    with numpyro.plate("data", 3):
        size = numpyro.sample("size", dist.LogNormal(0.0, 1.0))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(2.0 * z * size, 1.0), obs=x)


def clusters(x):
    with numpyro.plate("clusters", 2):
        locs = numpyro.sample("locs", dist.Normal(0.0, 3.0))
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@pytest.mark.parametrize(
    ("auto", "model"),
    [("AutoDiagonalNormal", local), ("AutoDAIS", clusters)],
)
def test_an_autoguide_beside_a_discrete_site_has_the_hosts_value_and_gradient(auto, model):
    """Its values are under no plate; one joint latent is behind them."""
    hidden = handlers.block(handlers.seed(model, 0), hide=["z"])
    options = {"K": 2} if auto == "AutoDAIS" else {}
    auto = getattr(autoguide, auto)(hidden, **options)
    x = jnp.array([0.0, 1.0, 3.0])

    def guide(x):
        auto(x)
        logits = numpyro.param("logits", jnp.array([0.3, -0.2, 0.8]))
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Bernoulli(logits=logits))

    svi = QuickSVI(model, guide, optax.sgd(0.0), Reinforce_ELBO(4))
    params = svi.get_params(svi.init(KEY, x))

    def draws(elbo, times):
        def both(key):
            value, grads = jax.value_and_grad(
                lambda params: elbo.loss(key, params, model, guide, x)
            )(params)
            return value, grads["logits"], grads.get("auto_loc", 0.0)

        name = f"{type(auto).__name__} {model.__name__} {type(elbo).__name__}"
        return draws_of(name, both, times)

    ours, hosts = draws(Reinforce_ELBO(4), 400), draws(TraceGraph_ELBO(), 1600)
    for one, other in zip(ours, hosts, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        errors = [each.std(0) / len(each) ** 0.5 for each in (one, other)]
        error = np.hypot(*errors) + 1e-12
        assert (np.abs(one.mean(0) - other.mean(0)) < 5 * error).all()


def test_more_codes_in_the_guide_than_in_the_model_are_refused():
    def program(num_codes):
        def run():
            with numpyro.plate("data", 2):
                numpyro.sample("z", dist.Categorical(jnp.ones(num_codes) / num_codes))

        return run

    for loss in (Reinforce_ELBO(4), Exact_ELBO()):
        with pytest.raises(ValueError, match="'z' has 5 values in the guide, but 3 in the model"):
            loss.loss(KEY, {}, program(3), program(5))
    assert np.isfinite(Exact_ELBO().loss(KEY, {}, program(5), program(3)))

    def coins():
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(0.4))

    with pytest.raises(ValueError, match="'z' has 3 values in the guide, but 2 in the model"):
        Reinforce_ELBO(4).loss(KEY, {}, coins, program(3))


@pytest.mark.parametrize("num_bits", [40, 20_000])
def test_states_beyond_number_are_told_in_a_few_words(num_bits):
    def program():
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(0.5 * jnp.ones(num_bits)).to_event(1))

    with pytest.raises(ValueError, match=rf"needs at least 2\*\*{num_bits} states") as error:
        Exact_ELBO().loss(KEY, {}, program, program)
    assert len(str(error.value)) < 200
