"""Fast log-densities are those of NumPyro's own distributions."""

import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.handlers import seed, trace  # noqa: E402

from numpyro_dvae.programs.densities import fast_log_prob  # noqa: E402
from numpyro_dvae.programs.sites import Site  # noqa: E402

RNG = np.random.default_rng(0)
MEANS, X = RNG.normal(size=(2, 5, 4, 3))
BITS = RNG.integers(2, size=(5, 4)).astype(float)
LOGITS = np.array([-np.inf, np.inf, -2.0, 0.5])
CASES = {
    "one scale": (dist.Normal(MEANS, 0.3).to_event(2), X),
    "a scale per entry": (dist.Normal(MEANS, np.exp(X[0])).to_event(2), X),
    "a scale per datum": (dist.Normal(MEANS, np.exp(X[:, :1, :1])).to_event(2), X),
    "a scale per row": (dist.Normal(MEANS, np.exp(X[0, :, :1])).to_event(2), X),
    "not finite": (dist.Normal(MEANS, 0.3).to_event(2), np.where(X > 2, np.nan, X)),
    "bits": (dist.Bernoulli(logits=LOGITS[2:].repeat(2)).to_event(1), BITS),
    "bits that cannot differ": (
        dist.BernoulliLogits(LOGITS, validate_args=False).to_event(1),
        BITS,
    ),
    "relaxed bits": (
        dist.BernoulliLogits(LOGITS[2], validate_args=False).expand([4]).to_event(1),
        0.3 * BITS,
    ),
    "masked": (dist.Normal(MEANS, 0.3).mask(X[0] > 0).to_event(2), X),
    "data masked": (dist.Normal(MEANS, 0.3).mask(X[:, :1, :1] > 0).to_event(2), X),
    "one number for a row": (dist.Normal(0.0, 0.3).expand([5, 4, 3]).to_event(2), X[:, :, :1]),
    "one number for all": (dist.Normal(MEANS, 0.3).to_event(2), X[0, 0, 0]),
    "one bit for a datum": (dist.Bernoulli(logits=LOGITS[2:].repeat(2)).to_event(1), BITS[:, :1]),
    "a location per row": (dist.Normal(MEANS[..., :1], 0.3).to_event(2), X),
    "a location and scale per row": (
        dist.Normal(MEANS[..., :1], np.exp(X[0, :, :1])).to_event(2),
        X,
    ),
    "a location and scale per datum": (
        dist.Normal(MEANS[:, :1, :1], np.exp(X[:, :1, :1])).to_event(2),
        X,
    ),
    "bits of one chance": (dist.Bernoulli(logits=LOGITS[2:3]).to_event(1), BITS),
    "no event": (dist.Normal(MEANS[:, 0, 0], 0.3), X[:, 0, 0]),
}


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_values_are_the_same(name, observed):
    fn, value = CASES[name]

    def model():
        with numpyro.plate("data", 5):
            numpyro.sample("x", fn, obs=jnp.asarray(value))

    with warnings.catch_warnings(action="ignore"):  # of what is no data of this distribution
        message = trace(seed(model, jax.random.key(0))).get_trace()["x"]
        site = Site.of({**message, "is_observed": observed})
        expected = site.log_prob()
        found = fast_log_prob(site)
    if name == "not finite" and not observed:
        expected = jnp.where(jnp.isneginf(expected), jnp.nan, expected)  # draws are not checked
    if name == "bits that cannot differ":  # NaN in NumPyro 0.21
        expected = -np.logaddexp(0.0, np.where(BITS == 1, -LOGITS, LOGITS)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_at_logits_of_0_the_slope_is_that_of_their_neighbours():
    """NumPyro's own is y."""
    bits = jnp.array([[0.0, 1.0, 1.0, 0.0]])

    def log_prob(logits):
        fn = dist.Bernoulli(logits=logits).to_event(1)
        call = {"args": (), "kwargs": {}, "infer": {}, "cond_indep_stack": [], "scale": None}
        message = {"name": "x", "type": "sample", "fn": fn, "value": bits, "is_observed": True}
        return fast_log_prob(Site.of({**message, **call})).sum()

    slopes = jax.grad(log_prob)(jnp.zeros(4))
    np.testing.assert_allclose(slopes, bits[0] - 0.5, rtol=1e-6)
