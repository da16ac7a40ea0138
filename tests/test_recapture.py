"""Latents under a mask that sites outside of it depend on, in truncated posteriors.

Animals are seen or not at four times, and alive for certain until they are first seen (the model of
Cormack, Jolly and Seber). A mask silences what comes before, yet later states depend on it. The
oracle sums over all states, each as often as the model draws it, as `TraceEnum_ELBO` does.
"""

import itertools

import numpy as np
import pytest
from truncated_zoo import SetProgram, truncated
from zoo import bernoulli, gradient, normal

CAPTURES = np.array([[1.0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 0, 0]])
MARKED = np.cumsum(CAPTURES, 1) - CAPTURES > 0  # before each time
TIMES = range(CAPTURES.shape[1])


def recapture_model(ppl, data):
    survives, caught = ppl.param("survives", data), ppl.param("caught", data)
    with ppl.plate("animals", len(CAPTURES)):
        z = 1.0 + 0.0 * data["captures"][:, 0]
        for t in TIMES:
            with ppl.mask(mask=data["marked"][:, t]):
                z = ppl.sample(f"z_{t}", ppl.dist.Bernoulli(logits=survives * z - 1.0))
            with ppl.mask(mask=data["seen"][:, t]):
                logits = caught * z - 0.5
                ppl.sample(f"y_{t}", ppl.dist.Bernoulli(logits=logits), obs=data["captures"][:, t])


DATA = {"captures": CAPTURES, "marked": MARKED, "seen": np.ones_like(MARKED)}
PADDED = DATA | {"seen": MARKED & (np.arange(4) != 3)[:, None], "marked": MARKED.copy()}
PADDED["marked"][3] = PADDED["seen"][3] = False  # one animal of which nothing counts
PARAMS = {"survives": np.array(1.6), "caught": np.array(1.1)}


def recapture_log_joint(p, data):
    """Of all states, whatever a mask silences of them."""
    table = []
    for z in itertools.product((0, 1), repeat=4):
        total, before = 0.0, 1
        for t in TIMES:
            total = total + bernoulli(z[t], p["survives"] * before - 1.0)
            likelihood = bernoulli(data["captures"][:, t], p["caught"] * z[t] - 0.5)
            total, before = total + data["seen"][:, t] * likelihood, z[t]
        table.append(total)
    return np.array(table)


def program(data):
    return SetProgram("recapture", recapture_model, recapture_log_joint, (2,) * 4, PARAMS, data)


def minus_evidence(p, data):
    return -np.log(np.exp(recapture_log_joint(p, data)).sum(0)).sum()


@pytest.mark.thrifty
@pytest.mark.parametrize("data", [DATA, PADDED], ids=["seen", "padded"])
def test_all_states_are_the_evidence_and_its_gradient(shim, data):
    loss, grads = shim.Sets(program(data), 16).step(truncated(shim, sweeps=0))
    np.testing.assert_allclose(loss, minus_evidence(PARAMS, data), rtol=1e-10)
    for name, expected in gradient(lambda p: minus_evidence(p, data), PARAMS).items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-9, err_msg=name)


@pytest.mark.thrifty
def test_some_states_are_a_bound_that_evolution_raises(shim):
    sets = shim.Sets(program(DATA), 4)
    start = sets.loss(truncated(shim))
    sets.step(truncated(shim, evolve=shim.module("ops.sets").flip(4), sweeps=6))
    best = np.sort(recapture_log_joint(PARAMS, DATA), 0)[-4:]
    expected = -np.log(np.exp(best).sum(0)).sum()
    np.testing.assert_allclose(sets.loss(truncated(shim)), expected, rtol=1e-10)
    assert expected <= start
    assert expected > minus_evidence(PARAMS, DATA) + 0.01


@pytest.mark.thrifty
def test_any_loss_is_exact_at_any_draw_of_the_exact_guide(shim):
    """The density that masks silence is in neither log p nor log q."""
    sets = shim.Sets(program(DATA), 16)
    found = sets.loss(shim.module("infer").VIMCO_ELBO(2))
    np.testing.assert_allclose(found, minus_evidence(PARAMS, DATA), rtol=1e-10)


@pytest.mark.thrifty
def test_the_posterior_is_that_of_all_states(shim):
    sets = shim.Sets(program(DATA), 16)
    sets.loss(truncated(shim))
    _, weights, bound = sets.posterior()
    table = recapture_log_joint(PARAMS, DATA)
    evidence = np.log(np.exp(table).sum(0))
    np.testing.assert_allclose(bound, evidence, rtol=1e-10)
    np.testing.assert_allclose(np.sort(weights, 0), np.sort(np.exp(table - evidence), 0), rtol=1e-9)


TOGETHER = {"x": np.array([0.2, 1.4, -1.0])}


def together_model(ppl, data):
    """What is seen depends on masked latents only where all of them are 1."""
    rare, effect = ppl.param("rare", data), ppl.param("effect", data)
    logits = rare + 0.0 * data["x"]
    with ppl.plate("animals", 3):
        both = 1.0
        for t in TIMES:
            with ppl.mask(mask=data["x"] > 99.0):
                both = both * ppl.sample(f"z_{t}", ppl.dist.Bernoulli(logits=logits))
        ppl.sample("y", ppl.dist.Normal(effect * both, 1.0), obs=data["x"])


def together_log_joint(p, data):
    table = []
    for z in itertools.product((0, 1), repeat=4):
        prior = sum(bernoulli(bit, p["rare"]) for bit in z)
        table.append(prior + normal(data["x"], p["effect"] * np.prod(z)))
    return np.array(table)


WEAK = {"rare": 1.5, "effect": 2e-6}  # of which single precision would not know


@pytest.mark.thrifty
@pytest.mark.parametrize("numbers", [{"rare": -1.0, "effect": 0.3}, WEAK], ids=["rare", "weak"])
def test_dependence_in_one_state_of_many_is_seen(shim, numbers):
    params = {name: np.array(number) for name, number in numbers.items()}
    together = SetProgram(
        "together", together_model, together_log_joint, (2,) * 4, params, TOGETHER
    )
    loss, _ = shim.Sets(together, 16).step(truncated(shim, sweeps=0))
    expected = -np.log(np.exp(together_log_joint(params, TOGETHER)).sum(0)).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_pyro_enumerates_to_the_same():
    pytest.importorskip("torch")
    from pyro.infer import TraceEnum_ELBO, config_enumerate
    from pyro_programs import as_data, ppl

    _, primitives = ppl(PARAMS, __import__("torch").float64)
    model = config_enumerate(lambda data: recapture_model(primitives, data))
    for data in (DATA, PADDED):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda data: None, as_data(data))
        np.testing.assert_allclose(loss, minus_evidence(PARAMS, data), rtol=1e-10)
