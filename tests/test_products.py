"""Layers of NumPyro's networks with a gradient of their own: what plain JAX and flax give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from numpyro_dvae.nets import CausalTransformer, PatchEncoder
from numpyro_dvae.nets.attention import _softmax
from numpyro_dvae.nets.layers import LayerNorm
from numpyro_dvae.nets.products import product

X = jax.random.normal(jax.random.key(0), (5, 6, 4))
W = jax.random.normal(jax.random.key(1), (4, 3))
BOTH = jnp.stack([W, 2 * W])


def _plain(x, matrix):
    return x @ matrix


def _over_particles(f, x, matrix):
    return jax.vmap(f, (0, None))(x, matrix).sum()


def _in_turn(f, x, matrix):
    return jax.lax.scan(lambda total, row: (total + f(row, matrix), None), 0.0, x)[0]


WAYS = {
    "gradient": lambda f: jax.grad(f, (0, 1))(X, W),
    "of one vector": lambda f: jax.grad(f, (0, 1))(X[0, 0], W),
    "of each particle": lambda f: jax.vmap(jax.grad(f, (0, 1)), (0, None))(X, W),
    "over particles": lambda f: jax.grad(lambda *a: _over_particles(f, *a), (0, 1))(X, W),
    "over particles, compiled": lambda f: jax.jit(
        jax.grad(lambda *a: _over_particles(jax.jit(f), *a), (0, 1))
    )(X, W),
    "of an inner axis": lambda f: jax.grad(
        lambda x, matrix: jax.vmap(f, (1, None))(x, matrix).sum(), (0, 1)
    )(X, W),
    "of several matrices": lambda f: jax.grad(
        lambda x, matrices: jax.vmap(f, (None, 0))(x, matrices).sum(), (0, 1)
    )(X, BOTH),
    "of several matrices and particles": lambda f: jax.grad(
        lambda x, matrices: jax.vmap(lambda m: _over_particles(f, x, m))(matrices).sum(), (0, 1)
    )(X, BOTH),
    "in turn": lambda f: jax.grad(lambda *a: _in_turn(f, *a), (0, 1))(X, W),
    "recomputed": lambda f: jax.grad(jax.checkpoint(f), (0, 1))(X, W),
    "curvature": lambda f: jax.hessian(f, (0, 1))(X[0], W),
}


@pytest.mark.parametrize("way", WAYS)
def test_products_have_the_gradient_of_plain_ones_however_mapped(way):
    ours, plain = (
        WAYS[way](lambda x, matrix, by=by: jnp.sin(by(x, matrix)).sum()) for by in (product, _plain)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_matrix_is_one_product_over_all_particles():
    def total(matrix):
        return jax.vmap(lambda x: jnp.sin(product(x, matrix)).sum())(X).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total))(W)
    shapes = [v.aval.shape for step in _all_steps(jaxpr.jaxpr) for v in step.outvars]
    assert W.shape in shapes
    assert (len(X), *W.shape) not in shapes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_is_flax_s(dtype):
    x = (3 * X + 1).astype(dtype)
    ours, flax_s = LayerNorm(), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    params = {"params": {"scale": jnp.linspace(0.5, 2, 4), "bias": jnp.linspace(-1, 1, 4)}}
    shapes = jax.tree.map(jnp.shape, (ours.init(jax.random.key(0), x), params))
    assert shapes[0] == shapes[1]
    found = [
        jax.value_and_grad(lambda p, x, m=m: jnp.sin(m.apply(p, x)).sum(), (0, 1))(params, x)
        for m in (ours, flax_s)
    ]
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            one.astype(float), other.astype(float), rtol=tolerance, atol=tolerance
        )


def test_softmax_with_tokens_that_are_not_seen_has_jax_s_gradient():
    scores = jnp.where(jnp.tril(jnp.ones((6, 4), bool), 1), X, -jnp.inf)
    found = [
        jax.grad(lambda s, by=by: jnp.sin(2 * by(s)).sum())(scores)
        for by in (_softmax, jax.nn.softmax)
    ]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 2, 3)])
def test_a_transformer_takes_no_data_and_no_particles(shape):
    network = CausalTransformer(3, 5, embed_dim=8, num_heads=2)
    context = jnp.ones((shape[-2], 4, 8))
    codes = jnp.zeros(shape, int)
    params = network.init(jax.random.key(0), jnp.zeros((2, 3), int), jnp.ones((2, 4, 8)))
    assert network.apply(params, codes, context).shape == (*shape, 5)

    torch = pytest.importorskip("torch")
    from pyro_dvae.nets import CausalTransformer as OfTorch

    of_torch = OfTorch(3, 5, embed_dim=8, num_heads=2)
    codes, context = torch.zeros(shape, dtype=torch.long), torch.ones(shape[-2], 4, 8)
    assert of_torch(codes, context).shape == (*shape, 5)


@pytest.mark.parametrize("shape", [(28, 28), (3, 8, 8), (8, 8, 3)])
def test_an_encoder_of_patches_takes_no_data(shape):
    network = PatchEncoder(shape, 4, embed_dim=8, num_heads=2)
    params = network.init(jax.random.key(0), jnp.zeros((2, *shape)))
    assert network.apply(params, jnp.zeros((0, *shape))).shape == (0, 4, 8)

    torch = pytest.importorskip("torch")
    from pyro_dvae.nets import PatchEncoder as OfTorch

    assert OfTorch(shape, 4, embed_dim=8, num_heads=2)(torch.zeros(0, *shape)).shape == (0, 4, 8)


def _all_steps(jaxpr):
    for step in jaxpr.eqns:
        yield step
        for inner in step.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _all_steps(inner)
