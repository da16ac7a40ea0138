"""Scales, masks, and states of probability 0 of any program: the right value, or a refusal.

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
from any_numpyro import KEY, SAMPLED, assert_mean, draws_of, normal
from numpyro import handlers
from numpyro_shim import quickly
from quick_numpyro import QuickSVI

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
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.infer.svi import loss_state
from numpyro_dvae.programs.densities import entropy_of

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
    return QuickSVI(program, TruncatedGuide(program, 4), optax.sgd(0.0), Truncated_ELBO(sweeps=0))


def test_masks_are_seen_under_jit():
    """Masked latents that others depend on count, those of another call do not."""
    y, svi = jnp.array([0.4, 1.3]), truncated_svi(masked_first(False))
    state = svi.init(KEY, y, jnp.ones(2, bool))
    evaluate = jax.jit(svi.evaluate)
    whole = evaluate(state, y, jnp.ones(2, bool))
    np.testing.assert_allclose(evaluate(state, y, jnp.array([True, False])), whole, rtol=1e-6)


def test_masked_latents_that_nothing_depends_on_leave_the_evidence():
    y, svi = jnp.array([0.4, 1.3]), truncated_svi(masked_first(True))
    seen = [
        dist.Bernoulli(0.3).log_prob(a)
        + dist.Bernoulli(0.2 + 0.6 * a).log_prob(b)
        + dist.Normal(b, 1.0).log_prob(y[0])
        for a, b in itertools.product([0, 1], repeat=2)
    ]
    expected = -jax.nn.logsumexp(jnp.stack(seen))
    found = jax.jit(svi.evaluate)(svi.init(KEY, y), y)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
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
