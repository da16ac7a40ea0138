"""NumPyro's transposed convolution beside flax's: values, parameters and gradients."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from flax import linen as nn  # noqa: E402

from numpyro_dvae.nets import Upsampling  # noqa: E402

X = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)))


OTHERS = [pytest.param(3, 2, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("stride", "dims"), [(2, 2), *OTHERS])
def test_the_same_numbers_as_of_flax(stride, dims):
    ours = Upsampling(6, stride, dims)
    theirs = nn.ConvTranspose(6, (2 * stride,) * dims, (stride,) * dims)
    params = theirs.init(jax.random.key(0), X)  # of one dim: 2 x 4 sequences of length 5
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # a bias of 0 would show nothing
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), X))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    slope = np.random.default_rng(1).normal(size=theirs.apply(params, X).shape)

    def run(net):
        return jax.value_and_grad(lambda p, x: (slope * net.apply(p, x)).sum(), (0, 1))(params, X)

    np.testing.assert_allclose(ours.apply(params, X), theirs.apply(params, X), atol=1e-12)
    for found, expected in zip(*map(jax.tree.leaves, (run(ours), run(theirs))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_batch_dims_in_front():
    net = Upsampling(2)
    params = net.init(jax.random.key(0), X)
    many = jax.numpy.stack([X, 2 * X, -X])
    np.testing.assert_allclose(
        net.apply(params, many), np.stack([net.apply(params, x) for x in many]), atol=1e-12
    )


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="`stride` must be at least 2; got 1"):
        Upsampling(2, 1).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"must be \(\*batch, H, W, C\); got shape \(4, 3\)"):
        Upsampling(2).init(jax.random.key(0), X[0, :, 0])
