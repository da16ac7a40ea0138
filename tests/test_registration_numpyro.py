"""Parameters of networks in NumPyro programs: by name, from a key or outside, of any module."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import numpyro_lab as lab  # noqa: E402
from flax import linen as nn  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.infer import SVI  # noqa: E402

from numpyro_dvae.guides import IndependentGuide  # noqa: E402
from numpyro_dvae.infer import DAPS_ELBO  # noqa: E402
from numpyro_dvae.models import BernoulliLikelihood, DiscreteVAE, UniformPrior  # noqa: E402
from numpyro_dvae.nets import MLPDecoder, MLPEncoder, register  # noqa: E402

SHAPE, L, V = (3, 2), 4, 5
X = np.random.default_rng(0).uniform(size=(6, *SHAPE)).round().astype(np.float32)


def vae(decoder=None, prior=None):
    decoder = decoder or MLPDecoder(L, V, SHAPE, embed_dim=3, hidden=(8,))
    return DiscreteVAE(decoder, prior or UniformPrior(L, V), BernoulliLikelihood())


def guide(encoder=None):
    return IndependentGuide(encoder or MLPEncoder(SHAPE, L, V, hidden=(8,)))


def train(model, q, seed=0):
    svi = SVI(model, q, numpyro.optim.Adam(0.01), loss=DAPS_ELBO(num_particles=4))
    state = jax.jit(svi.init)(jax.random.key(seed), X)
    before = svi.get_params(state)
    return before, svi.get_params(jax.jit(svi.update)(state, X)[0])


def test_the_parameters_of_a_program():
    before, after = train(vae(), guide())
    assert set(before) == {"guide.encoder$params", "model.decoder$params"}
    moved = jax.tree.map(lambda old, new: bool(np.any(old != new)), before, after)
    assert all(jax.tree.leaves(moved))
    other, _ = train(vae(), guide(), seed=1)
    kernels = [p["guide.encoder$params"]["layers_0"]["kernel"] for p in (before, other)]
    assert np.all(kernels[0] != kernels[1])  # the key decides, not the module


def test_any_flax_module_or_callable_is_a_part():
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, z):
            hidden = nn.Dense(8)(jax.nn.one_hot(z, V).reshape(*z.shape[:-1], L * V))
            return nn.Dense(6)(hidden).reshape(*z.shape[:-1], *SHAPE)

    def prior():
        return dist.Categorical(logits=jnp.zeros((L, V))).to_event(1)

    before, after = train(vae(Decoder(), prior), guide())
    assert np.any(before["model.decoder$params"]["Dense_0"]["kernel"] != 0)
    assert set(before["model.decoder$params"]) == {"Dense_0", "Dense_1"}
    assert before.keys() == after.keys()


def test_an_nnx_module_is_a_part():
    nnx = pytest.importorskip("flax.nnx")

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, L * V, rngs=rngs)

        def __call__(self, x):
            return self.dense(x.reshape(-1, 6)).reshape(-1, L, V)

    before, after = train(vae(), guide(Encoder(nnx.Rngs(0))))
    kernels = [p["guide.encoder$params"]["dense"]["kernel"] for p in (before, after)]
    assert np.any(kernels[0] != kernels[1])


def test_without_parameters_or_key_the_program_says_what_it_needs():
    for program in (guide().posterior, handlers.trace(guide().posterior)):
        with pytest.raises(ValueError, match=r"`guide.encoder\$params`.*handlers.substitute"):
            program(X)


def test_parameters_of_another_size_are_named():
    params = lab_params(guide(MLPEncoder(SHAPE, L, V, hidden=(9,))))
    with pytest.raises(ValueError, match=r"shape \(9,\).*the network's has \(8,\)"):
        handlers.substitute(guide().posterior, data=params)(X)


def lab_params(program):
    lab.reset()
    return lab.params_of(program, X)


def test_variables_that_are_no_parameters_are_refused():
    net = nn.BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"besides its parameters.*batch_stats"):
        handlers.seed(register, jax.random.key(0))("net", net, jnp.ones((4, 3)))


def test_a_joined_network_has_the_modules_methods_and_fields():
    net = MLPEncoder(SHAPE, L, V)
    joined = handlers.seed(register, jax.random.key(0))("net", net, jnp.asarray(X))
    assert joined.num_latents == L
    assert jax.jit(lambda net, x: net(x))(joined, jnp.asarray(X)).shape == (6, L, V)
    again = jax.tree.map(lambda leaf: 0 * leaf, joined)
    np.testing.assert_array_equal(again(jnp.asarray(X)), 0)
    with pytest.raises(AttributeError):
        joined.nothing_of_the_kind  # noqa: B018
