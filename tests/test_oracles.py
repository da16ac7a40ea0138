"""The oracles hold to identities and finite differences, before they judge anything."""

import numpy as np
import oracles
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_table(rng, *shape):
    return oracles.softmax(rng.normal(size=shape))


def test_elbo_and_gap_add_up_to_the_evidence(rng):
    log_joint, q = rng.normal(size=(6, 4)), random_table(rng, 6, 4)
    gap = oracles.kl(q, oracles.posterior(log_joint))
    evidence = np.log(np.exp(log_joint).sum(0))
    np.testing.assert_allclose(oracles.elbo(log_joint, q) + gap, evidence, rtol=1e-13)
    np.testing.assert_allclose(oracles.log_evidence(log_joint), evidence, rtol=1e-13)


def test_elbo_is_tight_at_the_posterior_alone(rng):
    log_joint, q = rng.normal(size=(6, 4)), random_table(rng, 6, 4)
    evidence = oracles.log_evidence(log_joint)
    exact = oracles.elbo(log_joint, oracles.posterior(log_joint))
    np.testing.assert_allclose(exact, evidence, rtol=1e-13)
    assert (oracles.elbo(log_joint, q) < evidence - 1e-3).all()


def test_beta_elbo_at_one_is_the_elbo(rng):
    log_likelihood, q = rng.normal(size=(6, 4)), random_table(rng, 6, 4)
    log_prior = np.log(random_table(rng, 6, 1))
    expected = oracles.elbo(log_likelihood + log_prior, q)
    found = oracles.beta_elbo(log_likelihood, log_prior, q, beta=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_impossible_states_count_nothing():
    log_joint, q = np.array([0.0, -np.inf, -1.0]), np.array([0.5, 0.0, 0.5])
    assert oracles.elbo(log_joint, q) == pytest.approx(-0.5 + np.log(2))
    assert oracles.kl(q, q) == 0.0
    assert oracles.kl(q, np.array([1.0, 0.0, 0.0])) == np.inf
    assert oracles.log_evidence(np.full(3, -np.inf)) == -np.inf


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_guide_gradient_matches_finite_differences(rng, beta):
    rewards, logits = rng.normal(size=6), rng.normal(size=6)
    expected = oracles.finite_difference(
        lambda logits: oracles.policy_objective(rewards, oracles.softmax(logits), beta), logits
    )
    np.testing.assert_allclose(oracles.guide_gradient(rewards, logits, beta), expected, atol=1e-9)


def test_independent_guide_gradient_matches_finite_differences(rng):
    rewards, logits = rng.normal(size=8), rng.normal(size=(3, 2))

    def objective(logits):
        first, second, third = oracles.softmax(logits, axis=1)
        q = np.einsum("i,j,k->ijk", first, second, third).ravel()
        return oracles.policy_objective(rewards, q, 1.0)

    expected = oracles.finite_difference(objective, logits)
    found = oracles.independent_guide_gradient(rewards, logits)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_model_gradients_match_finite_differences(rng):
    prior, likelihood, q, x = rng.normal(size=4), rng.normal(size=(4, 3)), random_table(rng, 4), 2

    def bound(prior, likelihood):
        log_prior = prior - oracles.log_sum_exp(prior)
        log_likelihood = likelihood - oracles.log_sum_exp(likelihood, axis=1)[:, None]
        return oracles.elbo(log_prior + log_likelihood[:, x], q)

    expected = oracles.finite_difference(lambda prior: bound(prior, likelihood), prior)
    np.testing.assert_allclose(oracles.prior_gradient(prior, q), expected, atol=1e-9)
    expected = oracles.finite_difference(lambda logits: bound(prior, logits), likelihood)
    np.testing.assert_allclose(oracles.likelihood_gradient(likelihood, q, x), expected, atol=1e-9)


def test_importance_weighted_bound_climbs_from_the_elbo_towards_the_evidence(rng):
    log_joint, q = rng.normal(size=4), random_table(rng, 4)
    bounds = [oracles.importance_weighted_bound(log_joint, q, k) for k in (1, 2, 3, 4)]
    assert bounds[0] == pytest.approx(oracles.elbo(log_joint, q), rel=1e-12)
    assert (np.diff([*bounds, oracles.log_evidence(log_joint)]) > 0).all()


def test_the_draws_are_all_of_them_and_their_probabilities_sum_to_one(rng):
    draws, probs = oracles.all_draws(random_table(rng, 4, 2), 3)
    assert len(np.unique(draws, axis=0)) == 4**3
    np.testing.assert_allclose(probs.sum(0), 1.0, rtol=1e-13)
