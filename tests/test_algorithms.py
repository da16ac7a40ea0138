"""Each algorithm is a function of arrays: on tables of numbers that are worked out by hand.

Two particles, f = 0 and log 3, so that ``softmax(f)`` is 1/4 and 3/4, for one datum. The gradient
in the log-probability of the draws is what moves the guide, that in the returns moves the model.
"""

import numpy as np
import pytest

LOG3 = np.log(3.0)
F = np.array([[0.0], [LOG3]])
ZEROS = np.zeros((2, 1))


def function(backend, path):
    module, _, name = path.rpartition(".")
    return getattr(backend.module(f"infer.{module}"), name)


def slope(backend, run, at):
    """Gradient of the sum of what `run` returns for an array."""
    return np.asarray(backend.grad(lambda array: run(array).sum())(backend.asarray(at)))


def assert_near(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-12, atol=1e-12)


def test_policy_search_follows_the_target(backend):
    """w - 1/K in the guide, 1/K or the given shares in the model, beta / T for the entropy."""
    search = function(backend, "daps.policy_search")
    f, zeros, one = map(backend.asarray, (F, ZEROS, np.array(1.0)))
    assert_near(slope(backend, lambda q: search(f, q, zeros, one), ZEROS), [[-0.25], [0.25]])
    half = backend.asarray(np.array(0.5))  # softmax(2 f) = 1 / 10, 9 / 10
    assert_near(slope(backend, lambda q: search(f, q, zeros, half), ZEROS), [[-0.4], [0.4]])
    assert_near(slope(backend, lambda r: search(f, zeros, r, one), ZEROS), [[0.5], [0.5]])
    shares = backend.asarray(np.array([[0.2], [0.8]]))
    found = slope(backend, lambda r: search(f, zeros, r, one, shares=shares), ZEROS)
    assert_near(found, [[0.2], [0.8]])
    found = slope(backend, lambda h: search(f, zeros, zeros, half, beta=0.3, entropy=h), ZEROS)
    assert_near(found, [[0.3], [0.3]])  # beta / T / K


def test_the_policys_temperature_attains_its_target_or_is_beta(backend):
    """ESS (1 + r)² / (1 + r²) of weights 1 : r with r = 3^(1/T); 8/5 for r = 3, so T = 1."""
    temperature = function(backend, "daps.policy_temperature")
    f = backend.asarray(F)
    np.testing.assert_allclose(float(temperature(f, beta=0.1, target_ess=0.8)), 1.0, rtol=1e-6)
    assert_near(temperature(f, beta=2.5, target_ess=0.8), 2.5)
    copies = backend.asarray(np.full((2, 1), 2))  # equal draws count as one: no T has two of them
    assert float(temperature(f, copies, beta=0.1, target_ess=0.8)) > 1e3


def test_the_score_function_compares_with_the_baseline(backend):
    """(f - b) / K in the guide, 1 / K along the pathwise parts."""
    score = function(backend, "reinforce.score_function")
    f, zeros, other = map(backend.asarray, (F, ZEROS, F[::-1].copy()))
    found = slope(backend, lambda q: score(f, q, other), ZEROS)
    assert_near(found, [[-LOG3 / 2], [LOG3 / 2]])
    assert_near(slope(backend, lambda q: score(f, q), ZEROS), [[0.0], [LOG3 / 2]])
    assert_near(slope(backend, lambda f: score(f, zeros, other), F), [[0.5], [0.5]])


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_the_bound_of_particles_owes_each_of_them(backend, baseline):
    """L = log 2; without a particle, L_k = f of the other. Both means are the same at K = 2."""
    bound = function(backend, "vimco.multisample_bound")
    f, zeros = map(backend.asarray, (F, ZEROS))
    assert_near(bound(f, zeros, baseline=baseline), [np.log(2.0)])
    assert_near(bound(f, zeros, beta=0.3, baseline=baseline), [0.3 * np.log(2.0)])
    found = slope(backend, lambda q: bound(f, q, baseline=baseline), ZEROS)
    assert_near(found, [[np.log(2.0) - LOG3], [np.log(2.0)]])
    found = slope(backend, lambda f: bound(f, zeros, baseline=baseline), F)
    assert_near(found, [[0.25], [0.75]])


