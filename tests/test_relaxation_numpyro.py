"""NumPyro's side of `relax`: a schedule's count in the mutable state, under jit, at any K."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Trace_ELBO

from numpyro_dvae.infer import SVI, Reinforce_ELBO, relax

X = np.zeros((5, 2))


def model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=jnp.zeros(2)).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    logits = numpyro.param("logits", jnp.zeros(2))
    with numpyro.plate("data", len(x)):
        return numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


@pytest.mark.parametrize("loss", [Reinforce_ELBO(3), Trace_ELBO()], ids=["ours", "stock"])
def test_a_schedule_counts_steps_in_the_mutable_state(loss):
    soft = relax(guide, temperature=lambda calls: jnp.where(calls < 3, 1e6, 1e-3))
    svi = SVI(relax(model), soft, numpyro.optim.Adam(1e-2), loss=loss)
    state = jax.jit(svi.init)(jax.random.key(0), X)
    update = jax.jit(svi.update)
    for step in range(1, 4):
        assert int(state.mutable_state["guide$relaxation"]["calls"]) == step  # init called it once
        state, value = update(state, X)
    assert np.isfinite(value)
    assert update._cache_size() == 1

    def draw(calls):
        counted = numpyro.handlers.substitute(
            soft, data={"logits": jnp.zeros(2), "guide$relaxation": {"calls": calls}}
        )
        return numpyro.handlers.seed(counted, jax.random.key(1))(X)

    np.testing.assert_allclose(draw(jnp.array(2)), 0.5, atol=1e-4)
    np.testing.assert_allclose(np.abs(draw(jnp.array(3)) - 0.5), 0.5, atol=1e-4)


@pytest.mark.parametrize("sites", [None, ["z"]])
def test_discrete_latents_in_the_steps_of_a_scan_are_refused(sites):
    """Their draws would be the plain ones, without a gradient; what is continuous may be there."""

    def steps(family):
        def step(carry, x):
            z = numpyro.sample("z", family)
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)
            return carry, None

        scan(step, 0.0, X[:, 0])

    relaxed = handlers.seed(relax(steps, sites=sites), 0)
    with pytest.raises(ValueError, match=r"'z' is drawn within `scan` or `cond`.* Loop over"):
        relaxed(dist.Bernoulli(0.3))
    if sites is None:
        relaxed(dist.Normal(0.0, 1.0))


def test_logits_may_be_plain_numbers():
    draw = handlers.seed(relax(lambda: numpyro.sample("z", dist.Bernoulli(logits=0))), 0)()
    assert jnp.issubdtype(draw.dtype, jnp.floating)
