"""A truncated guide of NumPyro called by hand: what it needs, and what it says without."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from numpyro_dvae.infer import TruncatedGuide

X = jnp.array([0.3, -1.0, 2.0])
C = 0.5


def model(x):
    with numpyro.plate("data", len(x)):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Bernoulli(logits=c))
        numpyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def rest(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("c", dist.Normal(C, 1e-9))


GUIDE = TruncatedGuide(model, 2, rest=rest)


@pytest.mark.slow
def test_states_beside_a_continuous_draw_have_its_probabilities():
    found = handlers.seed(GUIDE.posterior, jax.random.key(0))(X)
    states = np.asarray(found.values["z"])
    joint = np.exp(-((np.asarray(X) - states - C) ** 2) / 2 + states * C)
    np.testing.assert_allclose(found.weights, joint / joint.sum(0), rtol=1e-6)
    np.testing.assert_array_equal(states.sum(0), np.ones(3))


def test_a_guide_without_a_key_says_what_it_needs():
    guide = TruncatedGuide(handlers.condition(model, data={"c": jnp.zeros(3)}), 2)
    with pytest.raises(ValueError, match=r"needs its states, mutable state 'guide\.words', or a k"):
        guide.posterior(X)


@pytest.mark.parametrize("shape", [(3, 2), (3, 5, 1), (3, 2, 4)])
def test_states_of_another_guide_are_told_by_their_shape(shape):
    guide = handlers.substitute(GUIDE.posterior, data={"guide.words": jnp.zeros(shape, jnp.uint32)})
    message = r"'guide\.words' must have shape \(data, 2 states, 1 words\); got \(3, .* another mod"
    with pytest.raises(ValueError, match=message):
        handlers.seed(guide, jax.random.key(0))(X)
