"""Batch dims under no plate and steps of a `scan`: as NumPyro counts them, and in reports."""

import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY, assert_mean, draws_of, normal, sequences  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

from numpyro_dvae.diagnostics import (  # noqa: E402
    code_usage,
    discrete_posterior,
    importance_diagnostics,
    posterior_gap,
    to_arviz,
)
from numpyro_dvae.infer import DAPS_ELBO, Exact_ELBO, Reinforce_ELBO  # noqa: E402

X = np.array([[1.3, 0.2, -0.4], [0.5, 2.0, 0.1]])
LOGITS = np.array([[0.3, -0.2, 0.1], [0.5, -1.0, 0.4]])


# ------------------------------------------------------------------------- dims under no plate


def open_model():
    """Coins that are under a plate in one dim, and all seen together beside."""
    with numpyro.plate("rows", 2, dim=-2):
        z = numpyro.sample("z", dist.Bernoulli(0.4 * jnp.ones((2, 3))))
        numpyro.sample("x", dist.Normal(z + 0.5 * z[:, ::-1], 1.0), obs=X)


def open_guide():
    logits = numpyro.param("logits", LOGITS)
    with numpyro.plate("rows", 2, dim=-2):
        numpyro.sample("z", dist.Bernoulli(logits=logits))


def open_exact():
    loss, slope, q = 0.0, np.zeros((2, 3)), 1 / (1 + np.exp(-LOGITS))
    for row, (x, p) in enumerate(zip(X, q, strict=True)):
        for z in map(np.array, itertools.product((0, 1), repeat=3)):
            log_q = np.log(np.where(z, p, 1 - p)).sum()
            log_p = np.log(np.where(z, 0.4, 0.6)).sum() + normal(x, z + 0.5 * z[::-1]).sum()
            loss -= np.exp(log_q) * (log_p - log_q)
            slope[row] -= np.exp(log_q) * (log_p - log_q) * (z - p)
    return loss, slope


@pytest.mark.parametrize("loss", [Reinforce_ELBO, DAPS_ELBO])
def test_a_dim_under_no_plate_is_summed(loss):
    def both(key):
        evaluate = jax.value_and_grad(lambda p: loss(4).loss(key, p, open_model, open_guide))
        value, slopes = evaluate({"logits": jnp.asarray(LOGITS)})
        return value, slopes["logits"]

    values, slopes = draws_of(f"undeclared {loss.__name__}", both, 400)
    expected = open_exact()
    assert_mean(values, expected[0])
    if loss is Reinforce_ELBO:  # a policy search has a slope of its own
        assert_mean(slopes, expected[1])


def test_its_states_are_not_listed():
    with pytest.raises(ValueError, match=r"'z' has batch shape \(2, 3\) with a dim that is under"):
        Exact_ELBO().loss(KEY, {"logits": LOGITS}, open_model, open_guide)


def test_a_scan_within_a_scan_is_summed_over_both():
    y = sequences(3, 4)

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3))

        def inner(mean, value):
            numpyro.sample("y", dist.Normal(mean + z, 1.0), obs=value)
            return mean, None

        scan(lambda mean, row: (scan(inner, mean, row)[0], None), jnp.array(0.1), y)

    def guide():
        numpyro.sample("z", dist.Bernoulli(0.3))

    expected = -sum(p * normal(y, 0.1 + z).sum() for z, p in ((0, 0.7), (1, 0.3)))
    np.testing.assert_allclose(Exact_ELBO().loss(KEY, {}, model, guide), expected, rtol=1e-5)


def test_a_branch_on_a_draw_is_refused_in_words():
    def model():
        if numpyro.sample("z", dist.Bernoulli(0.3)):
            numpyro.sample("x", dist.Normal(1.0, 1.0), obs=0.3)

    def guide():
        numpyro.sample("z", dist.Bernoulli(0.3))

    with pytest.raises(ValueError, match=r"asks for the value of an array, by `if`.*jnp.where"):
        DAPS_ELBO(4).loss(KEY, {}, model, guide)


def counts(of_count):
    def step(before, logit):
        n = numpyro.sample("n", of_count(logit))
        return n, None

    scan(step, 0, jnp.array([0.3, -0.5]))


