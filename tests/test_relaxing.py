"""Relaxed draws in both backends: the properties that the papers prove, by sums and quadrature."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from oracles import softmax

THETA = np.log([0.5, 0.2, 0.25, 0.05])
VERTICES = np.eye(4)
RNG = np.random.default_rng(3)
SLOPE, CURVE, TWIST = RNG.normal(size=4), RNG.normal(size=(4, 4)), RNG.normal(size=4)


@functools.cache
def slope_of(backend, name):
    """Derivative of ``Σ y c`` by the log-probabilities, and y."""
    function = getattr(backend.module("ops.relaxing"), name)

    def slope(theta, noise, direction, temperature):
        def along(theta):
            return (function(theta, *noise, temperature) * direction).sum()

        return backend.grad(along)(theta), function(theta, *noise, temperature)

    return backend.jit(slope, static_argnames="temperature")


def run(backend, name, theta, noise, direction, temperature=1.0):
    """The gradient to logits of which `theta` is the log-softmax, and the value."""
    arrays = backend.asarray(theta), [backend.asarray(n) for n in noise], backend.asarray(direction)
    by_theta, value = map(np.asarray, slope_of(backend, name)(*arrays, temperature=temperature))
    return by_theta - np.exp(theta) * by_theta.sum(-1, keepdims=True), value


def jacobian(p):
    return np.diag(p) - np.outer(p, p)


def mean_gradient(backend, name, gradient_fn):
    """Of E[f(z)], over all draws of the code; `gradient_fn` is the slope of f at a vector."""
    found = 0.0
    for vertex, p in zip(VERTICES, np.exp(THETA), strict=True):
        found = found + p * run(backend, name, THETA, [vertex], gradient_fn(vertex))[0]
    return found


def exact_gradient(f):
    values = np.array([f(vertex) for vertex in VERTICES])
    return jacobian(np.exp(THETA)) @ values


# f of degree 1, 2 and 3 in the vector, and its slope
LINEAR = (lambda y: SLOPE @ y), (lambda y: SLOPE)
QUADRATIC = (lambda y: SLOPE @ y + y @ CURVE @ y), (lambda y: SLOPE + (CURVE + CURVE.T) @ y)
CUBIC = (
    lambda y: SLOPE @ y + (TWIST @ y) ** 3,
    lambda y: SLOPE + 3 * (TWIST @ y) ** 2 * TWIST,
)


QUARTERS = np.log([0.25, 0.75])
BY_HAND = {  # noise, temperature, value, and the slope of its first entry by the logits
    "gumbel_softmax": ([np.log([3.0, 1])], 1.0, [0.5, 0.5], 0.25),
    "gumbel_softmax at ½": ([np.log([6.0, 1])], 0.5, [0.8, 0.2], 0.16 / 0.5),
    "straight_through_gumbel": ([np.log([6.0, 1])], 0.5, [1, 0], 0.16 / 0.5),
    "straight_through": ([np.array([0.0, 1])], 1.0, [0, 1], 3 / 16),
    "straight_through at ½": ([np.array([1.0, 0])], 0.5, [1, 0], 0.09 / 0.5),
    "reinmax": ([np.array([1.0, 0])], 1.0, [1, 0], 2 * 15 / 64 - 0.5 * 3 / 16),
    # Noise log 2 and -log 4.5 moves the logits to log ½ and log 1/6, three to one.
    "gumbel_rao": ([np.array([1.0, 0]), np.array([[2.0, 3]])], 1.0, [1, 0], 3 / 16),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(backend, name):
    noise, temperature, value, slope = BY_HAND[name]
    function = name.partition(" ")[0]
    found = run(backend, function, QUARTERS, noise, np.array([1.0, 0]), temperature)
    np.testing.assert_allclose(found[1], value, rtol=1e-14)
    np.testing.assert_allclose(found[0], [slope, -slope], rtol=1e-12)


def test_conditional_noise_by_hand(backend):
    noise = np.array([[2.0, 3], [1, 6]])
    arrays = map(backend.asarray, (QUARTERS, np.array([1.0, 0]), noise))
    found = np.asarray(conditional(backend)(*arrays))
    np.testing.assert_allclose(found, np.log([[2, 1 / 4.5], [4, 4 / 27]]), rtol=1e-14)


def test_a_slope_of_their_own(backend):
    ops, asarray = backend.module("ops.relaxing"), backend.asarray
    values, path = asarray(np.array([1.0, 2.0, 3.0])), asarray(np.array([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(np.asarray(ops.with_slope(values, path)), [1, 2, 3])

    def through(path):
        return (ops.with_slope(values, path) ** 2).sum()

    def around(values):
        return (ops.with_slope(values, path) ** 2).sum()

    np.testing.assert_allclose(np.asarray(backend.grad(through)(path)), [2, 4, 6])
    np.testing.assert_allclose(np.asarray(backend.grad(around)(values)), 0)


def test_codes_from_uniforms_by_hand(backend):
    sample_codes = backend.module("ops.sampling").sample_codes
    logits = np.array([[5.0, 5, 5 + np.log(2)], [-np.inf, np.log(3), 0]])
    uniforms = np.array([[0.0, 0.0], [0.2, 0.7], [0.3, 0.8], [0.6, 0.9]])
    found = sample_codes(backend.asarray(logits), backend.asarray(uniforms))
    np.testing.assert_array_equal(np.asarray(found), [[0, 1], [0, 1], [1, 2], [2, 2]])


@pytest.mark.parametrize(
    ("name", "function"),
    [("straight_through", LINEAR), ("reinmax", LINEAR), ("reinmax", QUADRATIC)],
    ids=["straight_through-1", "reinmax-1", "reinmax-2"],
)
def test_the_bias_vanishes_up_to_the_order_of_the_method(backend, name, function):
    f, gradient_fn = function
    found = mean_gradient(backend, name, gradient_fn)
    np.testing.assert_allclose(found, exact_gradient(f), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "function"),
    [("straight_through", QUADRATIC), ("reinmax", CUBIC)],
    ids=["straight_through-2", "reinmax-3"],
)
def test_the_bias_shows_beyond_the_order(backend, name, function):
    """Negative controls: the next degree of f."""
    f, gradient_fn = function
    bias = mean_gradient(backend, name, gradient_fn) - exact_gradient(f)
    assert np.abs(bias).max() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_straight_through_and_reinmax_by_hand(backend, temperature):
    softened = softmax(THETA / temperature)
    for vertex in VERTICES:
        found, value = run(backend, "straight_through", THETA, [vertex], SLOPE, temperature)
        np.testing.assert_array_equal(value, vertex)
        np.testing.assert_allclose(found, jacobian(softened) @ SLOPE / temperature, rtol=1e-10)
        found, value = run(backend, "reinmax", THETA, [vertex], SLOPE, temperature)
        np.testing.assert_array_equal(value, vertex)
        middle = jacobian((vertex + softened) / 2)
        by_hand = (2 * middle - 0.5 * jacobian(np.exp(THETA))) @ SLOPE
        np.testing.assert_allclose(found, by_hand, rtol=1e-10, atol=1e-14)


def test_the_temperature_limits(backend):
    gumbels = RNG.gumbel(size=4)
    vertex = VERTICES[(THETA + gumbels).argmax()]
    for name in ("gumbel_softmax", "straight_through_gumbel"):
        cold, hot = (run(backend, name, THETA, [gumbels], SLOPE, t)[1] for t in (1e-3, 1e6))
        np.testing.assert_allclose(cold, vertex, atol=1e-10)
        np.testing.assert_allclose(hot, vertex if "straight" in name else 0.25, atol=1e-5)
    slopes = [
        run(backend, name, THETA, [gumbels], SLOPE, 0.7)[0]
        for name in ("gumbel_softmax", "straight_through_gumbel")
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-12)


shapes = st.just((3, 4))
grid = st.integers(-160, 160).map(lambda i: i / 8)


@given(logits=npst.arrays(np.float64, shapes, elements=grid), seed=st.integers(0, 99))
def test_conditional_noise_keeps_the_draw(backend, logits, seed):
    theta = np.log(softmax(logits, axis=-1))
    rng = np.random.default_rng(seed)
    hard = VERTICES[rng.integers(4, size=3)]
    noise = rng.exponential(size=(5, 3, 4))
    function = conditional(backend)
    found = np.asarray(function(*map(backend.asarray, (theta, hard, noise))))
    assert ((theta + found).argmax(-1) == hard.argmax(-1)).all()


@functools.cache
def conditional(backend):
    return backend.jit(backend.module("ops.relaxing").conditional_gumbels)


def test_conditional_noise_is_gumbel_noise_over_all_draws(backend):
    """Its moments, in standard errors; given one draw alone they differ (negative control)."""
    rng, size = np.random.default_rng(0), 20_000

    def deviations(codes):
        noise = rng.exponential(size=(1, size, 4))
        theta = np.broadcast_to(THETA, (size, 4)).copy()
        arrays = map(backend.asarray, (theta, VERTICES[codes], noise))
        g = np.asarray(conditional(backend)(*arrays))[0] - np.euler_gamma
        moments = [g, g**2 - np.pi**2 / 6]
        moments += [g[:, i] * g[:, j] for i, j in itertools.combinations(range(4), 2)]
        moments = np.column_stack(moments)
        return np.abs(moments.mean(0)) / (moments.std(0) / np.sqrt(size))

    assert deviations(rng.choice(4, size=size, p=np.exp(THETA))).max() < 5
    assert deviations(np.zeros(size, int)).max() > 20


def test_gr_mck_has_the_mean_of_straight_through_gumbel_and_less_variance(backend):
    """For two codes both expectations are integrals over one uniform, here midpoint sums."""
    p, temperature, size = np.array([0.3, 0.7]), 0.6, 20_000
    theta, directions = np.log(p), RNG.normal(size=(2, 2))
    halves = [(np.arange(size) + 0.5) / size * width for width in (p[0], p[1])]
    uniforms = np.concatenate([halves[0], p[0] + halves[1]])  # the code is 1 above p[0]
    weights = np.repeat(p, size) / size
    gumbels = np.stack([np.zeros(2 * size), np.log(uniforms / (1 - uniforms))], -1)
    codes = np.repeat([0, 1], size)
    batch = np.broadcast_to(theta, (2 * size, 2)).copy()
    plain, value = run(
        backend, "straight_through_gumbel", batch, [gumbels], directions[codes], temperature
    )
    np.testing.assert_array_equal(value.argmax(-1), codes)
    middle = (np.arange(size) + 0.5) / size
    rao = []
    for code in (0, 1):
        noise = np.ones((size, 2))
        noise[:, 1 - code] = middle / (1 - middle)  # the ratio of two exponentials
        hard = np.eye(2)[code]
        rao.append(run(backend, "gumbel_rao", theta, [hard, noise], directions[code], temperature))
    rao = np.stack([slope for slope, _ in rao])
    np.testing.assert_allclose(p @ rao, weights @ plain, rtol=1e-4)
    variance = weights @ (plain - weights @ plain) ** 2
    assert (p @ (rao - p @ rao) ** 2 < 0.9 * variance).all()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_two_codes_are_a_bernoulli(backend, temperature):
    """The published formulas for one logit, of the difference of two."""
    logit = 0.8
    p, softened = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-logit / temperature))
    theta, one = np.log([1 - p, p]), np.array([0.0, 1.0])
    logistic = 0.35
    soft = 1 / (1 + np.exp(-(logit + logistic) / temperature))
    found, value = run(backend, "gumbel_softmax", theta, [one * logistic], one, temperature)
    np.testing.assert_allclose(value[1], soft, rtol=1e-12)
    np.testing.assert_allclose(found[1], soft * (1 - soft) / temperature, rtol=1e-10)
    for z in (0, 1):
        hard = np.eye(2)[z]
        found, _ = run(backend, "straight_through", theta, [hard], one, temperature)
        np.testing.assert_allclose(found[1], softened * (1 - softened) / temperature, rtol=1e-10)
        found, _ = run(backend, "reinmax", theta, [hard], one, temperature)
        middle = (z + softened) / 2
        by_hand = 2 * middle * (1 - middle) - 0.5 * p * (1 - p)
        np.testing.assert_allclose(found[1], by_hand, rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    ["gumbel_softmax", "straight_through_gumbel", "straight_through", "reinmax", "gumbel_rao"],
)
def test_a_code_that_cannot_be_has_no_slope(backend, name):
    theta = np.array([np.log(0.6), -np.inf, np.log(0.4) - 1e-16, -800.0])
    noise = {"gumbel_rao": [VERTICES[0], np.full((2, 4), 0.3)]}.get(name)
    if noise is None:
        noise = [np.array([0.1, 0.9, -0.3, 0.2]) if "gumbel" in name else VERTICES[2]]
    found, value = run(backend, name, theta, noise, SLOPE, 0.5)
    assert np.isfinite(found).all()
    assert found[1] == value[1] == 0
    assert np.abs(found).max() > 0.01


def test_linear_log_probs(backend):
    function = backend.jit(backend.module("ops.relaxing").linear_log_prob)
    theta = np.log([0.5, 0.5, 1.0]) - [0, 0, np.inf]
    values = np.array([[1.0, 0, 0], [0.25, 0.75, 0], [0, 0.5, 0.5], [0, 0, 1]])
    found = np.asarray(function(backend.asarray(theta), backend.asarray(values)))
    np.testing.assert_allclose(found, [np.log(0.5), np.log(0.5), -np.inf, -np.inf])
