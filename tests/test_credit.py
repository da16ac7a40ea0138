"""A draw is credited with what it can influence: unbiased, and less noisy than what ignores it."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from test_unbiased import assert_exact, mean_gradient
from zoo import Program, bernoulli, draw, log_softmax, normal

LENGTH = 4
PARAMS = {"move": draw(2, 2), "emit": draw(2), "first": draw(2), "next": draw(LENGTH - 1, 2, 2)}
DATA = {"x": np.array([0.3, -1.0, 2.0, 0.8])}


def chain_model(ppl, data):
    move, emit, state = ppl.param("move", data), ppl.param("emit", data), None
    for t in range(LENGTH):
        logits = move[0] if state is None else move[state]
        state = ppl.sample(f"z{t}", ppl.dist.Categorical(logits=logits))
        ppl.sample(f"x{t}", ppl.dist.Normal(emit[state], 1.0), obs=data["x"][t])


def chain_guide(ppl, data):
    first, following = ppl.param("first", data), ppl.param("next", data)
    state = ppl.sample("z0", ppl.dist.Categorical(logits=first))
    for t in range(1, LENGTH):
        state = ppl.sample(f"z{t}", ppl.dist.Categorical(logits=following[t - 1][state]))


def chain_loss(p):
    elbo, move = 0.0, log_softmax(p["move"])
    for states in itertools.product((0, 1), repeat=LENGTH):
        log_q, log_p = log_softmax(p["first"])[states[0]], move[0, states[0]]
        for t, state in enumerate(states):
            if t:
                log_q = log_q + log_softmax(p["next"][t - 1, states[t - 1]])[state]
                log_p = log_p + move[states[t - 1], state]
            log_p = log_p - 0.5 * (DATA["x"][t] - p["emit"][state]) ** 2 - 0.5 * np.log(2 * np.pi)
        elbo = elbo + np.exp(log_q) * (log_p - log_q)
    return -elbo


CHAIN = Program("chain", chain_model, chain_guide, chain_loss, PARAMS, DATA, (), 2**LENGTH)


@pytest.mark.parametrize("closed_form_entropy", [False, True])
def test_credit_along_a_chain_is_unbiased(shim, closed_form_entropy):
    elbo_class = shim.module("infer.reinforce").Reinforce_ELBO
    options = {"closed_form_entropy": closed_form_entropy}
    loss, grads = mean_gradient(shim.Case(CHAIN), elbo_class, 2, **options)
    np.testing.assert_allclose(loss, chain_loss(PARAMS), rtol=1e-12)
    assert_exact(grads, CHAIN)


SCANNED = {"weight": draw(3), "first": draw(3, 2), "next": draw(2), "odds": draw()}


def scanned_model(ppl, data):
    """Of a chain in a `scan`, beside a latent of its own."""
    from numpyro.contrib.control_flow import scan

    weight = ppl.param("weight", data)
    other = ppl.sample("other", ppl.dist.Bernoulli(logits=weight[2]))

    def step(before, x):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=weight[0] * before))
        ppl.sample("x", ppl.dist.Normal(weight[1] * z + other, 1.0), obs=x)
        return z, None

    scan(step, 0, data["x"])


def scanned_guide(ppl, data):
    from numpyro.contrib.control_flow import scan

    first, following = ppl.param("first", data), ppl.param("next", data)
    ppl.sample("other", ppl.dist.Bernoulli(logits=ppl.param("odds", data)))

    def step(before, logits):
        logit = logits[0] + (2.0 * logits[1] + following.sum()) * before
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=logit))
        return z, None

    scan(step, 0, first)


def scanned_loss(p):
    elbo = 0.0
    for other, *states in itertools.product((0, 1), repeat=4):
        log_q, log_p, before = bernoulli(other, p["odds"]), bernoulli(other, p["weight"][2]), 0
        for x, logits, state in zip(SCAN_DATA["x"], p["first"], states, strict=True):
            logit = logits[0] + (2.0 * logits[1] + p["next"].sum()) * before
            log_q = log_q + bernoulli(state, logit)
            log_p = log_p + bernoulli(state, p["weight"][0] * before)
            log_p = log_p + normal(x, p["weight"][1] * state + other)
            before = state
        elbo = elbo + np.exp(log_q) * (log_p - log_q)
    return -elbo


SCAN_DATA = {"x": np.array([0.3, -1.0, 2.0])}
SCAN = Program("scan", scanned_model, scanned_guide, scanned_loss, SCANNED, SCAN_DATA, (), 2**4)


@pytest.mark.parametrize("closed_form_entropy", [False, True])
@pytest.mark.parametrize("name", ["Reinforce_ELBO"])
def test_credit_along_a_scan_is_unbiased(name, closed_form_entropy):
    """An entropy of all steps is computed from the earlier of the same site's draws."""
    pytest.importorskip("jax")
    import numpyro_shim

    from numpyro_dvae import infer

    options = {"closed_form_entropy": closed_form_entropy}
    case = numpyro_shim.Case(SCAN)
    loss, grads = mean_gradient(case, getattr(infer, name), 2, **options)
    np.testing.assert_allclose(loss, scanned_loss(SCANNED), rtol=1e-12)
    assert_exact(grads, SCAN)


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def long_chain(length):
    """Bernoulli states, each likely what the one before it was, seen in noise."""

    def model(ppl, x):
        with ppl.plate("data", len(x), dim=-1):
            state = 0.0
            for t in range(length):
                state = ppl.sample(f"z{t}", ppl.dist.Bernoulli(ppl.array(0.2) + 0.6 * state))
                ppl.sample(f"x{t}", ppl.dist.Normal(2.0 * state, 1.0), obs=x[:, t])

    return model


