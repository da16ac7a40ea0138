"""Enumeration by NumPyro's own log-densities, for the tests of any program in NumPyro."""

import itertools
import warnings

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.util import log_density
from numpyro_shim import quickly

from numpyro_dvae.infer import (
    DAPS_ELBO,
    VIMCO_ELBO,
    Reinforce_ELBO,
    WakeSleep_ELBO,
)

SAMPLED = [Reinforce_ELBO, DAPS_ELBO, VIMCO_ELBO, WakeSleep_ELBO]
KEY = jax.random.key(0)


def quiet(run):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the discrete sites share no plate")
        return run()


def exact_loss(model, guide, tables, *args, params=None):
    """Minus the ELBO by a plain sum; `tables` has all values of each latent."""
    params = params or {}

    def term(states):
        log_p, _ = log_density(handlers.condition(model, states), args, {}, params)
        log_q, _ = log_density(handlers.condition(guide, states), args, {}, params)
        return -jnp.exp(log_q) * (log_p - log_q)

    rows = list(itertools.product(*tables.values()))
    states = {n: jnp.stack([row[i] for row in rows]) for i, n in enumerate(tables)}
    return jax.lax.map(term, states).sum()


def bits(*shape):
    """All binary arrays of a shape."""
    size = int(np.prod(shape))
    return [jnp.array(z, int).reshape(shape) for z in itertools.product((0, 1), repeat=size)]


def draws_of(name, function, times=200, seed=0):
    """Results of a function of a key for so many keys, compiled once."""
    keys = jax.random.split(jax.random.key(seed), times)
    return quickly(name, lambda keys: jax.lax.map(function, keys))(keys)


def assert_mean(draws, expected):
    """The mean of draws is within five standard errors."""
    draws = np.asarray(draws)
    error = draws.std(0, ddof=1) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - np.asarray(expected)) < 5 * error + 1e-12).all(), (
        draws.mean(0),
        expected,
        error,
    )


def normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def sequences(*shape):
    return jnp.asarray(np.random.default_rng(shape[0]).normal(size=shape))
