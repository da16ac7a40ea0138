"""Guides in programs: shapes, particles, prediction, training, half precision, bad input."""

import numpy as np
import pytest

SHAPE, L, V = (4, 4), 3, 5
KINDS = ["independent", "binary", "autoregressive"]
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(lab, kind):
    models, guides, nets = map(lab.module, ("models", "guides", "nets"))
    num_codes = None if kind == "binary" else V
    prior = models.BernoulliPrior(L) if kind == "binary" else models.UniformPrior(L, V)
    decoder = nets.MLPDecoder(L, num_codes, SHAPE, embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, prior, models.BernoulliLikelihood())
    if kind == "autoregressive":
        encoder = nets.PatchEncoder(SHAPE, 4, embed_dim=8, num_heads=2)
        net = nets.CausalTransformer(L, V, embed_dim=8, num_heads=2)
        return model, guides.AutoregressiveGuide(encoder, net)
    encoder = nets.MLPEncoder(SHAPE, L, num_codes)
    return model, guides.IndependentGuide(encoder, binary=kind == "binary")


def images(lab, size=6):
    array = np.random.default_rng(0).uniform(size=(size, *SHAPE)).round()
    return lab.asarray(array.astype(np.float32))


def test_published_encoder_size(lab):
    # Published: 156k. Fixed sinusoidal positions, no biases in attention, and one embedding
    # more than theirs: that of the beginning of a sequence.
    guides, x = lab.module("guides"), lab.asarray(np.zeros((1, 28, 28), np.float32))
    assert lab.num_parameters(guides.mnist_guide(), x) == 155_648
    independent = guides.mnist_guide(autoregressive=False)
    assert lab.num_parameters(independent, x) == 785 * 256 + 257 * 8 * 256


@pytest.mark.thrifty
@kinds
def test_the_site_and_its_particles(lab, kind):
    _, guide = pair(lab, kind)
    site = lab.sites(guide, images(lab), particles=7)["z"]
    assert site.value.shape == (7, 6, L)
    assert site.log_prob.shape == (7, 6)
    assert (site.log_prob < 0).all()
    assert len(np.unique(site.value[:, 0], axis=0)) > 1


@pytest.mark.thrifty
@kinds
def test_every_parameter_trains(lab, kind):
    trainer = lab.Trainer(*pair(lab, kind), images(lab))
    before = trainer.parameters()
    trainer.run(5, images(lab))
    after = trainer.parameters()
    assert not any(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.thrifty
@kinds
def test_predictive_with_a_guide(lab, kind):
    model, guide = pair(lab, kind)
    draws = lab.predict(model, guide, None, images(lab))
    assert draws["z"].shape == (5, 6, L)
    replicated = lab.predict(model, None, {"z": draws["z"]}, num_data=6)["x"]
    assert replicated.shape == (5, 6, *SHAPE)


@pytest.mark.thrifty
@kinds
def test_half_precision_networks_keep_float32_densities(lab, kind):
    _, guide = pair(lab, kind)
    q, precise = lab.half_and_full(guide.posterior, images(lab))
    z = lab.draw(q, (50,))
    log_q = q.log_prob(z)
    assert str(log_q.dtype).endswith("float32")
    np.testing.assert_allclose(lab.numpy(log_q), lab.numpy(precise.log_prob(z)), rtol=0, atol=0.1)


@kinds
def test_bad_data_are_named(lab, kind):
    _, guide = pair(lab, kind)
    with pytest.raises(ValueError, match=r"needs data `x`.*got None"):
        lab.sites(guide)
    with pytest.raises(ValueError, match=r"needs data `x`.*\(0, 4, 4\)"):
        lab.sites(guide, images(lab, 0))
    with pytest.raises(ValueError, match="`num_data`"):
        lab.sites(guide, images(lab), num_data=5)
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*batch, 4, 4\)"):
        lab.sites(guide, images(lab)[..., :2])


def test_a_guide_of_ones_own_defines_its_posterior(lab):
    base = lab.module("guides").AmortisedGuide

    class Constant(base):
        def posterior(self, x):
            logits = np.full((len(x), L), 2.0, np.float32)
            return lab.stock.Bernoulli(logits=lab.asarray(logits)).to_event(1)

    site = lab.sites(Constant(), images(lab))["z"]
    ones = site.value.sum(-1)
    expected = 2.0 * ones - L * np.log1p(np.exp(2.0))
    np.testing.assert_allclose(site.log_prob, expected, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="AmortisedGuide must define `posterior`"):
        lab.sites(base(), images(lab))


def test_logits_that_do_not_fit_the_kind_of_latent(lab):
    family, encoder = lab.module("guides").IndependentGuide, lab.module("nets").MLPEncoder
    for guide in [family(encoder(SHAPE, L, V), binary=True), family(encoder(SHAPE, L))]:
        with pytest.raises(ValueError, match="with `binary`"):
            lab.sites(guide, images(lab))
