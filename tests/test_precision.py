"""What mean square error costs under a likelihood, by how hard an encoder is held to its codes.

The model's data do not depend on its codes, so that all of the encoder's gradient is the penalty's.
"""

import importlib

import numpy as np
import pytest

B, L, D, N, WEIGHT = 3, 2, 2, 4, 0.25
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(B, L, D)).astype(np.float32)
TABLE = RNG.normal(size=(3, D)).astype(np.float32)
SCALES = np.array([0.5, 1.0, 2.0, 1.5], np.float32)
PROBS = np.array([0.1, 0.5, 0.9, 0.0], np.float32)
OBSERVED = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def normal(dist, array, data):
    return dist.Normal(array(np.zeros((B, N), np.float32)), array(SCALES))


def masked(dist, array, data):
    return normal(dist, array, data).mask(array(OBSERVED))


def bernoulli(dist, array, data):
    return dist.Bernoulli(probs=array(np.tile(PROBS, (B, 1))))


def certain(dist, array, data):
    return dist.Bernoulli(probs=array(np.zeros((B, N), np.float32)))


def cauchy(dist, array, data):
    return dist.Cauchy(array(np.zeros((B, N), np.float32)), array(SCALES))


def tokens(dist, array, data):
    return dist.Categorical(logits=array(np.zeros((B, N, 5), np.float32)))


KINDS = {  # likelihood -> N / 2v of each datum
    normal: N / (2 * np.mean(SCALES**2)) * np.ones(B),
    masked: [2 / (2 * np.mean(SCALES[:2] ** 2)), N / (2 * np.mean(SCALES**2)), 0.0],
    bernoulli: N / (2 * np.mean(PROBS * (1 - PROBS))) * np.ones(B),
    certain: N * np.ones(B),
    cauchy: N * np.ones(B),
    tokens: N * np.ones(B),
}


def gradient_of(name, make):
    """Of the loss, to the inputs."""
    host, package = importlib.import_module(name), f"{name}_dvae"
    nets, guides, infer = (
        importlib.import_module(f"{package}.{room}") for room in ("nets", "guides", "infer")
    )
    array = importlib.import_module("torch" if name == "pyro" else "jax.numpy").asarray
    dist = importlib.import_module(f"{name}.distributions")
    codebook = nets.Codebook(3, D, table=array(TABLE))
    identity = importlib.import_module("torch").nn.Identity() if name == "pyro" else lambda x: x
    guide = guides.VectorQuantizedGuide(identity, codebook, gradient="straight_through")
    elbo = infer.VQ_ELBO(commitment=WEIGHT)

    def model(x):
        with host.plate("data", B):
            host.sample("z", dist.Categorical(logits=array(np.zeros((B, L, 3)))).to_event(1))
            fn = make(dist, array, None)
            host.sample(
                "x",
                fn.to_event(1),
                obs=array(np.zeros((B, N), int if make is tokens else np.float32)),
            )

    if name == "pyro":
        host.clear_param_store()
        inputs = array(INPUTS.copy()).requires_grad_()
        elbo.loss_and_grads(model, guide, inputs)
        return inputs.grad.numpy()
    jax = importlib.import_module("jax")
    params = {"codebook$table": array(TABLE)}

    def loss(inputs):
        return elbo.loss(jax.random.key(0), params, model, guide, inputs)

    return np.asarray(jax.grad(loss)(array(INPUTS)))


@pytest.mark.thrifty
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_squares_are_weighed_as_the_likelihood_weighs_its_errors(backend, make):
    found = gradient_of(backend.name, make)
    nearest = ((INPUTS[..., None, :] - TABLE) ** 2).sum(-1).argmin(-1)
    one = 2 * WEIGHT * (INPUTS - TABLE[nearest]) / (L * D)
    np.testing.assert_allclose(found, np.reshape(KINDS[make], (B, 1, 1)) * one, rtol=1e-5)
