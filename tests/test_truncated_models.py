"""Truncated posteriors of the library's own models: minibatches by `fit`, closed forms, gaps."""

import numpy as np
import pytest
from oracles import all_codes, posterior
from zoo import normal

N, D, H = 12, 5, 3
PROBABILITY, VARIANCE = 0.3, 0.7
CODES = all_codes((2,) * H)


def data(missing=0.0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    return x, rng.random((N, D)) >= missing


def factory(shim, learn="closed_form", **options):
    models, nets = shim.module("models"), shim.module("nets")

    def make():
        return models.DiscreteVAE(
            nets.MLPDecoder(H, None, (D,), hidden=(6,)),
            models.BernoulliPrior(H, probability=PROBABILITY, learn=learn),
            models.GaussianLikelihood(variance=VARIANCE, learn=learn, **options),
        )

    return make


def train(shim, elbo=None, missing=0.0, make=None, num_states=2**H, **settings):
    x, observed = data(missing)
    elbo = elbo or shim.module("infer.truncated").Truncated_ELBO()
    columns = x, np.arange(N), N, observed
    return shim.train(make or factory(shim), num_states, elbo, *columns, **settings)


def expected_parameters(found, missing):
    """Means under the exact posterior at the first parameters, over what is observed."""
    x, observed = data(missing)
    mean = found.reconstruct(CODES.astype(np.float32))[:, None]
    pixels = normal(x, mean, 0.5 * np.log(VARIANCE)) * observed
    log_prior = CODES.sum(-1) * np.log(PROBABILITY) + (1 - CODES).sum(-1) * np.log1p(-PROBABILITY)
    q = posterior(log_prior[:, None] + pixels.sum(-1))
    probs = np.einsum("sn,sh->h", q, CODES) / N
    square = (q[..., None] * (x - mean) ** 2).sum(0) * observed
    return probs, square, observed


@pytest.mark.thrifty
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_closed_forms_are_posterior_means_over_what_is_observed(shim, missing):
    found = train(shim, missing=missing, num_steps=1, lr=0.0)
    probs, square, observed = expected_parameters(found, missing)
    np.testing.assert_allclose(found.probs, probs, rtol=1e-4)
    np.testing.assert_allclose(found.variance, square.sum() / observed.sum(), rtol=1e-4)


@pytest.mark.thrifty
def test_they_gather_over_an_epoch_of_minibatches(shim):
    """Nothing moves before all N data have been seen; then as if they had come at once."""
    shape = {"shape": (D,), "bounds": (0.01, 10.0)}
    found = train(shim, missing=0.4, make=factory(shim, **shape), num_steps=3, batch_size=4, lr=0.0)
    probs, square, observed = expected_parameters(found, 0.4)
    np.testing.assert_allclose(found.probs, probs, rtol=1e-4)
    np.testing.assert_allclose(found.variance, square.sum(0) / observed.sum(0), rtol=1e-4)
    early = train(shim, missing=0.4, make=factory(shim, **shape), num_steps=2, batch_size=4, lr=0.0)
    np.testing.assert_allclose(early.probs, PROBABILITY, rtol=1e-5)
    np.testing.assert_allclose(early.variance, VARIANCE, rtol=1e-5)


@pytest.mark.thrifty
def test_other_losses_and_a_held_schedule_leave_them(shim):
    elbo = shim.module("infer.truncated").Truncated_ELBO(closed_form=lambda step: step < 0)
    found = train(shim, elbo, num_steps=1, lr=0.0)
    np.testing.assert_allclose(found.probs, PROBABILITY, rtol=1e-5)
    np.testing.assert_allclose(found.variance, VARIANCE, rtol=1e-5)


@pytest.mark.thrifty
def test_a_resumed_run_has_the_same_sets_and_numbers(shim, tmp_path):
    settings = {"batch_size": 5, "num_states": 4, "log_every": 2}
    whole = train(shim, num_steps=7, **settings)
    train(shim, num_steps=4, folder=tmp_path, **settings)
    resumed = train(shim, num_steps=7, folder=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.words, whole.words)
    np.testing.assert_array_equal(resumed.variance, whole.variance)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value, err_msg=name)


@pytest.mark.slow
def test_training_raises_the_bound(shim):
    found = train(shim, num_steps=60, lr=0.05, num_states=4)
    assert found.losses[-1] < found.losses[0] - 10
    values, weights, _ = found.posterior(*data()[:1], np.arange(N), N)
    assert values["z"].shape == (4, N, H)
    np.testing.assert_allclose(weights.sum(0), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_the_noise_is_recovered_though_half_the_pixels_are_missing(shim):
    rng = np.random.default_rng(2)
    codes, weight = rng.integers(2, size=(400, H)), 2 * rng.normal(size=(H, 8))
    x = (codes @ weight + 0.5 * rng.normal(size=(400, 8))).astype(np.float32)
    observed = rng.random(x.shape) < 0.5
    models, nets = shim.module("models"), shim.module("nets")

    def make():
        return models.DiscreteVAE(
            nets.MLPDecoder(H, None, (8,), hidden=()),
            models.BernoulliPrior(H, learn="closed_form"),
            models.GaussianLikelihood(variance=9.0, learn="closed_form"),
        )

    elbo = shim.module("infer.truncated").Truncated_ELBO(sweeps=0)
    columns = np.where(observed, x, 0.0), np.arange(400), 400
    found, unmasked = (
        shim.train(make, 2**H, elbo, *columns, mask, num_steps=150, lr=0.1)
        for mask in (observed, np.ones_like(observed))
    )
    np.testing.assert_allclose(found.variance, 0.25, rtol=0.1)
    assert not 0.2 < unmasked.variance < 0.3
