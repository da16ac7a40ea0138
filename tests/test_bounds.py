"""Bounds and closed forms against enumeration, at the edges of the simplex too."""

import functools

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

grid = st.integers(-240, 240).map(lambda i: i / 8)
edges = st.just(-np.inf) | grid
both_edges = st.sampled_from([-np.inf, np.inf]) | grid
log_weights = npst.arrays(np.float64, (4, 3), elements=grid)
# At least the first code of a categorical stays possible.
categoricals = npst.arrays(np.float64, (3, 4), elements=edges).map(
    lambda logits: np.concatenate([np.zeros((3, 1)), logits], axis=1)
)
bernoullis = npst.arrays(np.float64, 6, elements=both_edges)


@functools.cache
def operation(backend, name):
    return backend.jit(getattr(backend.module("ops.bounds"), name))


def call(backend, name, *arrays):
    return np.asarray(operation(backend, name)(*map(backend.asarray, arrays)))


@functools.cache
def gradient_of(backend, name, argument):
    function = getattr(backend.module("ops.bounds"), name)
    return backend.jit(backend.grad(lambda *arrays: function(*arrays).sum(), argument))


def gradient(backend, name, *arrays, argument=0):
    found = gradient_of(backend, name, argument)(*map(backend.asarray, arrays))
    return np.asarray(found)


def tables(logits):
    """Probabilities of categoricals with the codes on axis 0."""
    return oracles.softmax(logits.T)


def coins(logits):
    """Tables of the two outcomes of Bernoullis, from whichever side does not cancel."""
    with np.errstate(over="ignore"):
        return np.stack([1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))])


BY_HAND = [  # in nats; logits need no normalising
    ("importance_weighted_bound", [np.log([[1.0, 2], [2, 2], [6, 2]])], np.log([3.0, 2])),
    ("categorical_entropy", [np.log([[2.0, 1, 1], [1, 1, 1]])], [1.5 * np.log(2), np.log(3)]),
    ("categorical_entropy", [np.array([[0.0, -np.inf, -np.inf]])], [0.0]),
    ("bernoulli_entropy", [np.log([1.0, 3])], [np.log(2), np.log(4) - 0.75 * np.log(3)]),
    ("bernoulli_entropy", [np.array([-np.inf, np.inf])], [0.0, 0.0]),
    ("categorical_kl", [np.log([[2.0, 1, 1]]), np.log([[1.0, 1, 2]])], [0.25 * np.log(2)]),
    ("categorical_kl", [np.zeros((1, 2)), np.array([[0.0, -np.inf]])], [np.inf]),
    ("bernoulli_kl", [np.zeros(1), -np.log([3.0])], [0.5 * np.log(4 / 3)]),
    ("bernoulli_kl", [np.array([-np.inf]), np.zeros(1)], [np.log(2)]),
]


