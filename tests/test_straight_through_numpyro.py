"""A discrete family whose draws hand a gradient on is discrete: as the plain one, in all losses."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY  # noqa: E402

from numpyro_dvae.infer import Exact_ELBO, Reinforce_ELBO  # noqa: E402

X = np.array([-1.0, 1.0])
PARAMS = {"logit": jnp.array(0.3)}


class OwnBernoulli(dist.BernoulliLogits):
    """A user's own: the gradient goes to the probability as it is."""

    has_rsample = True

    def sample(self, key, sample_shape=()):
        drawn = super().sample(key, sample_shape)
        return drawn + (self.probs - jax.lax.stop_gradient(self.probs))


def model():
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=X)


def guide_of(family):
    def guide():
        logit = numpyro.param("logit", 0.3)
        with numpyro.plate("data", 2):
            numpyro.sample("z", family(logits=logit * X))

    return guide


@pytest.mark.parametrize("loss", [Exact_ELBO, Reinforce_ELBO])
def test_losses_take_it_for_the_plain_family(loss):
    elbos = [loss() for _ in range(2)]
    plain, own = (
        jax.value_and_grad(lambda p, e=e, g=g: e.loss(KEY, p, model, g))(PARAMS)
        for e, g in zip(elbos, map(guide_of, (dist.BernoulliLogits, OwnBernoulli)), strict=True)
    )
    np.testing.assert_allclose(plain[0], own[0], rtol=1e-6)
    np.testing.assert_allclose(plain[1]["logit"], own[1]["logit"], rtol=1e-5)
