"""Programs beyond the plain data plate: the right value, or a refusal that says what to do instead.

The right values are sums over all states, of NumPyro's own log-densities or by plain NumPy.
"""

import functools
import itertools
import warnings

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import TraceGraph_ELBO, autoguide
from numpyro.infer.util import log_density
from numpyro_shim import quickly

from numpyro_dvae.diagnostics import posterior_gap
from numpyro_dvae.fit import linear_schedule
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
from numpyro_dvae.infer.memory import LOSS_MEMORY
from numpyro_dvae.infer.svi import loss_state
from numpyro_dvae.programs.record import _entropy as entropy_of

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


# ------------------------------------------------------------------- structure is what a call has


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


def sequences(*shape):
    return jnp.asarray(np.random.default_rng(shape[0]).normal(size=shape))


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

    svi = SVI(model, guide, optax.sgd(0.0), Reinforce_ELBO(4))
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


def test_losses_that_list_states_refuse_a_chain_in_a_scan():
    programs = [functools.partial(hidden_markov, TABLE, is_guide=g) for g in (False, True)]
    with pytest.raises(ValueError, match=r"site 'z' is drawn in a `scan`"):
        Exact_ELBO().loss(KEY, {}, *programs, SERIES)
    guide = TruncatedGuide(programs[0], 2)
    svi = SVI(programs[0], guide, optax.sgd(0.0), Truncated_ELBO())
    with pytest.raises(ValueError, match=r"site 'z' is drawn in a `scan`"):
        svi.init(KEY, SERIES)


# --------------------------------------------------------------------------------------- scales

DATA, PRIOR = np.array([0.4, 3.0]), np.array([0.2, 0.3, 0.5])
LOGITS = np.array([0.1, -0.3, 0.4])


def mixture(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(PRIOR)))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def mixture_guide(x):
    with numpyro.plate("data", len(x)):
        logits = numpyro.param("logits", jnp.asarray(LOGITS))
        numpyro.sample("z", dist.Categorical(logits=jnp.broadcast_to(logits, (len(x), 3))))