def test_counts_of_a_scan_are_listed_as_categories():
    """NumPyro makes an array of the numbers of trials of all steps; the advice works."""
    with pytest.raises(ValueError, match=r"'n' .Binomial.* in a `scan`.*p\[..., None\]"):
        Exact_ELBO().loss(KEY, {}, *[lambda: counts(lambda p: dist.Binomial(2, logits=p))] * 2)

    def as_categories(shift):
        def of_count(p):
            binomial = dist.Binomial(2, logits=p[..., None] + shift)
            return dist.Categorical(logits=binomial.log_prob(jnp.arange(3)))

        return lambda: counts(of_count)

    def probs(shift):
        p = 1 / (1 + np.exp(-np.array([[0.3], [-0.5]]) - shift))
        return np.concatenate([(1 - p) ** 2, 2 * p * (1 - p), p**2], -1)

    expected = (probs(0.4) * np.log(probs(0.4) / probs(0.0))).sum()
    found = Exact_ELBO().loss(KEY, {}, as_categories(0.0), as_categories(0.4))
    assert float(found) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- diagnostics of a scan

CHANCES = np.array([[0.8, 0.2], [0.3, 0.7]])
Y = np.asarray(sequences(3, 4))
LENGTHS = np.array([3, 2, 1, 3])


def chain(y, is_model):
    def step(z, now):
        time, value = now
        with numpyro.plate("series", 4), handlers.mask(mask=time < LENGTHS):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(CHANCES)[z]))
            if is_model:
                numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=value)
        return z, None

    scan(step, jnp.zeros(4, int), (jnp.arange(3), y))


PAIR = (lambda y: chain(y, True)), (lambda y: chain(y, False))


def evidence():
    """Of each series, by the forward algorithm; what a mask silences is not there."""
    found = []
    for series, length in enumerate(LENGTHS):
        log_p = np.array([0.0, -np.inf])
        for time in range(length):
            log_p = np.logaddexp.reduce(log_p[:, None] + np.log(CHANCES), 0)
            log_p = log_p + normal(Y[time, series], 2.0 * np.arange(2))
        found.append(np.logaddexp.reduce(log_p))
    return np.array(found)


def test_weights_of_a_chain_tend_to_the_evidence():
    report = importance_diagnostics(KEY, PAIR, Y, num_particles=2000)
    apart = np.abs(report.iwae - evidence())
    assert (apart < 5 * report.iwae_error + 1e-4).all(), (report.iwae, evidence())
    assert report.is_bound.all()


def beside_a_switch(y, is_model):
    with numpyro.plate("series", 4):
        on = numpyro.sample("on", dist.Bernoulli(0.5))
        if is_model:
            numpyro.sample("told", dist.Normal(on, 1.0), obs=jnp.zeros(4))
    chain(y, is_model)


@pytest.mark.slow
def test_states_of_a_chain_are_listed_beside_those_of_another_latent():
    """Here one is the same for all series, the other's steps are apart in each."""
    pair = (lambda y: beside_a_switch(y, True)), (lambda y: beside_a_switch(y, False))
    report = posterior_gap(KEY, pair, Y)
    told = np.logaddexp.reduce(normal(0.0, np.arange(2))) - np.log(2)
    np.testing.assert_allclose(report.log_evidence, evidence() + told, rtol=1e-5)


@pytest.mark.slow
def test_steps_are_a_dim_of_their_own():
    data = to_arviz(KEY, PAIR, Y, num_draws=25)
    assert data.posterior["z"].dims == ("chain", "draw", "series", "z_step")
    assert data.log_likelihood["y"].shape[-1] == LENGTHS.sum()  # what a mask silences is not there
    values = np.asarray(data.observed_data["y"])
    seen = np.arange(3) < LENGTHS[:, None]
    np.testing.assert_allclose(values, np.where(seen, Y.T, np.nan), rtol=1e-6)
    first = discrete_posterior(KEY, PAIR, Y, num_draws=2000)["z"].probs[:, 0, 1]
    assert (np.abs(first - CHANCES[0, 1]) < 5 * np.sqrt(0.16 / 2000)).all()
    assert code_usage(KEY, PAIR, Y, num_draws=4)["z"].counts.shape == (3, 2)
