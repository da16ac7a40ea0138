"""The discrete VAE as a model: sites, priors, likelihoods, prediction, bad data."""

import numpy as np
import pytest

SHAPE, L, V = (3, 2), 4, 5


def vae(lab, likelihood=None, prior=None):
    models, num_codes = lab.module("models"), V if prior is None else None
    decoder = lab.module("nets").MLPDecoder(L, num_codes, SHAPE, embed_dim=3, hidden=(8,))
    prior = prior or models.UniformPrior(L, V)
    return models.DiscreteVAE(decoder, prior, likelihood or models.BernoulliLikelihood())


def guide(lab):
    encoder = lab.module("nets").MLPEncoder(SHAPE, L, V, hidden=(8,))
    return lab.module("guides").IndependentGuide(encoder)


def images(lab, size=6):
    array = np.random.default_rng(0).uniform(size=(size, *SHAPE)).round()
    return lab.asarray(array.astype(np.float32))


def test_published_decoder_size(lab):
    model = lab.module("models").mnist_vae()
    x = lab.asarray(np.zeros((1, 28, 28), np.float32))
    assert lab.num_parameters(model, x) == 267_344  # published: 267k


def test_sites_with_and_without_data(lab):
    sites = lab.sites(vae(lab), images(lab))
    assert sites["z"].value.shape == (6, L)
    assert sites["z"].log_prob.shape == sites["x"].log_prob.shape == (6,)
    assert sites["x"].is_observed
    np.testing.assert_allclose(sites["z"].log_prob, -L * np.log(V), rtol=1e-6)
    drawn = lab.sites(vae(lab), num_data=9)["x"]
    assert drawn.value.shape == (9, *SHAPE)
    assert not drawn.is_observed


def test_particles_on_the_left(lab):
    sites = lab.sites(vae(lab), images(lab), particles=7)
    assert sites["z"].value.shape == (7, 6, L)
    assert sites["x"].log_prob.shape == (7, 6)
    assert len(np.unique(sites["z"].value[:, 0], axis=0)) > 1


def test_outputs_of_a_mean(lab):
    models, mean = lab.module("models"), np.array([[0.0, 0.2], [0.5, 0.95], [0.7, 1.0]])
    for likelihood, kept in (
        (models.BernoulliLikelihood(), np.clip(mean, 0.01, 0.99)),
        (models.GaussianLikelihood(), mean),
    ):
        outputs = lab.asarray(lab.numpy(likelihood.link(lab.asarray(mean))))
        if kept is mean:
            np.testing.assert_array_equal(lab.numpy(outputs), mean)
        else:
            found = likelihood(outputs, 2).mean
            np.testing.assert_allclose(lab.numpy(found), kept, rtol=1e-12)


def test_bernoulli_likelihood_in_closed_form(lab):
    logits, x = np.random.default_rng(1).normal(size=(7, 6, *SHAPE)), lab.numpy(images(lab))
    probs = 1 / (1 + np.exp(-logits))
    expected = np.log(np.where(x == 1, probs, 1 - probs)).sum((-2, -1))
    likelihood = lab.module("models").BernoulliLikelihood()
    found = likelihood(lab.asarray(logits), 2).log_prob(lab.asarray(x.astype(float)))
    np.testing.assert_allclose(lab.numpy(found), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), SHAPE])
@pytest.mark.parametrize("bounds", [None, (0.01, 1.0)])
def test_gaussian_likelihood_in_closed_form(lab, shape, bounds):
    rng = np.random.default_rng(2)
    mean, x = rng.normal(size=(7, 6, *SHAPE)), rng.normal(size=(6, *SHAPE))
    likelihood = lab.module("models").GaussianLikelihood(variance=0.3, shape=shape, bounds=bounds)
    likelihood = lab.network(likelihood, lab.asarray(mean), 2)
    density = -0.5 * (x - mean) ** 2 / 0.3 - 0.5 * np.log(2 * np.pi * 0.3)
    found = likelihood(lab.asarray(mean), 2).log_prob(lab.asarray(x))
    np.testing.assert_allclose(lab.numpy(found), density.sum((-2, -1)), rtol=1e-6)
    (slope,) = lab.parameter_gradients(
        likelihood, lambda net: net(lab.asarray(mean), 2).log_prob(lab.asarray(x)).sum()
    )
    assert slope.shape == shape
    assert (slope != 0).all()


