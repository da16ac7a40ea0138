"""Steps of a `scan` that the other program draws at once: dims that fit, or a refusal."""

import contextlib

import numpy as np
import pytest

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from any_numpyro import KEY, normal  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

from numpyro_dvae.diagnostics import (  # noqa: E402
    importance_diagnostics,
    latent_rates,
    to_arviz,
)
from numpyro_dvae.infer import Exact_ELBO, Reinforce_ELBO, WakeSleep_ELBO  # noqa: E402
from numpyro_dvae.programs.run import dream  # noqa: E402
from numpyro_dvae.programs.sites import Pair  # noqa: E402
from numpyro_dvae.programs.structure.layout import find_layout  # noqa: E402

LOGITS, PRIOR = np.array([0.3, -0.5, 0.2]), np.array([1.5, 0.0, -1.0])
X = np.array([0.3, 1.4, -0.6])


def one_by_one(shape, is_model):
    """Steps of a `scan`, or all at once: the dims of a draw, before its steps or in a step."""

    def program():
        logits = jnp.asarray(PRIOR if is_model else LOGITS)
        if shape[0] == "scan":

            def step(carry, logit):
                z = numpyro.sample("z", dist.Bernoulli(logits=logit.reshape(shape[1:])))
                return carry, z

            _, z = scan(step, 0, logits)
        else:
            z = numpyro.sample("z", dist.Bernoulli(logits=logits.reshape(shape)))
        if is_model:
            numpyro.sample("x", dist.Normal(1.0 * z.reshape(3), 1.0), obs=jnp.asarray(X))

    return program


FITS = [  # of model and guide
    ((3,), (3,)),
    ((3,), ("scan",)),
    (("scan",), (3,)),
    ((3, 1), ("scan", 1)),
    (("scan", 1), (3, 1)),
    (("scan",), (3, 1)),
    (("scan", 1), ("scan", 1, 1)),
    (("scan", 1, 1), ("scan",)),
]
MISSES = [
    ((3,), ("scan", 1)),
    ((3, 1), ("scan",)),
    ((1, 3), ("scan",)),
    ((3,), (3, 1)),
    ((3, 1), (3,)),
]
LOG_P, LOG_Q = (-np.logaddexp(0, np.array([[1], [-1]]) * each) for each in (PRIOR, LOGITS))
LOG_X = normal(X, np.array([[0.0], [1.0]]))  # [value, step]


def pair_of(shapes):
    return one_by_one(shapes[0], True), one_by_one(shapes[1], False)


@pytest.mark.parametrize("shapes", FITS)
def test_steps_that_one_program_draws_at_once(shapes):
    log_w, pair = LOG_P + LOG_X - LOG_Q, pair_of(shapes)
    expected, spread = (np.exp(LOG_Q) * log_w).sum(), np.abs(log_w[1] - log_w[0]).sum() / 2
    found = Reinforce_ELBO(400).loss(KEY, {}, *pair)
    assert abs(found + expected) < 5 * spread / 20
    report = importance_diagnostics(KEY, pair, num_particles=400)
    assert abs(report.whole.elbo - expected) < 5 * spread / 20
    draws = to_arviz(KEY, pair, num_draws=50, groups=("posterior", "vi_stats"))
    assert draws.posterior["z"].shape == (1, 50, 3)
    rate = latent_rates(KEY, pair, num_draws=2)["z"].rate
    np.testing.assert_allclose(rate.sum(), (np.exp(LOG_Q) * (LOG_Q - LOG_P)).sum(), rtol=1e-6)
    if shapes[1][0] == "scan":
        np.testing.assert_allclose(Exact_ELBO().loss(KEY, {}, *pair), -expected, rtol=1e-6)


@pytest.mark.parametrize("shapes", FITS)
def test_dreams_of_steps_that_the_guide_draws_at_once(shapes):
    """Log q of what the model draws, which would count a draw for several where dims differ."""
    pair = Pair(*pair_of(shapes), (), {})
    pair = pair._replace(layout=find_layout(KEY, pair))
    keys = jax.random.split(KEY, 300)
    found = jax.vmap(lambda key: dream(key, pair, lambda made, *given: given))(keys)
    each = np.exp(LOG_P) * LOG_Q
    spread = np.sqrt((np.exp(LOG_P) * LOG_Q**2).sum(0) - each.sum(0) ** 2).sum()
    assert abs(np.mean(found) - each.sum()) < 5 * spread / np.sqrt(300)


@pytest.mark.parametrize("shapes", MISSES)
def test_dims_that_do_not_fit_are_refused(shapes):
    """As the host has it: a draw would count for several latents."""
    dreams = WakeSleep_ELBO(2, sleep=0.5, replace_data=lambda made, *given: given)
    message = r"site 'z' has batch shape .* in the guide, but"
    for loss in (Reinforce_ELBO(2), dreams):
        with pytest.raises(ValueError, match=message):
            loss.loss(KEY, {}, *pair_of(shapes))
    with pytest.raises(ValueError, match=message):
        importance_diagnostics(KEY, pair_of(shapes), num_particles=25)


WEIGHTS = np.array([0.5, 2.0, 1.5])


def weighed(handler, num_dims, is_weighed, is_model):
    """Steps with so many dims of their own, under weights of all steps."""

    def step(carry, now):
        logit, x = now
        z = numpyro.sample("z", dist.Bernoulli(logits=logit.reshape([1] * num_dims)))
        if is_model:
            numpyro.sample("x", dist.Normal(1.0 * z.reshape(()), 1.0), obs=x)
        return carry, None

    def program():
        logits = jnp.asarray(PRIOR if is_model else LOGITS)
        with handler(jnp.asarray(WEIGHTS)) if is_weighed else contextlib.nullcontext():
            scan(step, 0, (logits, jnp.asarray(X)))

    return program


HANDLERS = {
    "scale": (lambda weights: handlers.scale(scale=weights), WEIGHTS),
    "mask": (lambda weights: handlers.mask(mask=weights > 1), 1.0 * (WEIGHTS > 1)),
}


@pytest.mark.parametrize("where", ["model", "guide"])
@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("num_dims", [0, 1, 2])
def test_weights_around_steps_that_have_other_dims_in_the_other_program(kind, where, num_dims):
    """Those of one program are of its own dims, and larger in those of the other."""
    handler, weights = HANDLERS[kind]
    sides = [weights if where == side else np.ones(3) for side in ("model", "guide")]
    expected = (np.exp(LOG_Q) * (sides[0] * (LOG_P + LOG_X) - sides[1] * LOG_Q)).sum()
    dims = (0, num_dims) if where == "model" else (num_dims, 0)
    pair = (
        weighed(handler, dims[0], where == "model", True),
        weighed(handler, dims[1], where == "guide", False),
    )
    np.testing.assert_allclose(Exact_ELBO().loss(KEY, {}, *pair), -expected, rtol=1e-6)
    if num_dims:  # which NumPyro would multiply in another dim
        pair = tuple(
            weighed(handler, num_dims, where == side, side == "model")
            for side in ("model", "guide")
        )
        with pytest.raises(
            ValueError, match=rf"'z' of a `scan` is under a {kind}.* as shape \(3, 1"
        ):
            Reinforce_ELBO(2).loss(KEY, {}, *pair)
