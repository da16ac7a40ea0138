"""Programs whose structure changes, or that hold a `scan`: the right value, or a refusal.

The right values are sums over all states, of NumPyro's own log-densities or by plain NumPy.
"""

import functools
import itertools

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
    draws_of,
    normal,
    sequences,
)
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro_shim import quickly

from numpyro_dvae.diagnostics import importance_diagnostics, posterior_gap, to_arviz
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import (
    DAPS_ELBO,
    SVI,
    VIMCO_ELBO,
    DisARM_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
    Truncated_ELBO,
    TruncatedGuide,
    WakeSleep_ELBO,
)

# ------------------------------------------------------------------- structure is what a call has
from numpyro_dvae.programs.sites import Pair
from numpyro_dvae.programs.structure.path import path_taken


def chain(x):
    with numpyro.plate("sequences", len(x)):
        z = jnp.zeros(len(x))
        for t in range(x.shape[1]):
            z = numpyro.sample(f"z_{t}", dist.Bernoulli(0.2 + 0.6 * z))
            numpyro.sample(f"x_{t}", dist.Normal(2.0 * z, 1.0), obs=x[:, t])


def chain_guide(x):
    with numpyro.plate("sequences", len(x)):
        for t in range(x.shape[1]):
            numpyro.sample(f"z_{t}", dist.Bernoulli(logits=x[:, t] - 1))


def chain_loss(x):
    """Sum over all states of each sequence, in NumPy."""
    total = 0.0
    for row in np.asarray(x, float):
        q_one = 1 / (1 + np.exp(1 - row))
        for states in itertools.product((0, 1), repeat=len(row)):
            z, before = np.array(states), np.array((0, *states[:-1]))
            prior = np.where(z == 1, 0.2 + 0.6 * before, 0.8 - 0.6 * before)
            q = np.where(z == 1, q_one, 1 - q_one)
            log_ratio = (np.log(prior) + normal(row, 2 * z) - np.log(q)).sum()
            total += q.prod() * log_ratio
    return -total


def loss_of(elbo, name):
    """A loss of sequences, jitted; the same object whatever these look like."""
    return quickly(name, lambda key, x: elbo.loss(key, {}, chain, chain_guide, x))


def test_sequences_of_another_length_are_what_they_are():
    loss = loss_of(Exact_ELBO(), "exact of chains")
    for shape in ((4, 2), (4, 3), (7, 2), (4, 2)):
        x = sequences(*shape)
        np.testing.assert_allclose(loss(KEY, x), chain_loss(x), rtol=1e-10)


def test_sampled_losses_follow_the_structure():
    """The same draws whether or not the loss has met another structure before."""
    elbo, fresh = Reinforce_ELBO(4), Reinforce_ELBO(4)
    jax.eval_shape(lambda x: elbo.loss(KEY, {}, chain, chain_guide, x), sequences(4, 2))
    x = sequences(3, 3)
    found = [loss_of(each, f"chains {id(each)}")(KEY, x) for each in (elbo, fresh)]
    assert found[0] == found[1]


@pytest.mark.parametrize("loss", [DAPS_ELBO, VIMCO_ELBO, WakeSleep_ELBO, DisARM_ELBO])
def test_no_loss_refuses_another_structure(loss):
    elbo = loss(4)
    for shape in ((4, 2), (3, 3), (7, 2), (4, 2)):
        jax.eval_shape(lambda x: elbo.loss(KEY, {}, chain, chain_guide, x), sequences(*shape))


def labelled(x, label=None):
    with numpyro.plate("data", 3):
        label = numpyro.sample("label", dist.Categorical(jnp.ones(3) / 3), obs=label)
        numpyro.sample("x", dist.Normal(1.0 * label, 1.0), obs=x)


def labelled_guide(_x, label=None):
    if label is None:
        with numpyro.plate("data", 3):
            numpyro.sample("label", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))