def test_gaussian_variance_stays_within_its_bounds(lab):
    family = lab.module("models").GaussianLikelihood
    outputs = lab.asarray(np.zeros(SHAPE))
    likelihood = lab.network(family(bounds=(0.01, 1.0)), outputs, 2)
    for raw, bound in [(-30.0, 0.01), (30.0, 1.0)]:
        variance = lab.numpy(lab.filled(likelihood, raw)(outputs, 2).variance)
        np.testing.assert_allclose(variance, bound, rtol=1e-6)
    for wrong in [{"variance": -1.0}, {"variance": 1.0, "bounds": (0.01, 1.0)}]:
        with pytest.raises(ValueError, match="`variance` must lie"):
            family(**wrong)
    fixed = family(variance=0.2, learn=False)(outputs, 2)
    np.testing.assert_allclose(lab.numpy(fixed.variance), 0.2, rtol=1e-6)


def test_gaussian_variance_learns_the_residuals(lab):
    model = vae(lab, lab.module("models").GaussianLikelihood())
    x = np.random.default_rng(3).normal(scale=0.2, size=(100, *SHAPE)).astype(np.float32)
    trainer = lab.Trainer(model, guide(lab), lab.asarray(x), lr=0.05)
    trainer.run(150, lab.asarray(x))
    assert lab.variance_of(trainer, model) == pytest.approx(0.04, rel=0.3)


@pytest.mark.parametrize("learn", [True, False])
def test_bernoulli_prior(lab, learn):
    family = lab.module("models").BernoulliPrior
    model = vae(lab, prior=family(L, probability=0.2, learn=learn))
    fixed = lab.num_parameters(vae(lab, prior=family(L)), images(lab))
    assert lab.num_parameters(model, images(lab)) - fixed == learn * L
    sites = lab.sites(model, images(lab))
    active = sites["z"].value.sum(-1)
    expected = active * np.log(0.2) + (L - active) * np.log(0.8)
    np.testing.assert_allclose(sites["z"].log_prob, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="`probability`"):
        family(L, probability=1.0)


def test_reconstruction_is_the_mean(lab):
    model, z = vae(lab), lab.asarray(np.random.default_rng(4).integers(V, size=(7, 6, L)))
    means = lab.numpy(lab.bind(model.reconstruct, z)(z))
    assert means.shape == (7, 6, *SHAPE)
    assert ((means > 0) & (means < 1)).all()
    np.testing.assert_allclose(means.mean(), 0.5, atol=0.1)


def test_predictive_from_the_prior(lab):
    draws = lab.predict(vae(lab), num_data=3)
    assert draws["z"].shape == (5, 3, L)
    assert draws["x"].shape == (5, 3, *SHAPE)
    assert len(np.unique(draws["z"].reshape(-1, L), axis=0)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "must be told `num_data`"),
        ({"num_data": 0}, "at least one datum"),
        ({"x": np.zeros((0, *SHAPE))}, "at least one datum"),
        ({"x": np.zeros((4, *SHAPE)), "num_data": 5}, "without `x`"),
        ({"x": np.zeros((4, 2, 3))}, r"\(data, 3, 2\).*got \(4, 2, 3\)"),
        ({"x": np.zeros((4, 1, *SHAPE))}, r"\(data, 3, 2\).*got \(4, 1, 3, 2\)"),
        ({"x": np.zeros((4, *SHAPE), np.uint8)}, "Convert it first"),
    ],
)
def test_bad_data_are_named(lab, arguments, message):
    given = {k: lab.asarray(v) if k == "x" else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        lab.sites(vae(lab), condition={"z": np.zeros((4, L), int)}, **given)


@pytest.mark.thrifty
def test_a_decoder_that_drops_the_batch_is_named(lab):
    model = vae(lab)
    model.decoder = lab.flattening(model.decoder)
    with pytest.raises(ValueError, match="`decoder` must map codes"):
        lab.sites(model, images(lab))
