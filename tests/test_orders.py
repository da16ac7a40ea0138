"""A guide that draws the latents in another order than the model has them, or backward."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import normal

X = np.array([0.3, -0.4, 1.2])
FIRST = np.array([0.2, 0.3, 0.5])
SECOND = np.array([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.1, 0.2, 0.7]])  # given the first


def tables():
    """Of each datum, log p of all pairs of codes, and their posterior: (3, first, second)."""
    codes = np.arange(3)
    with np.errstate(divide="ignore"):
        log_p = np.log(FIRST)[:, None] + np.log(SECOND) + np.zeros((3, 1, 1))
    log_p = log_p + normal(X[:, None, None], codes[:, None] - codes)
    posterior = np.exp(log_p)
    return log_p, posterior / posterior.sum((1, 2), keepdims=True)


def chain(ppl, data):
    with ppl.plate("data", 3):
        a = ppl.sample("a", ppl.dist.Categorical(probs=data["first"]))
        b = ppl.sample("b", ppl.dist.Categorical(probs=data["second"][a]))
        ppl.sample("x", ppl.dist.Normal(1.0 * a - b, 1.0), obs=data["x"])


def backward(ppl, data):
    with ppl.plate("data", 3):
        b = ppl.sample("b", ppl.dist.Categorical(probs=data["last"]))
        ppl.sample("a", ppl.dist.Categorical(probs=data["before"][data["rows"], b]))


def case_of(shim, sure=False):
    """The exact posterior, last code first; of one that is `sure`, as if (0, 0) could not be."""
    posterior = tables()[1]
    if sure:
        posterior[:, 0] = 0
        posterior = posterior / posterior.sum((1, 2), keepdims=True)
    last = posterior.sum(1)
    data = {
        "x": X,
        "rows": np.arange(3),
        "first": FIRST,
        "second": SECOND,
        "last": last,
        "before": (posterior / last[:, None]).swapaxes(1, 2),
    }
    return shim.Case(program_of(chain, backward, {}, data)), posterior


@pytest.mark.thrifty
def test_rates_add_up_to_the_divergence(shim):
    case, q = case_of(shim)
    found = diagnose(shim, "latent_rates", case, num_draws=2000)
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = np.where(q > 0, q * np.log(q / (FIRST[:, None] * SECOND)), 0.0).sum((1, 2)).mean()
        last = np.where(q > 0, q * np.log(q.sum(1, keepdims=True) / SECOND), 0.0).sum((1, 2))
    assert abs(found["b"].rate - last.mean()) < 5 * found["b"].error
    error = np.hypot(found["a"].error, found["b"].error)
    assert abs(found["a"].rate + found["b"].rate - joint) < 5 * error
    assert found["b"].rate < 0
    assert not found["b"].collapsed.any()
    assert "tells no collapse; rates from -0.7" in str(found["b"])
    assert not found["a"].reordered


@pytest.mark.thrifty
@pytest.mark.parametrize("sure", [False, True])
def test_a_guide_is_restricted_if_it_leaves_out_a_state_that_can_be(shim, sure):
    """Given the last code, the first cannot be all that it can be before the last is known."""
    case, q = case_of(shim, sure)
    found = diagnose(shim, "importance_diagnostics", case, num_particles=200)
    assert (found.ess > 199).all()  # the weights are even on what the guide draws
    assert list(found.verdicts) == (["restricted"] if sure else ["close"]) * 3
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(
        gap.support_mass, tables()[1][q > 0].reshape(3, -1).sum(1), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_of_a_scan_from_the_last_to_the_first_tell_no_collapse(reverse):
    """The guide is the prior, a chain that reads the same backward: rates sum to 0."""
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro.contrib.control_flow import scan

    from numpyro_dvae.diagnostics import latent_rates

    def steps(reverse):
        def step(before, t):
            stays = jax.numpy.where(before < 0, 0.5, 0.1 + 0.8 * before)
            z = numpyro.sample("z", numpyro.distributions.Bernoulli(stays))
            return 1.0 * z, z

        return scan(step, -1.0, jax.numpy.arange(3), reverse=reverse)[1]

    def model(x):
        z = steps(False)
        numpyro.sample("x", numpyro.distributions.Normal(z.sum(), 1.0), obs=x)

    programs = model, lambda x: steps(reverse)
    found = latent_rates(jax.random.key(0), programs, 0.3, num_draws=4000)["z"]
    shared = np.log(2) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1)  # of two steps, nats
    expected = np.array([shared, 0.0, -shared]) if reverse else np.zeros(3)
    assert (np.abs(found.rate - expected) < 5 * found.error + 1e-6).all()
    assert (found.error > 0.001).any() == reverse
    assert found.collapsed.tolist() == [not reverse] * 3
    assert ("tells no collapse" in str(found)) == reverse


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_steps_of_a_backward_scan_take_the_values_that_they_are_given(turned):
    """NumPyro's hands them the first for the last; the guide is the exact posterior, backward.

    A model is `turned` whose own scan is backward, and the guide's forward.
    """
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro.contrib.control_flow import scan

    from numpyro_dvae.diagnostics import importance_diagnostics, posterior_gap

    moves, first = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.6, 0.4])
    states = first[:, None, None] * moves[:, :, None] * moves
    for t, shape in enumerate([(2, 1, 1), (1, 2, 1), (1, 1, 2)]):
        states = states * np.exp(normal(X[t], 2.0 * np.arange(2))).reshape(shape)
    posterior = states / states.sum()
    last, pairs = posterior.sum((0, 1)), (posterior.sum(2), posterior.sum(0))
    table = np.stack([*(pair[1] / pair.sum(0) for pair in pairs), last[[1, 1]]])

    def model(x):
        def step(before, x):
            on = jax.numpy.where(before < 0, first[1], jax.numpy.asarray(moves)[before, 1])
            z = numpyro.sample("z", numpyro.distributions.Bernoulli(on))
            numpyro.sample("x", numpyro.distributions.Normal(2.0 * z, 1.0), obs=x)
            return z.astype(int), None

        scan(step, jax.numpy.array(-1), x[::-1] if turned else x, reverse=turned)

    def guide(x):
        def step(after, t):
            on = jax.numpy.asarray(table)[t, after]
            return numpyro.sample("z", numpyro.distributions.Bernoulli(on)).astype(int), None

        order = jax.numpy.arange(3)
        scan(step, jax.numpy.array(0), order[::-1] if turned else order, reverse=not turned)

    key = jax.random.key(0)
    gap = posterior_gap(key, (model, guide), X)
    np.testing.assert_allclose(gap.log_evidence, np.log(states.sum()), rtol=1e-5)
    np.testing.assert_allclose(gap.gap, 0.0, atol=1e-5)
    report = importance_diagnostics(key, (model, guide), X, num_particles=50)
    np.testing.assert_allclose(report.iwae, np.log(states.sum()), rtol=1e-5)
    np.testing.assert_allclose(report.ess, 50.0, rtol=1e-4)
