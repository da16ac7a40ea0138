"""VIMCO: unbiased for the bound of K particles, by summing over every draw."""

import numpy as np
import pytest
from zoo import PROGRAMS, VAE_DATA, expected_bound, gradient, vae_terms
from zoo_binary import CHAIN, all_draws, assert_same, mean_gradient

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]
ONE = VAE._replace(data={"x": VAE_DATA["x"][:1]})


def vimco(shim, case, num_particles, num_data=2, **options):
    elbo_class = shim.module("infer.vimco").VIMCO_ELBO
    elbo = case.forced(elbo_class, num_particles=num_particles, **options)
    return mean_gradient(case, elbo, all_draws(case.program, num_particles, num_data))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "nested"])
def test_vimco_is_unbiased_for_two_data(shim, name):
    program = BY_NAME[name]
    loss, grads = vimco(shim, shim.Case(program), 2)
    np.testing.assert_allclose(loss, program.loss(program.params), rtol=1e-12)  # minus the ELBO
    bound = expected_bound(2)
    assert_same(grads, gradient(lambda p: program.loss(p, bound), program.params))


def test_vimco_is_unbiased_with_dependent_and_continuous_latents(shim):
    loss, grads = vimco(shim, shim.Case(CHAIN), 3, 1)
    np.testing.assert_allclose(loss, CHAIN.loss(CHAIN.params), rtol=1e-12)
    bound = expected_bound(3)
    assert_same(grads, gradient(lambda p: CHAIN.loss(p, bound), CHAIN.params))


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_vimco_is_unbiased_with_a_global_latent(shim, baseline):
    program, bound = BY_NAME["global"], expected_bound(3)
    _, grads = vimco(shim, shim.Case(program), 3, baseline=baseline)
    assert_same(grads, gradient(lambda p: program.loss(p, bound), program.params))


def tempered_loss(beta, bound):
    """Minus beta log mean exp(f / beta) of one datum's draws, f its beta-ELBO."""

    def loss(p):
        log_q, log_prior, log_likelihood = vae_terms(p, VAE_DATA["x"][0])
        return -beta * bound(log_q, log_prior + log_likelihood / beta)

    return loss


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_vimco_is_unbiased_at_any_beta(shim, baseline, beta):
    _, grads = vimco(shim, shim.Case(ONE), 3, 1, baseline=baseline, beta=beta)
    assert_same(grads, gradient(tempered_loss(beta, expected_bound(3)), VAE.params))


def test_a_baseline_that_sees_its_own_particle_is_caught(shim, monkeypatch):
    """Negative control: the mean of all weights in place of the others'."""
    module = shim.module("infer.vimco")

    def biased(log_weights, baseline):
        signal = shim.module("ops.multisample").multisample_signal(log_weights, baseline)
        return signal - signal.mean(0)

    monkeypatch.setattr(module, "multisample_signal", biased)
    elbo_class = type("Biased", (module.VIMCO_ELBO,), {})  # compiled apart from the right one
    case = shim.Case(ONE)
    elbo = case.forced(elbo_class, num_particles=2)
    _, grads = mean_gradient(case, elbo, all_draws(ONE, 2, 1))
    exact = gradient(tempered_loss(1.0, expected_bound(2)), VAE.params)
    np.testing.assert_allclose(grads["weight"], exact["weight"], rtol=1e-10)
    with pytest.raises(AssertionError, match="encoder"):
        assert_same(grads, exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "`num_particles` must be .* at least 2"),
        ({"baseline": "mean"}, "`baseline` must be one of"),
        ({"beta": 0.0}, "`beta` must be positive"),
    ],
)
def test_bad_settings(shim, options, message):
    with pytest.raises(ValueError, match=message):
        shim.module("infer.vimco").VIMCO_ELBO(**options)
