"""Programs of JAX evaluated by NumPy: each operation has the value that JAX gives it."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import random_evaluating  # noqa: E402
from jax import lax  # noqa: E402
from random_evaluating import evaluated  # noqa: E402

KEY = jax.random.key(3)
A = np.array([[0.3, -1.7, 2.5], [0.0, 4.2, -0.6]])
B = np.array([[1.1, 0.4, -2.0], [0.7, -0.2, 3.0]])
P = np.abs(A) + 0.1
U = np.array([0.1, 0.5, 0.93])
N, M = np.array([[7, -7, 3], [0, 5, -9]]), np.array([[2, 2, -3], [1, 3, 4]])
YES = np.array([[True, False, True], [False, False, True]])
NO = ~YES[:, ::-1]
AT = np.array([2, 0])


def loop(function):
    return lambda x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, function(c[1])), (0, x)
    )


CASES = {
    "of one": (
        lambda x: (
            [
                jnp.abs(x),
                jnp.ceil(x),
                jnp.cos(x),
                jnp.exp(x),
                jnp.exp2(x),
                jnp.expm1(x),
                jnp.floor(x),
                jnp.sin(x),
                jnp.tanh(x),
                jnp.sign(x),
                -x,
                x * 1,
                lax.square(x),
                lax.logistic(x),
                lax.erf(x),
                lax.is_finite(x),
                lax.stop_gradient(x),
                jnp.copy(x),
            ]
        ),
        A,
    ),
    "of one that is positive": (
        lambda x: [jnp.log(x), jnp.log1p(x), jnp.sqrt(x), lax.lgamma(x), lax.digamma(x)],
        P,
    ),
    "of one within the unit": (lambda x: [lax.erf_inv(x), lax.erf_inv(-x)], U),
    "at the edges": (
        lambda x: [jnp.log(x), lax.lgamma(x), jnp.exp(1e4 * x), x / x, lax.is_finite(1 / x)],
        np.array([0.0, 1.0]),
    ),
    "of two": (
        lambda x, y: (
            [
                x + y,
                x - y,
                x * y,
                x / y,
                jnp.maximum(x, y),
                jnp.minimum(x, y),
                x < y,
                x <= y,
                x > y,
                x >= y,
                x == y,
                x != y,
                lax.rem(x, y),
                lax.clamp(-1.0, x, 1.0),
                lax.pow(jnp.abs(x), y),
                lax.integer_pow(x, 3),
                x**2,
                jnp.mod(x, y),
            ]
        ),
        A,
        B,
    ),
    "of two integers": (
        lambda x, y: (
            [
                lax.div(x, y),
                lax.rem(x, y),
                x // y,
                x % y,
                x & y,
                x | y,
                x ^ y,
                ~x,
                lax.shift_left(x, jnp.abs(y)),
                lax.shift_right_logical(x, jnp.abs(y)),
                x**2,
                lax.shift_right_logical(x, jnp.full_like(x, 64)),
                x.astype(float),
                jnp.sign(x),
            ]
        ),
        N,
        M,
    ),
    "of truths": (lambda x, y: [x & y, x | y, x ^ y, ~x, x.astype(int), x != y], YES, NO),
    "chosen": (
        lambda which, x, y: (
            [
                jnp.where(which, x, y),
                lax.select(which, x, y),
                lax.select_n(which.astype(np.int32), x, y),
                jnp.where(which[0, 0], x, y),
            ]
        ),
        YES,
        A,
        B,
    ),
    "along axes": (
        lambda x: (
            [
                x.sum(),
                x.sum(0),
                x.max(1),
                x.min(0),
                x.prod(1),
                x.argmax(1),
                x.argmin(0),
                (x > 0).all(1),
                (x > 0).any(0),
                x.cumsum(1),
                lax.cummax(x, 1),
                x[:, ::-1],
                x.T,
                lax.cumsum(x, 1, reverse=True),
                jnp.sort(x, 1),
                jax.nn.logsumexp(x, 0),
            ]
        ),
        A,
    ),
    "of shapes": (
        lambda x: (
            [
                x.reshape(3, 2),
                x[:, None],
                x[:, 1:],
                x[::-1, ::2],
                jnp.squeeze(x[:1]),
                jnp.concatenate([x, x + 1], 1),
                jnp.broadcast_to(x[0], (4, 2, 3)),
                jnp.split(x, 3, 1)[1],
                lax.pad(x, 9.0, ((1, 0, 0), (0, 2, 1))),
                lax.pad(x, 9.0, ((0, 0, 0), (-1, -1, 0))),
                jnp.arange(4),
                lax.broadcasted_iota(int, (2, 3), 1),
                jnp.moveaxis(x, 0, 1),
                x.astype(np.float32),
                x.astype(int),
                jnp.stack([x, x]),
                jnp.tile(x, (1, 2)),
            ]
        ),
        A,
    ),
    "bits": (lambda x: lax.bitcast_convert_type(x, np.uint32), A.astype(np.float32)),
    "taken": (
        lambda x, at: (
            [
                x[:, at],
                x[at - 1],
                x[0, at[0]],
                jnp.take(x, at, 1),
                jnp.take_along_axis(x, at[:, None], 1),
                x[:, at[0]],
                x[jnp.array([0, 1]), at],
                lax.dynamic_slice(x, (0, at[0]), (2, 2)),
                lax.dynamic_index_in_dim(x, at[1], 1),
                x.at[5].get(mode="fill", fill_value=7.0),
                jnp.take(x, at + 5, 1, mode="clip"),
            ]
        ),
        A,
        AT,
    ),
    "put": (
        lambda x, at: (
            [
                x.at[0, at].set(1.0),
                x.at[:, at].add(2.0),
                x.at[at - 1].set(x[0] + 1),
                x.at[jnp.array([0, 0]), at[0]].add(1.0),
                x.at[jnp.array([0, 1]), at].set(5.0),
            ]
        ),
        A,
        AT,
    ),
    "calls": (
        lambda x: (
            [
                jax.jit(jnp.sin)(x),
                jax.checkpoint(jnp.cos)(x),
                jax.nn.relu(x),
                jax.nn.softplus(x),
                jax.grad(lambda y: jax.nn.relu(y).sum())(x),
                jax.vmap(lambda row: row[::-1])(x),
                jax.jacfwd(lambda y: y.sum(0))(x),
            ]
        ),
        A,
    ),
    "scan": (
        lambda x: [
            *lax.scan(lambda c, row: (c + row, c * 2), x[0], x),
            *lax.scan(lambda c, row: (c * 2 + row, c), x[0], x, reverse=True),
            lax.map(jnp.sin, x),
        ],
        A,
    ),
    "while": (loop(lambda x: 2 * x + 1), A),
    "whiles side by side": (
        jax.vmap(lambda n: lax.while_loop(lambda c: c < n, lambda c: 2 * c + 1, 0)),
        np.array([0, 3, 20]),
    ),
    "cond": (
        lambda x: (
            [lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)]
            + [lax.switch(n, [jnp.sin, jnp.cos, jnp.exp], x) for n in (-1, 1, 2, 9)]
        ),
        A,
    ),
    "what NumPy is not told": (
        lambda x: [jnp.linalg.cholesky(x @ x.T), jnp.linalg.inv(x @ x.T)],
        A,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_jax(name):
    function, *args = CASES[name]
    found, expected = evaluated(function)(*args), jax.jit(function)(*args)
    one, other = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(one) == len(other)
    for place, (mine, right) in enumerate(zip(one, other, strict=True)):
        assert (mine.shape, mine.dtype) == (right.shape, right.dtype), place
        np.testing.assert_allclose(mine, right, 1e-5, 1e-6, err_msg=f"{name}, {place}")


def names_in(jaxpr):
    for step in jaxpr.eqns:
        yield step.primitive.name
        for param in jax.tree.leaves(step.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from names_in(inner)


def test_each_operation_that_is_known_is_tried():
    tried = {n for f, *args in CASES.values() for n in names_in(jax.make_jaxpr(f)(*args).jaxpr)}
    known = {*random_evaluating.OF_VALUES, *random_evaluating.OF_PARAMS, *random_evaluating.LOOPS}
    of_keys = {"random_bits", "random_fold_in", "random_seed", "random_split"}
    of_other_versions = {"add_any", "copy", "max"}
    assert not known - tried - of_keys - of_other_versions


def test_what_is_drawn_has_its_distribution():
    def draw(key):
        one, two = jax.random.split(key)
        uniforms = jax.random.uniform(one, (4000,))
        other = jax.random.uniform(jax.random.fold_in(two, 1), (4000,))
        return uniforms, other, jax.random.categorical(two, jnp.log(U / U.sum()), shape=(4000,))

    uniforms, other, codes = map(np.asarray, evaluated(draw)(KEY))
    error = 5 / np.sqrt(12 * 4000)
    for each in (uniforms, other):
        assert abs(each.mean() - 0.5) < error
        assert 0 <= each.min()
        assert each.max() < 1
    assert abs(np.mean((uniforms - 0.5) * (other - 0.5))) < 5 / 12 / np.sqrt(4000)
    shares = np.bincount(codes, minlength=3) / 4000
    assert (np.abs(shares - U / U.sum()) < 5 * np.sqrt(0.25 / 4000)).all()
    np.testing.assert_array_equal(evaluated(draw)(KEY)[0], uniforms)
