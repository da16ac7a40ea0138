"""Learning signals and antithetic pairs, in both backends, against plain NumPy."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from oracles import log_sum_exp

grid = st.integers(-2400, 2400).map(lambda i: i / 8)
shapes = st.sampled_from([(2,), (5, 3)])  # few, since JAX compiles per shape
log_weights = npst.arrays(np.float64, shapes, elements=grid)
baselines = st.sampled_from(["geometric", "arithmetic"])


STATIC = {"multisample_signal": "baseline", "antithetic_draw": "mirrored"}


@functools.cache
def compiled(backend, name):
    function = getattr(backend.module("ops.multisample"), name)
    return backend.jit(function, static_argnames=STATIC.get(name))


def call(backend, name, *arrays, **options):
    return np.asarray(compiled(backend, name)(*map(backend.asarray, arrays), **options))


def oracle_signal(log_weights, baseline):
    """One particle after the other, as the paper writes it."""
    signal = np.empty(log_weights.shape)
    for k in range(len(log_weights)):
        others = np.delete(log_weights, k, axis=0)
        if baseline == "geometric":
            stand_in = others.mean(0)
        else:
            stand_in = log_sum_exp(others) - np.log(len(others))
        without = np.concatenate([others, stand_in[None]])
        signal[k] = log_sum_exp(log_weights) - log_sum_exp(without)
    return signal


LOG_WEIGHTS = np.log([1.0, 4, 16])  # of the bound log 21 / 3
BY_HAND = [
    # Without the first: 4, 16 and their mean, 8; and so on.
    ("multisample_signal", LOG_WEIGHTS, {}, np.log([21 / 28, 21 / 21, 21 / 7])),
    # The same with 10, 8.5 and 2.5 for a mean.
    (
        "multisample_signal",
        LOG_WEIGHTS,
        {"baseline": "arithmetic"},
        np.log([21 / 30, 21 / 25.5, 21 / 7.5]),
    ),
    ("log_sum_of_others", LOG_WEIGHTS, {}, np.log([20.0, 17, 5])),
    ("antithetic_factor", np.array([0.0, 0.25, 0.5, 0.875]), {}, [1, 0.75, 0.5, 0.875]),
    ("antithetic_advantages", np.array([1.0, 2, 5, 9]), {}, [-4, -7, 4, 7]),
]


@pytest.mark.parametrize(("name", "array", "options", "expected"), BY_HAND)
def test_by_hand(backend, name, array, options, expected):
    found = call(backend, name, array, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_a_pair_of_draws_by_hand(backend):
    probs, uniforms = np.array([0.25, 0.25, 0.75, 0.75]), np.array([0.125, 0.5, 0.5, 0.875])
    for mirrored, expected in [(False, [1, 0, 1, 0]), (True, [0, 0, 1, 1])]:
        found = call(backend, "antithetic_draw", probs, uniforms, mirrored=mirrored)
        np.testing.assert_array_equal(found, expected)


@given(log_weights=log_weights, baseline=baselines)
def test_the_signal_is_what_the_bound_owes_to_a_particle(backend, log_weights, baseline):
    found = call(backend, "multisample_signal", log_weights, baseline=baseline)
    np.testing.assert_allclose(found, oracle_signal(log_weights, baseline), rtol=1e-9, atol=1e-9)


@given(log_weights=log_weights, baseline=baselines)
def test_the_signal_ignores_a_constant_and_follows_the_order(backend, log_weights, baseline):
    signal = functools.partial(call, backend, "multisample_signal", baseline=baseline)
    expected = signal(log_weights)
    np.testing.assert_allclose(signal(log_weights + 512.0), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(signal(log_weights[::-1].copy()), expected[::-1], atol=1e-9)


@given(log_weights=log_weights)
def test_a_dominant_particle_does_not_cancel_the_others(backend, log_weights):
    log_weights[0] += 1000.0
    found = call(backend, "log_sum_of_others", log_weights)
    for k in range(len(log_weights)):
        expected = log_sum_exp(np.delete(log_weights, k, axis=0))
        np.testing.assert_allclose(found[k], expected, rtol=1e-12)


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_particles_without_weight(backend, baseline):
    log_weights = np.array([[0.0, 1.0], [-np.inf, 0.0], [1.0, -np.inf], [0.5, -np.inf], [0.0, 0.0]])
    found = call(backend, "multisample_signal", log_weights, baseline=baseline)
    with np.errstate(divide="ignore"):
        expected = oracle_signal(log_weights, baseline)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    alone = np.array([[0.0], [-np.inf]])
    assert call(backend, "multisample_signal", alone, baseline=baseline)[0] == np.inf


def test_a_pair_has_the_right_margins_and_differs_as_often_as_it_can(backend):
    probs = np.array([0.0, 0.1, 0.375, 0.5, 0.7, 1.0])
    uniforms = (np.arange(4000)[:, None] + 0.5) / 4000 + np.zeros(6)
    first, second = (
        call(backend, "antithetic_draw", probs, uniforms, mirrored=mirrored)
        for mirrored in (False, True)
    )
    for half in (first, second):
        np.testing.assert_allclose(half.mean(0), probs, atol=1e-3)
    np.testing.assert_allclose(
        (first != second).mean(0), 2 * np.minimum(probs, 1 - probs), atol=1e-3
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_certain_draws_are_certain_at_the_ends(backend, mirrored, uniform):
    probs, uniforms = np.float32([0.0, 1.0]), np.full(2, uniform, np.float32)
    found = call(backend, "antithetic_draw", probs, uniforms, mirrored=mirrored)
    np.testing.assert_array_equal(found, [False, True])


def test_bad_arguments(backend):
    with pytest.raises(ValueError, match="`baseline` must be one of"):
        call(backend, "multisample_signal", np.zeros((3, 1)), baseline="mean")
    with pytest.raises(ValueError, match="K >= 2"):
        call(backend, "log_sum_of_others", np.zeros((1, 3)))
