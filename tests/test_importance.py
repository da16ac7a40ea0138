"""The tail of importance weights against ArviZ where it applies, and by hand where it does not."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet import arviz, first_only


@functools.cache
def pareto_tail(backend):
    return backend.jit(backend.module("ops.importance").pareto_tail)


def tail_of(backend, log_weights):
    return [np.asarray(part) for part in pareto_tail(backend)(backend.asarray(log_weights))]


def test_a_tail_of_one_by_hand(backend):
    """Of four particles the largest is the tail, above the next: one weight of 4 in 8."""
    log_weights = np.log([[1.0, 2], [4, 2], [1, 2], [2, 2]])
    khat, num_distinct, largest = tail_of(backend, log_weights)
    assert np.isnan(khat).all()
    np.testing.assert_array_equal(num_distinct, [1, 0])
    np.testing.assert_allclose(largest, [0.5, 0.25], rtol=1e-14)


def gaussian(seed, scale, shape=(400, 3)):
    return scale * np.random.default_rng(seed).normal(size=shape)


@first_only
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.3, 1.0, 3.0, 8.0]))
def test_khat_is_that_of_arviz_where_weights_are_continuous(backend, seed, scale):
    log_weights = gaussian(seed, scale)
    khat, num_distinct, largest = tail_of(backend, log_weights)
    _, expected = arviz.psislw(log_weights.T)
    assert (num_distinct > 30).all()
    np.testing.assert_allclose(khat, expected, rtol=1e-8)
    weights = np.exp(log_weights - log_weights.max(0))
    np.testing.assert_allclose(largest, 1 / weights.sum(0), rtol=1e-12)


@first_only
def test_khat_with_some_ties_is_that_of_arviz(backend):
    """A tail shorter than asked for, as ties at the threshold leave it."""
    log_weights = np.round(gaussian(0, 1.0), 1)
    khat, num_distinct, _ = tail_of(backend, log_weights)
    assert ((num_distinct >= 5) & (num_distinct < 30)).all()
    np.testing.assert_allclose(khat, arviz.psislw(log_weights.T)[1], rtol=1e-8)


def test_units_and_origin_of_the_weights_do_not_matter_nor_does_precision(backend):
    log_weights = gaussian(1, 1.0)
    plain, moved = tail_of(backend, log_weights), tail_of(backend, log_weights[::-1] - 700.0)
    np.testing.assert_allclose(plain[0], moved[0], rtol=1e-6)
    rounded = tail_of(backend, log_weights.astype(np.float32) - np.float32(90))
    np.testing.assert_allclose(plain[0], rounded[0], atol=1e-3)


ROUNDING = 1e-5 * np.random.default_rng(0).normal(size=400)
CASES = {  # log weights, distinct weights in the tail, largest weight
    "all tied": (np.zeros(400), 0, 1 / 400),
    "tied but for rounding": (ROUNDING, 1, 1 / 400),
    "two values, the larger rare": (np.where(np.arange(400) < 20, 0.0, -4.0), 1, None),
    "two values, the larger common": (np.where(np.arange(400) < 300, 0.0, -4.0), 0, None),
    "one dominates": (np.where(np.arange(400) == 7, 1000.0, gaussian(2, 1.0, 400)), 1, 1.0),
    "most impossible": (np.where(np.arange(400) < 4, 0.0, -np.inf), 1, 1 / 4),
}


def test_close_weights_are_no_chain_of_ties(backend):
    """Of an over-dispersed guide: thousands of weights near the largest; they counted as one."""
    draws = np.random.default_rng(0).normal(size=(5000, 1))
    log_weights = np.concatenate([-1.5 * draws**2, np.repeat([0.0, -2e-5], 2500)[:, None]], 1)
    khat, num_distinct, _ = tail_of(backend, log_weights)
    assert num_distinct[0] > 50
    np.testing.assert_allclose(khat[0], arviz.psislw(log_weights.T)[1][0], rtol=1e-8)
    assert khat[0] < 0
    assert num_distinct[1] <= 1
    assert np.isnan(khat[1])


@pytest.mark.parametrize("name", CASES)
def test_no_tail_is_fitted_to_ties(backend, name):
    log_weights, num_distinct, largest = CASES[name]
    found = tail_of(backend, np.stack([log_weights, gaussian(3, 1.0, 400)], 1))
    assert np.isnan(found[0][0])
    assert np.isfinite(found[0][1])
    assert found[1][0] == num_distinct
    if largest is not None:
        np.testing.assert_allclose(found[2][0], largest, rtol=1e-4)


@first_only
def test_what_arviz_says_of_ties():
    """Why: a perfect guide has k̂ = inf, and a poor one with two weights k̂ = -3.2."""
    assert arviz.psislw(np.zeros((1, 1000)))[1] == np.inf
    poor = np.where(np.arange(1000) < 70, 0.0, -3.0)
    assert arviz.psislw(poor[None])[1] < -1


def test_nan_and_nothing_possible_show(backend):
    log_weights = gaussian(0, 1.0)
    log_weights[3, 0], log_weights[:, 1] = np.nan, -np.inf
    khat, num_distinct, largest = tail_of(backend, log_weights)
    assert np.isnan(khat[:2]).all()
    assert np.isnan(largest[:2]).all()
    assert (num_distinct[:2] == 0).all()
    assert np.isfinite([khat[2], largest[2]]).all()


def test_few_particles_have_no_tail(backend):
    for num_particles in (1, 20):
        khat, *_ = tail_of(backend, gaussian(0, 1.0, (num_particles, 2)))
        assert np.isnan(khat).all()


def test_threshold(backend):
    threshold = backend.module("ops.importance").khat_threshold
    assert threshold(100) == pytest.approx(0.5)
    assert threshold(10_000) == pytest.approx(0.7)
