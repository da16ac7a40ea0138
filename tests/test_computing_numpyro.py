"""Traced numbers are one where the same operations make them of the same inputs, and only there."""

import pytest

jax = pytest.importorskip("jax")
io_callback = pytest.importorskip("jax.experimental").io_callback

from numpyro_dvae.programs.structure.layout import are_one  # noqa: E402

ROWS = jax.numpy.array([1, 0])


def verdict(function, *arguments):
    """Of a program that is traced while its arguments are tracers themselves."""
    found = []

    def outer(*arguments):
        found.append(are_one(jax.make_jaxpr(lambda: function(*arguments))()))
        return arguments[0]

    jax.eval_shape(outer, *arguments)
    return found[0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: [a[ROWS] * 2.5, a[ROWS] * 2.5], True),
        (lambda a, b: [a, a], True),
        (lambda a, b: [jax.numpy.where(a > 0, a, b)] * 2, True),
        (lambda a, b: [a[ROWS] * 2.5, a[ROWS] * 2.0], False),
        (lambda a, b: [a * 2.5, b * 2.5], False),
        (lambda a, b: [a * b, b * a * 1.0], False),
        (lambda a, b: [a * b, 2.5], False),
        (lambda a, b: [2.5, 2.5], False),  # known without a computation: their values are compared
        (lambda a, b: [], False),
    ],
)
def test_same_computations(function, expected):
    weights = jax.numpy.ones(2)
    assert verdict(function, weights, weights + 0.0) is expected


def test_equal_arrays_are_not_one():
    """They may differ in the next call."""
    one, other = jax.numpy.ones(2), jax.numpy.ones(2)
    assert not are_one(jax.make_jaxpr(lambda: [one * 2.5, other * 2.5])())
    assert are_one(jax.make_jaxpr(lambda: [one * 2.5, one * 2.5])())


def unchanged(value):
    return value


def test_operations_with_effects_are_different():
    def asked(a):
        return io_callback(unchanged, a, a)

    assert not verdict(lambda a: [asked(a), asked(a)], ROWS)
