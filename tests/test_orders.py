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