def test_labels_may_come_and_go():
    x, label, elbo = np.array([0.3, -1.0, 2.0]), np.array([0, 1, 2]), Exact_ELBO()
    supervised = -(np.log(1 / 3) + normal(x, label)).sum()
    q, table = np.array([0.2, 0.3, 0.5]), normal(x[:, None], np.arange(3.0))
    unlabelled = -(q * (np.log(1 / 3) + table - np.log(q))).sum()

    @jax.jit
    def losses(x, label):
        with_label = elbo.loss(KEY, {}, labelled, labelled_guide, x, label)
        return with_label, elbo.loss(KEY, {}, labelled, labelled_guide, x)

    for _ in range(2):
        found = losses(x, label)
        np.testing.assert_allclose(found, (supervised, unlabelled), rtol=1e-10)


# -------------------------------------------------------------------------------------------- scan

SERIES = np.array([[0.3, -1.0, 1.2], [2.0, 0.1, -0.4]])
LENGTHS = np.array([3, 2])
TRANSITION, MEANS = jnp.array([[0.8, 0.2], [0.3, 0.7]]), jnp.array([-1.0, 1.5])
SLOPES = jnp.array([-0.5, 0.8])


def autoregressive(series):
    with numpyro.plate("series", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.3))

    def step(before, y):
        with numpyro.plate("series", 2):
            numpyro.sample("y", dist.Normal(SLOPES[z] * before, 1.0), obs=y)
        return y, None

    scan(step, jnp.zeros(2), series.T)


def autoregressive_guide(series):
    with numpyro.plate("series", 2):
        numpyro.sample("z", dist.Bernoulli(logits=0.3 * series[:, 0]))


