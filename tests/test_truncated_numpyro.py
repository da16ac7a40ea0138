"""Truncated posteriors in NumPyro's protocol: one compilation, pure, and state that goes on."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import optax

from numpyro_dvae.infer import SVI, Truncated_ELBO, TruncatedGuide
from numpyro_dvae.models import BernoulliPrior, DiscreteVAE, GaussianLikelihood
from numpyro_dvae.nets import MLPDecoder
from numpyro_dvae.ops.states import unpack

NUM_DATA, LATENTS, STATES = 12, 5, 6
X = np.random.default_rng(0).normal(size=(NUM_DATA, 3))
ROWS = np.arange(NUM_DATA)


def key(number=0):
    return jax.random.key(number, impl="unsafe_rbg")  # compiles faster


def quick(function, **options):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def make_svi(loss=None, optim=None, svi_class=SVI, guide_options=None):
    decoder = MLPDecoder(LATENTS, None, (3,), hidden=(4,))
    prior = BernoulliPrior(LATENTS, probability=0.3, learn="closed_form")
    model = DiscreteVAE(decoder, prior, GaussianLikelihood(learn="closed_form"))
    guide = TruncatedGuide(model, STATES, **(guide_options or {}))
    return svi_class(model, guide, optim or optax.adam(1e-2), loss or Truncated_ELBO())


def start(svi, number=0, x=X):
    return quick(svi.init)(key(number), x, ROWS, NUM_DATA) if False else quick(
        lambda key: svi.init(key, x, ROWS, NUM_DATA)
    )(key(number))


@pytest.fixture(scope="module")
def trained():
    """An SVI, its first state, and the compiled step on some rows."""
    svi = make_svi()
    return svi, start(svi), quick(lambda state, x, rows: svi.update(state, x, rows, NUM_DATA))


def codes(state):
    return np.asarray(unpack(state.mutable_state["guide.words"], (2,) * LATENTS))