def of_all(loss):
    """The loss without credit: the score of each draw gets all of its datum."""
    whole = {"inspect": lambda self, *args: loss.inspect(self, *args)._replace(influence=None)}
    return type(loss.__name__, (loss,), whole)


@pytest.mark.parametrize("name", ["Reinforce_ELBO", "DisARM_ELBO"])
@pytest.mark.parametrize("length", [pytest.param(n, marks=pytest.mark.slow) for n in (5, 20, 80)])
def test_gradients_of_a_chain_are_less_noisy_than_those_of_trace_graph(lab, length, name):
    """At equal K; and the whole datum's weight, the control, is noisier the longer the chain."""
    model = lab.bind(long_chain(length))
    guide, x = lab.guide(model), lab.array(np.random.default_rng(0).normal(1, 1, (2, length)))
    loss, num_particles = getattr(lab.module("infer"), name), 8
    whole = lab.whole_datum(loss) if name == "Reinforce_ELBO" else of_all(loss)
    losses = [loss(num_particles), lab.trace_graph(num_particles), whole(num_particles)]
    ours, theirs, uncredited = (lab.noise(each, model, guide, x, 25) for each in losses)
    print(f"{lab.name} {name} {length}: {ours:.4g}, TraceGraph {theirs:.4g}, all {uncredited:.4g}")
    assert ours < 0.8 * theirs
    assert ours < 0.6 * uncredited


def product_loss(logits, x):
    """Minus the ELBO of a product on the chain of the benchmark, by all states of each row."""
    total, count = 0.0, x.shape[1]
    for row, states in itertools.product(range(len(x)), itertools.product((0, 1), repeat=count)):
        log_q = sum(
            -np.logaddexp(0.0, (1 - 2 * z) * a) for z, a in zip(states, logits[:, row], strict=True)
        )
        ones = [0.2 + 0.6 * before for before in (0, *states[:-1])]
        log_p = sum(np.log(p if z else 1 - p) for z, p in zip(states, ones, strict=True))
        log_p = log_p - 0.5 * ((x[row] - 2.0 * np.array(states)) ** 2 + np.log(2 * np.pi)).sum()
        total -= np.exp(log_q) * (log_p - log_q)
    return total


def test_the_benchmark_knows_the_true_gradient():
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    import credit

    x, slopes = np.random.default_rng(0).normal(1.0, 1.0, (2, 4)), []
    logits = credit.start(4, 2)
    for place in np.ndindex(*logits.shape):
        moved = np.zeros_like(logits)
        moved[place] = 1e-5
        ends = [product_loss(logits + sign * moved, x) for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(credit.true_gradient(x), slopes, rtol=1e-6)