def test_a_scan_of_observed_sites_is_summed_over_its_steps():
    before = np.concatenate([np.zeros((2, 1)), SERIES[:, :-1]], 1)
    likelihood = np.stack([normal(SERIES, s * before).sum(-1) for s in (-0.5, 0.8)], -1)
    q = 1 / (1 + np.exp(-0.3 * SERIES[:, 0]))
    q = np.stack([1 - q, q], -1)
    expected = -(q * (likelihood + np.log([0.7, 0.3]) - np.log(q))).sum()
    elbo = Exact_ELBO()
    programs = autoregressive, autoregressive_guide
    found = quickly("scan", lambda x: elbo.loss(KEY, {}, *programs, x))(SERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def drift(y):
    """A parameter and a coin that are to be outside of the operator that runs `step`."""
    return numpyro.param("drift", jnp.array(0.3)) * y


def scanned(series, inside):
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    outside = None if inside else drift(1.0)

    def step(before, y):
        slope = drift(1.0) if inside else outside
        numpyro.sample("y", dist.Normal(slope * before * z, 1.0), obs=y)
        return y, None

    scan(step, jnp.zeros(()), series)


def branched(series, inside):
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    outside = None if inside else drift(1.0)

    def branch(sign):
        def run(y):
            slope = drift(sign) if inside else sign * outside
            numpyro.sample("y", dist.Normal(slope * jnp.ones(3), 1.0).to_event(1), obs=y)

        return run

    cond(z > 0, branch(1.0), branch(-1.0), series)


def coin_guide(series, inside):
    numpyro.sample("z", dist.Bernoulli(0.6))


@pytest.mark.parametrize("model", [scanned, branched])
def test_a_parameter_in_a_scan_or_a_cond_is_refused(model):
    """NumPyro's handlers give it no value: it would keep its first one, without a gradient."""
    words = r"'drift' \(param\) is declared in a `(scan|cond)`.*before the `(scan|cond)`"
    elbo = Exact_ELBO()
    with pytest.raises(ValueError, match=words):
        elbo.loss(KEY, {"drift": 2.0}, model, coin_guide, SERIES[0], True)
    with pytest.raises(ValueError, match=words):
        SVI(model, coin_guide, numpyro.optim.SGD(0.1), elbo).init(KEY, SERIES[0], True)
    before = np.append(0.0, SERIES[0, :-1]) if model is scanned else np.ones(3)

    def of_states(slope):
        low = 0.0 if model is scanned else -slope
        terms = [normal(SERIES[0], s * before).sum() for s in (low, slope)]
        q, p = np.array([0.4, 0.6]), np.array([0.7, 0.3])
        return -(q * (np.array(terms) + np.log(p) - np.log(q))).sum()

    found, slope = quickly(
        f"moved out of {model.__name__}",
        jax.value_and_grad(
            lambda s: elbo.loss(KEY, {"drift": s}, model, coin_guide, SERIES[0], False)
        ),
    )(jnp.array(2.0))
    np.testing.assert_allclose(found, of_states(2.0), rtol=1e-10)
    wanted = (of_states(2.0 + 1e-5) - of_states(2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)


@pytest.mark.parametrize("elbo", [Exact_ELBO(), Reinforce_ELBO(2)])
def test_a_latent_in_a_branch_is_refused(elbo):
    """The host replays no draws there: it would draw another one than the guide has."""

    def program(series, inside):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        branches = [lambda _, p=p: numpyro.sample("w", dist.Bernoulli(p)) for p in (0.2, 0.8)]
        cond(z > 0, *branches, None)

    with pytest.raises(ValueError, match=r"'w' is drawn in a branch of `cond`.*jnp.where"):
        elbo.loss(KEY, {}, program, program, SERIES, True)


def test_a_site_that_shares_its_settings_with_a_scan_is_in_none():
    """The host writes into a dict that sites are given which step they are of."""
    settings = {}

    def model(series):
        def step(before, x):
            with numpyro.plate("series", 2):
                numpyro.sample("x", dist.Normal(before, 1.0), obs=x, infer=settings)
            return x, None

        scan(step, jnp.zeros(2), series.T)
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer=settings)
            numpyro.sample("w", dist.Normal(1.0 * z, 1.0), obs=series[:, 0], infer=settings)

    before = np.concatenate([np.zeros((2, 1)), SERIES[:, :-1]], 1)
    joint = np.stack([normal(SERIES[:, 0], z) + np.log((0.7, 0.3)[z]) for z in (0, 1)], -1)
    q = 1 / (1 + np.exp(-0.3 * SERIES[:, 0]))
    q = np.stack([1 - q, q], -1)
    expected = -(q * (joint - np.log(q))).sum() - normal(SERIES, before).sum()
    programs, elbo = (model, autoregressive_guide), Exact_ELBO()
    found = quickly("shared settings", lambda x: elbo.loss(KEY, {}, *programs, x))(SERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def hidden_markov(table, series, is_guide):
    def step(z, inputs):
        t, y = inputs
        with numpyro.plate("series", 2), handlers.mask(mask=t < LENGTHS):
            q = dist.Categorical(logits=table[z])
            z = numpyro.sample("z", q if is_guide else dist.Categorical(TRANSITION[z]))
            if not is_guide:
                numpyro.sample("y", dist.Normal(MEANS[z], 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), (jnp.arange(3), series.T))


def hidden_markov_loss(table):
    """Sum over the paths of each series, in NumPy where nothing is differentiated."""
    log_q, loss = jax.nn.log_softmax(table), 0.0
    for row, length in zip(SERIES, LENGTHS, strict=True):
        for path in itertools.product((0, 1), repeat=int(length)):
            steps = list(zip((0, *path[:-1]), path, strict=True))
            joint = sum(jnp.log(TRANSITION[a, b]) for a, b in steps)
            joint += sum(normal(y, MEANS[z]) for y, z in zip(row, path, strict=False))
            log_path = sum(log_q[a, b] for a, b in steps)
            loss -= jnp.exp(log_path) * (joint - log_path)
    return loss


TABLE = jnp.array([[0.4, -0.2], [-0.5, 0.3]])


@pytest.mark.parametrize("loss", SAMPLED)
def test_a_chain_in_a_scan_has_its_value_in_losses_that_sample(loss):
    """Series of two lengths, by masks."""
    elbo = loss(4)

    def both(key):
        def value(table):
            programs = [functools.partial(hidden_markov, table, is_guide=g) for g in (False, True)]
            return elbo.loss(key, {}, *programs, SERIES)

        return jax.value_and_grad(value)(TABLE)

    expected, slope = quickly("paths", jax.value_and_grad(hidden_markov_loss))(TABLE)
    values, slopes = draws_of(f"chain {loss.__name__}", both, 1000)
    assert_mean(values, expected)
    if loss is Reinforce_ELBO:
        assert_mean(slopes, slope)


def programs_of(table):
    return [functools.partial(hidden_markov, table, is_guide=g) for g in (False, True)]


@pytest.mark.parametrize("options", [{}, {"vectorize_particles": False}])
def test_states_of_a_chain_in_a_scan_are_listed(options):
    elbo = Exact_ELBO(**options)

    def both(table):
        return jax.value_and_grad(lambda t: elbo.loss(KEY, {}, *programs_of(t), SERIES))(table)

    expected, slope = quickly("paths", jax.value_and_grad(hidden_markov_loss))(TABLE)
    value, found = quickly(f"listed {options}", both)(TABLE)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(found, slope, rtol=1e-8)


def evidence_of_chains():
    found = []
    for row, length in zip(SERIES, LENGTHS, strict=True):
        log_p = np.array([0.0, -np.inf])
        for y in row[:length]:
            log_p = np.logaddexp.reduce(log_p[:, None] + np.log(np.asarray(TRANSITION)), 0)
            log_p = log_p + normal(y, np.asarray(MEANS))
        found.append(np.logaddexp.reduce(log_p))
    return np.array(found)


def test_the_gap_of_a_chain_in_a_scan():
    gap = posterior_gap(KEY, tuple(programs_of(TABLE)), SERIES)
    np.testing.assert_allclose(gap.log_evidence, evidence_of_chains(), rtol=1e-10)


def test_all_states_of_a_chain_in_a_scan_make_the_evidence():
    model = programs_of(TABLE)[0]
    guide = TruncatedGuide(model, 8)
    svi = SVI(model, guide, optax.sgd(0.0), Truncated_ELBO())
    found = jax.jit(lambda key, x: svi.evaluate(svi.init(key, x), x))(KEY, SERIES)
    np.testing.assert_allclose(found, -evidence_of_chains().sum(), rtol=1e-10)


@pytest.mark.slow
def test_sets_of_states_of_a_chain_in_a_scan():
    model = programs_of(TABLE)[0]
    few = TruncatedGuide(model, 3)
    svi = SVI(model, few, optax.sgd(0.0), Truncated_ELBO(sweeps=2))
    result = fit(KEY, svi, SERIES, num_steps=3, progress=False)
    assert result.losses[-1] >= -evidence_of_chains().sum()
    report = importance_diagnostics(KEY, result, SERIES, num_particles=25)
    np.testing.assert_allclose(report.whole.elbo, -result.losses[-1], rtol=1e-10)
    draws = to_arviz(KEY, result, SERIES, num_draws=25, groups=["posterior"]).posterior["z"]
    assert draws.dims == ("chain", "draw", "series", "z_step")


def test_ways_that_pad_by_one_less_are_told_apart():
    """The shapes are the same, and -1 and -2 have one hash in Python."""
    ways = []
    for pads in ((-1, -2), (-2, -1), (-1, -2)):

        def model(pads=pads):
            x = jax.lax.pad(jnp.arange(5.0), 0.0, [(*pads, 0)])
            numpyro.sample("x", dist.Normal(x, 1.0).to_event(1))

        ways.append(path_taken(KEY, Pair(model, lambda: None, (), {})))
    assert ways[0] == ways[2] != ways[1]
