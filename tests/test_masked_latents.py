"""Latents under a mask in the exact gap: drawn all the same, and counted as often as drawn."""

import itertools

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

Y = np.array([0.4, 1.3, -0.2])
KNOWN = np.array([True, False, True])
LOGIT = {"first": -0.8, "low": -1.4, "high": 0.9}


def latents(ppl, known, *logits, depends=True):
    """Two bits, the first under a mask where it is not known; the second depends on it."""
    with ppl.mask(mask=known):
        first = ppl.sample("first", ppl.dist.Bernoulli(logits=logits[0] + ppl.zeros(3)))
    logit = logits[1] + (logits[2] - logits[1]) * first
    with ppl.mask(mask=known | depends):
        return ppl.sample("second", ppl.dist.Bernoulli(logits=logit))


def program(depends, guide_first, guide_second=(0.3, -0.2)):
    def model(ppl, data):
        with ppl.plate("data", 3):
            second = latents(ppl, data["known"], *LOGIT.values(), depends=depends)
            with ppl.mask(mask=data["known"] | depends):
                ppl.sample("y", ppl.dist.Normal(second, 1.0), obs=data["y"])

    def guide(ppl, data):
        with ppl.plate("data", 3):
            latents(ppl, data["known"], guide_first, *guide_second, depends=depends)

    return program_of(model, guide, {}, {"y": Y, "known": KNOWN})


def exact(depends, guide_first):
    """Log evidence, with the first bit drawn by the model, and the guide's expected weight."""
    evidence, elbo = np.full(3, -np.inf), np.zeros(3)
    for a, b in itertools.product((0, 1), repeat=2):
        second = LOGIT["high"] if a else LOGIT["low"]
        draw = bernoulli(a, LOGIT["first"]), bernoulli(b, second) + normal(Y, b)
        guide = bernoulli(a, guide_first), bernoulli(b, -0.2 if a else 0.3)
        joint = KNOWN * draw[0] + (KNOWN | depends) * draw[1]
        silenced = ~KNOWN * draw[0] + ~(KNOWN | depends) * bernoulli(b, second)
        evidence = np.logaddexp(evidence, joint + silenced)
        log_q = KNOWN * guide[0] + (KNOWN | depends) * guide[1]
        elbo += np.exp(sum(guide)) * (joint - log_q)
    return evidence, elbo


@pytest.mark.thrifty
@pytest.mark.parametrize(("depends", "first"), [(True, -0.8), (True, 1.5), (False, 1.5)])
def test_states_under_a_mask_count_as_often_as_the_model_draws_them(shim, depends, first):
    found = diagnose(shim, "posterior_gap", shim.Case(program(depends, first)))
    evidence, elbo = exact(depends, first)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.elbo, elbo, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.gap, evidence - elbo, atol=1e-10)
    np.testing.assert_allclose(found.support_mass, 1.0)
    as_the_model = not depends or first == LOGIT["first"]
    assert list(found.is_bound) == [True, as_the_model, True]
    assert ("Of 1 data the ELBO is no bound: what counts depends" in str(found)) == (
        not as_the_model
    )


@pytest.mark.thrifty
@pytest.mark.parametrize(("depends", "first"), [(True, 1.5), (False, 1.5)])
def test_weights_of_draws_tend_to_the_evidence(shim, depends, first):
    """The ELBO is the loss's, which the guide's draws under the mask make no bound."""
    case = shim.Case(program(depends, first))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=5000)
    evidence, elbo = exact(depends, first)
    np.testing.assert_array_less(np.abs(found.elbo - elbo), 5 * found.elbo_error + 1e-6)
    np.testing.assert_array_less(np.abs(found.iwae - evidence), 5 * found.iwae_error + 1e-3)
    assert (found.iwae_error < 0.1).all()
    assert list(found.is_bound) == [True, not depends, True]
    loose = "Of 1 data the ELBO is no bound: what counts depends on masked latents"
    assert (loose in str(found)) == ("the guide misses" not in str(found)) == depends
    for name in ("rate_distortion", "evaluate"):
        assert (loose in str(diagnose(shim, name, case))) == depends
    if depends:  # negative control: weights as the loss has them tend to something else
        assert abs(without_the_model(first) - evidence)[1] > 5 * found.iwae_error[1]
        shares = found.expectation(lambda latents: latents["first"] == 1)
        assert abs(shares[1] - posterior_of_first()[1]) < 0.1


def without_the_model(guide_first):
    """Log evidence with the first bit drawn by the guide."""
    p = 1 / (1 + np.exp(-guide_first))
    shares = np.where(KNOWN, 1 / (1 + np.exp(-LOGIT["first"])), p)
    return np.logaddexp(np.log(1 - shares) + of_first(0), np.log(shares) + of_first(1))


def of_first(a):
    second = LOGIT["high"] if a else LOGIT["low"]
    return np.logaddexp.reduce([bernoulli(b, second) + normal(Y, b) for b in (0, 1)])


def posterior_of_first():
    logs = [bernoulli(a, LOGIT["first"]) + of_first(a) for a in (0, 1)]
    return np.exp(logs[1] - np.logaddexp(*logs))


def test_a_weak_trace_of_a_masked_latent_shows_in_double_precision(shim, monkeypatch):
    monkeypatch.setitem(LOGIT, "high", LOGIT["low"] + 1e-5)
    case = shim.Case(program(True, 1.5, guide_second=(0.3, 0.3)))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert list(found.is_bound) == [True, False, True]