@functools.cache
def evaluated(loss):
    """Value and gradient, as compiled functions of (beta, scale, key): plain, one scale, by datum.

    `beta` is a schedule's, so that one compilation serves all.
    """
    options = {} if loss is Exact_ELBO else {"num_particles": 4}
    options |= {"per_datum": True} if loss is DAPS_ELBO else {}

    def run(kind, beta, scale, key):
        elbo = loss(beta=lambda step: beta, **options)
        programs = mixture, mixture_guide
        if kind != "plain":
            programs = [handlers.scale(f, scale=2.5 if kind == "one" else scale) for f in programs]
        params = {"logits": jnp.asarray(LOGITS)}

        def value(params):
            memory = {LOSS_MEMORY: elbo.init_loss_memory()}
            return elbo.loss(key, params | memory, *programs, DATA)

        value, grads = jax.value_and_grad(value)(params)
        return value, grads["logits"]

    return {
        kind: quickly(f"scales {loss.__name__} {kind}", functools.partial(run, kind))
        for kind in ("plain", "one", "data")
    }


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_a_scale_of_both_programs_scales_loss_and_gradient(loss, beta):
    """Whatever weighs the draws: 2.5 times as much, to rounding, from the same draws."""
    runs, none = evaluated(loss), np.ones(2)
    value, gradient = runs["plain"](beta, none, KEY)
    found = runs["one"](beta, none, KEY)
    np.testing.assert_allclose(found[0], 2.5 * value, rtol=1e-12)
    np.testing.assert_allclose(found[1], 2.5 * gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_a_scale_for_each_datum_weighs_each(loss, beta):
    """By linearity: the parts add up."""
    run = evaluated(loss)["data"]
    scales = map(np.array, ([1.0, 2.0], [2.0, 1.0], [4.0, 5.0]))
    results = [run(beta, scale, KEY) for scale in scales]
    (one, slope_one), (two, slope_two), (both, slope_both) = results
    np.testing.assert_allclose(both, 2.0 * one + two, rtol=1e-12)
    np.testing.assert_allclose(slope_both, 2.0 * slope_one + slope_two, rtol=1e-10, atol=1e-14)


def mixture_losses(beta):
    """Of each datum, minus the ELBO, and the gradient of minus the beta-ELBO, in NumPy."""
    q = np.exp(LOGITS) / np.exp(LOGITS).sum()
    likelihood, rate = normal(DATA[:, None], 2.0 * np.arange(3)), np.log(q / PRIOR)
    terms = likelihood - beta * rate
    slopes = -q * (terms - (q * terms).sum(-1, keepdims=True))
    return -(q * (likelihood - rate)).sum(-1), slopes


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_scales_have_the_values_of_enumeration(beta):
    scale = np.array([3.0, 0.5])
    losses, slopes = mixture_losses(beta)
    value, gradient = evaluated(Exact_ELBO)["data"](beta, scale, KEY)
    np.testing.assert_allclose(value, scale @ losses, rtol=1e-10)
    np.testing.assert_allclose(gradient, scale @ slopes, rtol=1e-10)
    keys = jax.random.split(KEY, 1000)
    found = [evaluated(Reinforce_ELBO)["data"](beta, scale, key) for key in keys]
    assert_mean([float(value) for value, _ in found], scale @ losses)
    assert_mean([np.asarray(slope) for _, slope in found], scale @ slopes)


def test_a_scaled_model_with_a_truncated_posterior():
    half = handlers.scale(mixture, scale=0.5)
    guide = TruncatedGuide(half, 3)
    svi = SVI(half, guide, optax.adam(1e-2), Truncated_ELBO(sweeps=0))
    found = quickly("half", lambda key: svi.evaluate(svi.init(key, DATA), DATA))(KEY)
    evidence = np.log((PRIOR * np.exp(normal(DATA[:, None], 2.0 * np.arange(3)))).sum(-1))
    np.testing.assert_allclose(found, -0.5 * evidence.sum(), rtol=1e-10)


# ---------------------------------------------------------------------------- impossible states


def hard(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.factor("only_0", jnp.where(z == 0, 0.0, -jnp.inf))


def hard_guide(x):
    with numpyro.plate("data", len(x)):
        logits = numpyro.param("logits", jnp.zeros(3))
        numpyro.sample("z", dist.Categorical(logits=jnp.broadcast_to(logits, (len(x), 3))))


@pytest.mark.parametrize("loss", [Exact_ELBO, *SAMPLED])
def test_an_infinite_loss_is_infinite_and_its_gradient_finite(loss):
    elbo = Exact_ELBO() if loss is Exact_ELBO else loss(4)

    def both(key):
        def value(logits):
            return elbo.loss(key, {"logits": logits}, hard, hard_guide, jnp.zeros(2))

        return jax.value_and_grad(value)(jnp.zeros(3))

    values, gradients = draws_of(f"hard {loss.__name__}", both, 40)
    assert not np.isnan(values).any()
    assert np.isposinf(values).any()
    assert np.isfinite(gradients).all()
    if loss is Exact_ELBO:
        assert np.isposinf(values).all()


@pytest.mark.parametrize("loss", [*SAMPLED])
def test_a_datum_without_possible_draws_leaves_the_others_alone(loss):
    """The gradient of the other datum is that which it has by itself, from the same draws."""

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=jnp.abs(x))
            numpyro.factor("possible", jnp.where(x > 0, 0.0, -jnp.inf))

    def guide(x):
        with numpyro.plate("data", len(x)):
            table = numpyro.param("table", jnp.zeros((2, 3)))
            numpyro.sample("z", dist.Categorical(logits=table))

    elbo = loss(4, **({"per_datum": True} if loss is DAPS_ELBO else {}))

    def gradient(x):
        def value(table):
            return elbo.loss(jax.random.key(3), {"table": table}, model, guide, x)

        return jax.grad(value)(jnp.zeros((2, 3)))

    gradient = quickly(f"dead {loss.__name__}", gradient)
    alive, dead = gradient(np.array([0.5, 1.2])), gradient(np.array([0.5, -1.2]))
    np.testing.assert_allclose(dead[0], alive[0], rtol=1e-12)
    np.testing.assert_array_equal(dead[1], 0.0)
    assert np.abs(alive[1]).max() > 0  # the test of the test


@pytest.mark.parametrize(
    "elbo",
    [DAPS_ELBO(4, target_rate=1.0), Reinforce_ELBO(4, target_rate=1.0), Reinforce_ELBO(1)],
    ids=["DAPS", "Reinforce", "moving average"],
)
def test_a_bad_batch_is_not_remembered(elbo):
    svi = SVI(hard, hard_guide, optax.sgd(0.0), elbo)
    state = quickly(f"start {id(elbo)}", lambda key: svi.init(key, jnp.zeros(2)))(KEY)
    step = quickly(f"step {id(elbo)}", lambda state: svi.update(state, jnp.zeros(2)))
    losses = []
    for _ in range(6):
        state, loss = step(state)
        losses.append(float(loss))
    assert np.isposinf(losses).any()
    memory = loss_state(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(memory))


@pytest.mark.parametrize("loss", [VIMCO_ELBO, WakeSleep_ELBO])
def test_a_schedule_through_zero_has_its_limit_there(loss):
    """At 0 the objective is the best particle's."""
    run = evaluated(loss)["plain"]
    value, gradient = run(0.0, np.ones(2), KEY)
    near = run(1e-5, np.ones(2), KEY)
    np.testing.assert_allclose(value, near[0], rtol=1e-10)
    np.testing.assert_allclose(gradient, near[1], rtol=1e-3, atol=1e-3)
    start = linear_schedule(0.0, 1.0, 10)(jnp.zeros((), int))
    value, gradient = run(start, np.ones(2), KEY)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def absorbing(y):
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        late = numpyro.sample("late", dist.Bernoulli(0.5 * z))
        numpyro.sample("y", dist.Normal(late, 1.0), obs=y)


def absorbing_guide(a):
    p = jax.nn.sigmoid(a)
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("late", dist.Bernoulli(p * z))


def absorbing_loss(a):
    """Of the states 00, 10 and 11, as no other is possible."""
    p, y = jax.nn.sigmoid(a), jnp.array([0.3, 10.0])
    qs = jnp.stack([1 - p, p * (1 - p), p * p])
    likelihood = normal(y[:, None], jnp.array([0.0, 0.0, 1.0]))
    return -(qs * (likelihood + jnp.log(jnp.array([0.5, 0.25, 0.25])) - jnp.log(qs))).sum()


@pytest.mark.parametrize(
    "elbo",
    [
        Exact_ELBO(),
        Reinforce_ELBO(4),
        Reinforce_ELBO(4, closed_form_entropy=False),
        DisARM_ELBO(4),
    ],
    ids=["Exact", "Reinforce", "sampled entropy", "DisARM"],
)
def test_guide_probabilities_of_exactly_0_have_a_gradient(elbo):
    """Scores of tens of nats at states that are certain, too."""
    y = jnp.array([0.3, 10.0])
    expected = quickly("absorbing", lambda a: jnp.stack(jax.value_and_grad(absorbing_loss)(a)))(0.2)

    def both(key):
        def value(a):
            return elbo.loss(key, {}, lambda: absorbing(y), lambda: absorbing_guide(a))

        return jnp.stack(jax.value_and_grad(value)(0.2))

    draws = draws_of(f"absorbing {id(elbo)}", both, 1 if elbo.num_particles == 1 else 1000)
    if elbo.num_particles == 1:
        np.testing.assert_allclose(draws[0], expected, rtol=1e-10)
    else:
        assert_mean(draws, expected)


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_entropies_at_certainty_are_0_with_a_gradient_of_0(certain):
    def entropies(p):
        binary = dist.Bernoulli(p).expand([2]).to_event(1)
        several = dist.Categorical(jnp.stack([p, 1 - p, 0.0 * p]))
        value = jnp.zeros(())  # of no matter
        return entropy_of(binary, value) + entropy_of(several, value)

    assert jax.value_and_grad(entropies)(certain)[0] == 0.0
    assert np.isfinite(jax.grad(entropies)(certain))
    inside = jax.grad(entropies)(0.3)
    np.testing.assert_allclose(inside, 3 * np.log(0.7 / 0.3), rtol=1e-10)


def masked_first(everything):
    """The first of two latents under a mask; the second, and what is seen, depend on it or not."""

    def program(y, known=(True, False)):
        known = jnp.array(known)
        with numpyro.plate("data", 2):
            with handlers.mask(mask=known):
                first = numpyro.sample("first", dist.Bernoulli(0.3))
            with handlers.mask(mask=known if everything else jnp.ones(2, bool)):
                second = numpyro.sample("second", dist.Bernoulli(0.2 + 0.6 * first))
                numpyro.sample("y", dist.Normal(second, 1.0), obs=y)

    return program


def truncated_svi(program):
    return SVI(program, TruncatedGuide(program, 4), optax.sgd(0.0), Truncated_ELBO(sweeps=0))


def test_masked_latents_that_others_depend_on_are_refused_by_truncated_posteriors():
    y, svi = jnp.array([0.4, 1.3]), truncated_svi(masked_first(False))
    with pytest.raises(ValueError, match=r"sites \['first'\] are masked, but"):
        svi.init(KEY, y)


def test_under_jit_masked_latents_that_others_depend_on_turn_the_loss_into_nan():
    y, svi = jnp.array([0.4, 1.3]), truncated_svi(masked_first(False))
    state = svi.init(KEY, y, jnp.ones(2, bool))
    evaluate = jax.jit(svi.evaluate)
    assert np.isfinite(evaluate(state, y, jnp.ones(2, bool)))
    assert np.isnan(evaluate(state, y, jnp.array([True, False])))


def test_masked_latents_that_nothing_depends_on_leave_the_evidence():
    y, svi = jnp.array([0.4, 1.3]), truncated_svi(masked_first(True))
    seen = [
        dist.Bernoulli(0.3).log_prob(a)
        + dist.Bernoulli(0.2 + 0.6 * a).log_prob(b)
        + dist.Normal(b, 1.0).log_prob(y[0])
        for a, b in itertools.product([0, 1], repeat=2)
    ]
    expected = -jax.nn.logsumexp(jnp.stack(seen))
    np.testing.assert_allclose(svi.evaluate(svi.init(KEY, y), y), expected, rtol=1e-6)


def test_the_evidence_of_an_impossible_datum_is_minus_infinity():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            numpyro.factor("x", jnp.where(x > 0, -jnp.inf, -1.0 * z))

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))

    gap = posterior_gap(KEY, (model, guide), jnp.array([0.0, 1.0]))
    right = np.log(np.exp(-np.arange(3.0)).sum() / 3)
    np.testing.assert_allclose(gap.log_evidence, [right, -np.inf], rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, [-1.0, -np.inf], rtol=1e-6)
    assert np.isfinite(gap.gap[0])
    assert np.isnan(gap.gap[1])
    np.testing.assert_allclose(gap.support_mass, [1.0, np.nan], rtol=1e-6)