@pytest.mark.parametrize(("name", "arrays", "expected"), BY_HAND)
def test_by_hand(backend, name, arrays, expected):
    found = call(backend, name, *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


@given(log_weights=log_weights)
def test_importance_weighted_bound_is_the_log_mean_weight(backend, log_weights):
    found = call(backend, "importance_weighted_bound", log_weights)
    expected = oracles.log_sum_exp(log_weights) - np.log(4)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert (found >= log_weights.mean(0) - 1e-12).all()  # above the ELBO of the same particles


def test_mean_bound_over_all_draws_climbs_from_the_elbo_to_the_evidence(backend):
    rng = np.random.default_rng(0)
    log_joint, q = rng.normal(size=4), oracles.softmax(rng.normal(size=4))
    means = []
    for num_particles in (1, 2, 3, 4):
        draws, probs = oracles.all_draws(q, num_particles)
        bounds = call(backend, "importance_weighted_bound", (log_joint - np.log(q))[draws.T])
        expected = oracles.importance_weighted_bound(log_joint, q, num_particles)
        means.append(probs @ bounds)
        np.testing.assert_allclose(means[-1], expected, rtol=1e-12)
    assert means[0] == pytest.approx(oracles.elbo(log_joint, q), rel=1e-12)
    assert (np.diff([*means, oracles.log_evidence(log_joint)]) > 0).all()


def test_impossible_particles_lower_the_bound_but_do_not_break_it(backend):
    log_weights = np.array([[0.0, -np.inf], [-np.inf, -np.inf]])
    found = call(backend, "importance_weighted_bound", log_weights)
    np.testing.assert_allclose(found, [-np.log(2), -np.inf])


@given(logits=categoricals)
def test_categorical_entropy_and_its_gradient(backend, logits):
    probs = tables(logits)
    expected = oracles.entropy(probs)
    np.testing.assert_allclose(
        call(backend, "categorical_entropy", logits), expected, rtol=1e-10, atol=1e-14
    )
    slopes = oracles.guide_gradient(np.zeros_like(probs), logits.T).T
    np.testing.assert_allclose(gradient(backend, "categorical_entropy", logits), slopes, atol=1e-12)


@given(logits=bernoullis)
def test_bernoulli_entropy_and_its_gradient(backend, logits):
    heads, tails = coins(logits)
    expected = oracles.entropy(np.stack([heads, tails]))
    found = call(backend, "bernoulli_entropy", logits)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    slopes = -heads * tails * np.where(np.isinf(logits), 0.0, logits)
    found = gradient(backend, "bernoulli_entropy", logits)
    np.testing.assert_allclose(found, slopes, rtol=1e-8, atol=1e-14)


@given(q_logits=categoricals, p_logits=categoricals)
def test_categorical_kl_and_its_gradients(backend, q_logits, p_logits):
    q, p = tables(q_logits), tables(p_logits)
    expected = oracles.kl(q, p)
    found = call(backend, "categorical_kl", q_logits, p_logits)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    finite = np.isfinite(expected)  # where q has mass that p lacks there is no gradient
    slopes = kl_gradient(q, p, expected)[:, finite].T
    found = gradient(backend, "categorical_kl", q_logits, p_logits)[finite]
    np.testing.assert_allclose(found, slopes, atol=1e-11)
    found = gradient(backend, "categorical_kl", q_logits, p_logits, argument=1)[finite]
    np.testing.assert_allclose(found, (p - q)[:, finite].T, atol=1e-12)


def kl_gradient(q, p, kl):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(q > 0, q * (np.log(q) - np.log(p) - kl), 0.0)


@given(q_logits=bernoullis, p_logits=bernoullis)
def test_bernoulli_kl_and_its_gradients(backend, q_logits, p_logits):
    q, p = coins(q_logits), coins(p_logits)
    expected = oracles.kl(q, p)
    found = call(backend, "bernoulli_kl", q_logits, p_logits)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        slopes = np.where(q.min(0) > 0, q[0] * q[1] * (q_logits - p_logits), 0.0)[finite]
    found = gradient(backend, "bernoulli_kl", q_logits, p_logits)[finite]
    np.testing.assert_allclose(found, slopes, rtol=1e-8, atol=1e-13)
    found = gradient(backend, "bernoulli_kl", q_logits, p_logits, argument=1)[finite]
    np.testing.assert_allclose(found, (p - q)[0][finite], atol=1e-12)


@given(logits=categoricals)
def test_a_distribution_is_at_no_distance_from_itself(backend, logits):
    found = call(backend, "categorical_kl", logits, logits + 3.0)
    np.testing.assert_allclose(found, 0.0, atol=1e-12)


def test_saturated_logits_in_single_precision(backend):
    """Where 1 - p rounds to 1 and p itself to 0, values and gradients stay true."""
    logits = np.array([-200.0, -30.0, 0.0, 30.0, 200.0])
    heads, tails = coins(logits)
    found = call(backend, "bernoulli_entropy", logits.astype(np.float32))
    assert found.dtype == np.float32
    expected = heads * np.logaddexp(0.0, -logits) + tails * np.logaddexp(0.0, logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)
    slopes = -heads * tails * logits
    found = gradient(backend, "bernoulli_entropy", logits.astype(np.float32))
    np.testing.assert_allclose(found, slopes, rtol=1e-5, atol=1e-37)
    spread = np.array([[0.0, -200.0, -np.inf]], np.float32)
    assert call(backend, "categorical_entropy", spread) == 0.0
    np.testing.assert_array_equal(
        gradient(backend, "categorical_entropy", spread), np.zeros((1, 3))
    )


def test_mass_that_underflows_is_still_infinitely_far_from_none(backend):
    q_logits = np.array([[0.0, -200.0]], np.float32)
    p_logits = np.array([[0.0, -np.inf]], np.float32)
    assert call(backend, "categorical_kl", q_logits, p_logits) == np.inf


def test_one_prior_serves_a_batch_of_guides(backend):
    q_logits, p_logits = np.random.default_rng(0).normal(size=(2, 3, 4)), np.zeros(4)
    found = call(backend, "categorical_kl", q_logits, p_logits)
    expected = np.log(4) - call(backend, "categorical_entropy", q_logits)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    found = call(backend, "bernoulli_kl", q_logits, np.zeros(()))
    expected = np.log(2) - call(backend, "bernoulli_entropy", q_logits)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["categorical_entropy", "bernoulli_entropy"])
def test_nan_shows(backend, name):
    logits = np.array([[0.0, 1.0], [np.nan, 1.0]])
    found = call(backend, name, logits)
    assert not np.isnan(found[0]).any()
    assert np.isnan(found[1]).any()
