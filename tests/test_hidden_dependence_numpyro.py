"""What a log-density depends on is read off the program's operations, whichever they are."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from jax import lax  # noqa: E402
from jax.experimental import io_callback  # noqa: E402
from numpyro import handlers  # noqa: E402

from numpyro_dvae.programs.readers.credit import find_influence  # noqa: E402
from numpyro_dvae.programs.sites import Pair  # noqa: E402
from numpyro_dvae.programs.structure.layout import find_layout  # noqa: E402

KEY = jax.random.key(0)


@jax.custom_jvp
def own_slope(z):
    return 2.0 * z


own_slope.defjvp(lambda given, tangents: (2.0 * given[0], 2.0 * tangents[0]))


@jax.custom_vjp
def own_gradient(z):
    return 2.0 * z


own_gradient.defvjp(lambda z: (2.0 * z, None), lambda kept, slope: (2.0 * slope,))


def doubled(x):
    return np.asarray(2.0 * x, np.float32)


def looked_at(z):
    jax.debug.callback(lambda x: None, z)
    return 1.0 * z


NUMBER = jax.ShapeDtypeStruct((), np.float32)
ONES = np.ones(2, np.float32)
WAYS = {
    "pure_callback": lambda z: jax.pure_callback(doubled, NUMBER, z),
    "io_callback": lambda z: io_callback(doubled, NUMBER, z),
    "debug.callback": looked_at,
    "cond": lambda z: lax.cond(z > 0, lambda: 1.5, lambda: -0.5),
    "switch": lambda z: lax.switch(z, [lambda: 0.0, lambda: 2.0]),
    "while_loop": lambda z: lax.while_loop(lambda c: c[0] < z, lambda c: (c[0] + 1, 0.7), (0, 0.0))[
        1
    ],
    "while_loop, its body": lambda z: lax.while_loop(lambda c: c < 2.0, lambda c: c + 1.0 + z, 0.0),
    "fori_loop": lambda z: lax.fori_loop(0, z, lambda i, c: c + 0.7, 0.0),
    "scan, carried": lambda z: lax.scan(lambda c, x: (c + x, None), 1.0 * z, ONES)[0],
    "scan, scanned": lambda z: lax.scan(lambda c, x: (c + x, None), 0.0, ONES * z)[0],
    "scan, closed over": lambda z: lax.scan(lambda c, x: (c + x * z, None), 0.0, ONES)[0],
    "custom_jvp": lambda z: own_slope(1.0 * z),
    "custom_vjp": lambda z: own_gradient(1.0 * z),
    "custom_root": lambda z: lax.custom_root(
        lambda x: x - z, 0.0, lambda f, x: -f(0.0), lambda g, y: y / g(1.0)
    ),
    "custom_linear_solve": lambda z: lax.custom_linear_solve(
        lambda x: 2.0 * x, 1.0 * z, lambda solve, b: b / 2.0
    ),
    "jit in jit": lambda z: jax.jit(lambda x: jax.jit(lambda y: 2.0 * y)(x))(z),
    "vmap": lambda z: jax.vmap(lambda x: x * z)(ONES).sum(),
    "checkpoint": lambda z: jax.checkpoint(jnp.sin)(1.0 * z),
    "grad": lambda z: jax.grad(lambda x: x * z)(1.0),
    "linearize": lambda z: jax.linearize(lambda x: x * z, 1.0)[1](1.0),
    "stop_gradient": lambda z: 1.0 * lax.stop_gradient(z),
    "optimization_barrier": lambda z: lax.optimization_barrier(1.0 * z),
    "an integer": lambda z: z.astype(jnp.int8).astype(jnp.float32),
    "bits": lambda z: 1.0 * (z ^ 1),
    "a comparison": lambda z: jnp.where(z == 1, 2.0, 0.0),
    "an index": lambda z: jnp.array([0.3, 2.0])[z],
    "a place": lambda z: jnp.zeros(2).at[z].set(1.0)[1],
    "a slice": lambda z: lax.dynamic_slice(jnp.arange(3.0), (z,), (1,))[0],
    "an order": lambda z: 1.0 * jnp.argsort(jnp.stack([1.0 * z, 0.5]))[0],
    "top_k": lambda z: 1.0 * lax.top_k(jnp.stack([1.0 * z, 0.5]), 1)[1][0],
    "associative_scan": lambda z: 1.0 * lax.associative_scan(jnp.add, jnp.stack([z, z]))[1],
    "a key": lambda z: jax.random.normal(jax.random.fold_in(KEY, z)),
    "one of some keys": lambda z: jax.random.normal(jax.random.split(KEY, 2)[z]),
    "a matrix": lambda z: jnp.linalg.solve(jnp.eye(2) * (1.0 + z), ONES).sum(),
    "deterministic": lambda z: numpyro.deterministic("c", 2.0 * z),
}


def observed(b):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.7)


def weighed(b):
    with handlers.scale(scale=1.0 + b):
        observed(b)


def masked(b):
    with handlers.mask(mask=b > 0):
        observed(b)


SITES = {
    "scale": weighed,
    "mask": masked,
    "factor": lambda b: numpyro.factor("y", 2.0 * b),
    "what is observed": lambda b: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=2.0 * b),
    "Delta": lambda b: numpyro.sample("y", dist.Delta(0.0, log_density=2.0 * b), obs=0.0),
    "param": lambda b: numpyro.sample("y", dist.Normal(numpyro.param("p", 1.0) * b, 1.0), obs=1.7),
} | {
    name: lambda b, way=way: numpyro.sample("y", dist.Normal(way(b), 1.0), obs=1.7)
    for name, way in WAYS.items()
}


def influence_on(site):
    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.5))
        b = numpyro.sample("b", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(a, 1.0), obs=0.3)
        site(b)

    def guide():
        numpyro.sample("a", dist.Bernoulli(0.4))
        numpyro.sample("b", dist.Bernoulli(0.6))

    pair = Pair(model, guide, (), {})
    return find_influence(KEY, pair._replace(layout=find_layout(KEY, pair)))


@pytest.mark.parametrize("way", SITES)
def test_a_draw_is_credited_with_what_it_reaches(way):
    assert influence_on(SITES[way]).model["y"].keys() == {"b"}


def test_a_draw_is_not_credited_with_what_it_does_not_reach():
    assert not influence_on(observed).model["y"]
    assert influence_on(observed).model["x"].keys() == {"a"}


@pytest.mark.parametrize("mask", [False, np.False_, np.zeros(1, bool)])
def test_a_draw_whose_density_is_masked_leads_on(mask):
    def model():
        numpyro.sample("b", dist.Bernoulli(0.3))
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        numpyro.sample("a", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(c, 1.0), obs=1.7)

    def guide():
        numpyro.sample("b", dist.Bernoulli(0.6))
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        with handlers.mask(mask=mask):
            numpyro.sample("c", dist.Normal(2.0 * a, 1.0))

    pair = Pair(model, guide, (), {})
    influence = find_influence(KEY, pair._replace(layout=find_layout(KEY, pair)))
    assert influence.model["y"].keys() == influence.model["c"].keys() == {"a"}