def test_antithetic_pairs_compare_with_their_partners(backend):
    """Particles k and k + K/2: f = 0, 1 and 2, 5 are the pairs (0, 2) and (1, 5)."""
    pairs = function(backend, "disarm.antithetic_pairs")
    f = np.array([[0.0], [1.0], [2.0], [5.0]])
    zeros = np.zeros((4, 1))
    found = slope(backend, lambda q: pairs(backend.asarray(f), q), zeros)
    assert_near(found, [[-0.5], [-1.0], [0.5], [1.0]])
    found = slope(backend, lambda f: pairs(f, backend.asarray(zeros)), f)
    assert_near(found, np.full((4, 1), 0.25))


def test_wake_and_sleep_share_the_guide(backend):
    """w - 1/K awake, w for the model, and the dreams by their share."""
    wake_sleep = function(backend, "wake_sleep.wake_sleep")
    f, zeros, dreamt = map(backend.asarray, (F, ZEROS, np.zeros(1)))
    assert_near(slope(backend, lambda q: wake_sleep(f, q, zeros), ZEROS), [[-0.25], [0.25]])
    assert_near(slope(backend, lambda r: wake_sleep(f, zeros, r), ZEROS), [[0.25], [0.75]])
    found = slope(backend, lambda q: wake_sleep(f, q, zeros, dreamt, 0.4), ZEROS)
    assert_near(found, [[-0.15], [0.15]])
    found = slope(backend, lambda d: wake_sleep(f, zeros, zeros, d, 0.4), np.zeros(1))
    assert_near(found, [0.4])


def test_expectations_pass_over_what_cannot_be(backend):
    expectation = function(backend, "exact.exact_expectation")
    probs, values = np.array([0.25, 0.75, 0.0]), np.array([4.0, 8.0, -np.inf])
    assert_near(expectation(backend.asarray(probs), backend.asarray(values)), 7.0)
    found = slope(backend, lambda p: expectation(p, backend.asarray(values)), probs)
    assert_near(found, [4.0, 8.0, 0.0])


def test_codes_and_vectors_are_held_together(backend):
    """(1 + commitment) m(z_e - e); the codebook moves by its own term, the encoder by the other."""
    penalty = function(backend, "quantization.quantization_penalty")
    inputs, vectors = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]])
    assert_near(penalty(backend.asarray(inputs), backend.asarray(vectors), 0.25), 2.5)
    found = slope(backend, lambda z: penalty(z, backend.asarray(vectors), 0.25), inputs)
    assert_near(found, [[0.0, 0.5]])
    found = slope(backend, lambda e: penalty(backend.asarray(inputs), e, 0.25), vectors)
    assert_near(found, [[0.0, -2.0]])
    both, far = np.concatenate([inputs, inputs + 5.0]), np.concatenate([vectors, 9 * vectors])
    kept = backend.asarray(np.array([[True], [False]]))
    assert_near(penalty(backend.asarray(both), backend.asarray(far), 0.25, kept), 2.5)
    assert_near(penalty(backend.asarray(both), backend.asarray(far), 0.25, kept & False), 0.0)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_set_of_states_makes_its_bound(backend, beta):
    """Scores log 1/4 and log 3/8; a third state is a repetition."""
    values_of = function(backend, "truncated.loss.truncated_values")
    scores = np.log(np.array([2.0, 3.0, 0.0001]) / 8)
    scores[2] = -np.inf
    likelihood = np.array([-1.0, -2.0, np.nan])
    found = values_of(backend.asarray(scores), backend.asarray(likelihood), beta)
    assert_near(found.bound, beta * np.log(5 / 8))
    assert_near(found.weights, [0.4, 0.6, 0.0])
    assert_near(found.log_likelihood, -1.6)
    # elbo = sum q (log p - log q) with log p = scores + (1 - 1 / beta) log p(x|z)
    log_p = scores[:2] + (1 - 1 / beta) * likelihood[:2]
    q = np.array([0.4, 0.6])
    assert_near(found.elbo, (q * (log_p - np.log(q))).sum())
