"""Programs that bring keys, or a `sample_shape`: as ones without, in values and draws."""

import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY, normal  # noqa: E402
from numpyro.handlers import seed, substitute  # noqa: E402

from numpyro_dvae.diagnostics import importance_diagnostics  # noqa: E402
from numpyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
)
from numpyro_dvae.programs.run import dream  # noqa: E402
from numpyro_dvae.programs.sites import Pair  # noqa: E402
from numpyro_dvae.programs.structure.layout import find_layout  # noqa: E402

X = np.array([-1.0, 1.0])
LOGIT = 0.3
PARAMS = {"logit": jnp.array(LOGIT)}


def coin(name, prior=None, **options):
    logit = LOGIT if prior else numpyro.param("logit", LOGIT)
    fn = dist.Bernoulli(prior) if prior else dist.Bernoulli(logits=logit)
    return numpyro.sample(name, fn, **options)


def right():
    """Minus the ELBO of two coins, and its slope, by their states."""

    def loss(logit):
        q, total = 1 / (1 + np.exp(-logit)), 0.0
        for z in map(np.array, itertools.product((0, 1), repeat=2)):
            log_q = np.log(np.where(z, q, 1 - q)).sum()
            log_p = np.log(np.where(z, 0.4, 0.6)).sum() + normal(X, 2.0 * z).sum()
            total += np.exp(log_q) * (log_q - log_p)
        return total

    return loss(LOGIT), (loss(LOGIT + 1e-6) - loss(LOGIT - 1e-6)) / 2e-6


def mean_and_error(elbo, model, guide, num_calls):
    def values(key):
        return jax.value_and_grad(lambda p: elbo.loss(key, p, model, guide))(PARAMS)

    keys = jax.random.split(KEY, num_calls)
    loss, grads = jax.jit(lambda keys: jax.lax.map(values, keys))(keys)
    found = np.stack([loss, grads["logit"]], -1)
    return found.mean(0), found.std(0) / num_calls**0.5


def assert_right(elbo, model, guide, num_calls=100):
    mean, error = mean_and_error(elbo, model, guide, num_calls)
    assert (np.abs(mean - right()) <= 5 * error + 1e-5).all(), (mean, error, right())


# ------------------------------------------------------------------------------ a `sample_shape`


def shaped_model():
    z = coin("z", 0.4, sample_shape=(2,))
    with numpyro.plate("data", 2):
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X)


def shaped_guide():
    coin("z", sample_shape=(2,))


def expanded_guide():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", LOGIT)).expand([2]))


def declared(prior=None):
    logit = LOGIT if prior else numpyro.param("logit", LOGIT)
    fn = dist.Bernoulli(prior) if prior else dist.Bernoulli(logits=logit)
    return numpyro.sample("z", fn.expand([2]).to_event(1))


def declared_model():
    z = declared(0.4)
    with numpyro.plate("data", 2):
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X)


def plated_model():
    with numpyro.plate("rows", 3, dim=-1):
        z = coin("z", 0.4, sample_shape=(2, 1))
        numpyro.sample("x", dist.Normal(z[0] + 2.0 * z[1], 1.0), obs=jnp.array([1.3, 0.2, -0.4]))


def plated_guide():
    with numpyro.plate("rows", 3, dim=-1):
        coin("z", sample_shape=(2, 1))


def test_states_of_a_sample_shape_are_not_listed_before_it_is_declared():
    for guide in (shaped_guide, expanded_guide):
        with pytest.raises(ValueError, match=r"a `sample_shape` by .expand\(...\).to_event\(1\)"):
            Exact_ELBO().loss(KEY, PARAMS, shaped_model, guide)
    assert_right(Exact_ELBO(), declared_model, declared, 1)


@pytest.mark.parametrize("loss", [Reinforce_ELBO, DisARM_ELBO])
def test_losses_that_sample_take_a_sample_shape(loss):
    assert_right(loss(num_particles=10), shaped_model, shaped_guide)


def test_a_sample_shape_is_left_of_plates():
    q, total = 1 / (1 + np.exp(-LOGIT)), 0.0
    for x in (1.3, 0.2, -0.4):
        for z in map(np.array, itertools.product((0, 1), repeat=2)):
            log_q = np.log(np.where(z, q, 1 - q)).sum()
            log_p = np.log(np.where(z, 0.4, 0.6)).sum() + normal(x, z[0] + 2.0 * z[1])
            total += np.exp(log_q) * (log_q - log_p)
    elbo = Reinforce_ELBO(num_particles=10)
    mean, error = mean_and_error(elbo, plated_model, plated_guide, 100)
    assert abs(mean[0] - total) < 5 * error[0]


# ----------------------------------------------------------------------------------------- keys


def plain_model():
    with numpyro.plate("data", 2):
        z = coin("z", 0.4)
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X)


def plain_guide():
    with numpyro.plate("data", 2):
        coin("z")


def keyed_guide():
    with numpyro.plate("data", 2):
        coin("z", rng_key=jax.random.key(1))


def seeding_guide():
    with seed(rng_seed=1):
        plain_guide()


SEEDED = {
    "a handler": (plain_model, seed(plain_guide, 1)),
    "a handler of both": (seed(plain_model, 1), substitute(seed(plain_guide, 1), data={})),
    "inside of it": (plain_model, seeding_guide),
    "a site": (plain_model, keyed_guide),
}


@pytest.mark.parametrize("way", SEEDED)
def test_a_key_that_a_program_brings_is_not_the_key_of_its_draws(way):
    model, guide = SEEDED[way]
    elbo = Reinforce_ELBO(num_particles=10)
    found = elbo.loss(KEY, PARAMS, model, guide)
    assert found == elbo.loss(KEY, PARAMS, plain_model, plain_guide)
    assert found != elbo.loss(jax.random.key(7), PARAMS, model, guide)


def test_dreams_of_a_seeded_model_are_not_one_dream():
    model, guide = SEEDED["a handler of both"]

    def dreamt(key, *programs):
        pair = Pair(*programs, (), {})
        pair = pair._replace(layout=find_layout(KEY, pair))
        return dream(key, pair, lambda made, args, kwargs: (args, kwargs))

    for key in jax.random.split(KEY, 4):
        found = dreamt(key, model, guide), dreamt(key, plain_model, plain_guide)
        np.testing.assert_array_equal(*found)


def test_searches_and_reports_take_seeded_programs():
    model, guide = SEEDED["a handler of both"]
    _, error = mean_and_error(DAPS_ELBO(num_particles=4), model, guide, 10)
    assert (error > 0).all()
    pairs = (plain_model, plain_guide), (model, guide)
    found = [
        importance_diagnostics(KEY, pair, num_particles=50, params=PARAMS).elbo for pair in pairs
    ]
    np.testing.assert_array_equal(*found)
