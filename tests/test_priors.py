"""Learnt priors over codes, alone and in a discrete VAE, and the search for their modes."""

import numpy as np
import pytest

SHAPE, L, V, CLASSES = (3, 2), 3, 4, 2
RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 1, 0, 1])


def transformer(lab, **options):
    return lab.module("nets").CausalTransformer(L, V, embed_dim=8, num_heads=2, **options)


def prior(lab, kind):
    models = lab.module("models")
    if kind == "independent":
        return models.CategoricalPrior(L, V)
    if kind == "autoregressive":
        return models.AutoregressivePrior(transformer(lab, cross_attention=False))
    return models.AutoregressivePrior(transformer(lab), num_classes=CLASSES)


def distribution(lab, kind):
    """With fresh parameters; three rows of context, five labels, or none."""
    if kind == "context":
        context = lab.asarray(RNG.normal(size=(2, 5, 8)).astype(np.float32))
        codes = lab.asarray(np.zeros((2, L), int))
        net = lab.network(transformer(lab), codes, context, dtype="float32")
        return lab.module("distributions").AutoregressiveCategorical(net, context)
    if kind == "independent":
        return lab.network(prior(lab, kind))()
    labels = (lab.asarray(LABELS),) if kind == "classes" else ()
    return lab.bind(prior(lab, kind), *labels)(*labels)


def enumerated(lab, q):
    """All codes (S, L), and their log-probabilities (S, *batch)."""
    codes = np.stack(np.meshgrid(*[np.arange(V)] * L, indexing="ij"), -1).reshape(-1, L)
    shaped = codes.reshape(len(codes), *[1] * len(q.batch_shape), L)
    shaped = np.broadcast_to(shaped, (len(codes), *q.batch_shape, L))
    return codes, lab.numpy(q.log_prob(lab.asarray(shaped.copy())))


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", ["independent", "autoregressive", "classes"])
def test_probabilities_sum_to_one(lab, kind):
    q = distribution(lab, kind)
    batch = (len(LABELS),) if kind == "classes" else ()
    assert tuple(q.batch_shape) == batch
    _, log_probs = enumerated(lab, q)
    np.testing.assert_allclose(np.exp(log_probs).sum(0), 1.0, rtol=1e-5)
    assert lab.numpy(lab.draw(q, (7,))).shape == (7, *batch, L)
    if kind == "classes":
        same, other = log_probs[:, LABELS == 1], log_probs[:, 0]
        np.testing.assert_allclose(same, same[:, :1].repeat(3, 1), rtol=1e-5)
        assert np.abs(same[:, 0] - other).max() > 0.01


def trained_prior(lab, trainer, model):
    if lab.name == "pyro":
        return model.prior()
    from numpyro.handlers import substitute

    from numpyro_dvae.nets import register

    return substitute(lambda: register("model.prior", model.prior)(), data=trainer.params)()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "autoregressive"])
def test_a_second_stage_learns_what_it_can(lab, kind):
    """Codes that are all equal: log V nats for a joint prior, L log V for an independent one."""
    codes = lab.asarray(np.repeat(np.arange(4 * V) % V, L).reshape(-1, L))
    model = lab.module("models").CodeModel(prior(lab, kind))
    trainer = lab.Trainer(model, lambda codes: None, codes, lr=0.03, num_particles=1)
    trainer.run(100, codes)
    q = trained_prior(lab, trainer, model)
    cost = -lab.numpy(q.log_prob(codes)).mean() / np.log(V)
    assert cost == pytest.approx(1.0 if kind == "autoregressive" else L, rel=0.1)
    drawn = lab.numpy(lab.draw(q, (200,)))
    equal = (drawn == drawn[:, :1]).all(-1).mean()
    assert (equal > 0.8) == (kind == "autoregressive")


@pytest.mark.slow
def test_a_discrete_vae_trains_its_prior(lab):
    nets, models, guides = map(lab.module, ("nets", "models", "guides"))
    decoder = nets.MLPDecoder(L, V, SHAPE, embed_dim=3, hidden=(8,))
    p = prior(lab, "autoregressive")
    model = models.DiscreteVAE(decoder, p, models.BernoulliLikelihood())
    guide = guides.IndependentGuide(nets.MLPEncoder(SHAPE, L, V, hidden=(8,)))
    x = lab.asarray(RNG.uniform(size=(6, *SHAPE)).round().astype(np.float32))
    trainer = lab.Trainer(model, guide, x)
    before = trainer.parameters()
    trainer.run(3, x)
    after = trainer.parameters()
    still = [a.shape for a, b in zip(before, after, strict=True) if np.array_equal(a, b)]
    assert not still
    draws = lab.sites(model, num_data=4)
    assert draws["x"].value.shape == (4, *SHAPE)


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", ["autoregressive", "context"])
def test_a_full_beam_is_the_sorted_support(lab, kind):
    q = distribution(lab, kind)
    codes, log_probs = enumerated(lab, q)
    found = lab.module("nets").decode_codes(q, beam_width=V**L)
    order = np.argsort(-log_probs, axis=0)
    np.testing.assert_allclose(
        lab.numpy(found.log_probs), np.take_along_axis(log_probs, order, 0), rtol=1e-4
    )
    np.testing.assert_array_equal(lab.numpy(found.codes)[0], codes[log_probs.argmax(0)])
    scored = q.log_prob(found.codes)
    np.testing.assert_allclose(lab.numpy(scored), lab.numpy(found.log_probs), rtol=1e-4)


@pytest.mark.thrifty
def test_a_greedy_code_is_best_step_by_step(lab):
    q = distribution(lab, "context")
    found = lab.module("nets").decode_codes(q)
    codes, log_probs = enumerated(lab, q)
    for datum in range(2):
        prefix = []
        for latent in range(L):
            mass = [
                np.exp(log_probs[(codes[:, : latent + 1] == [*prefix, v]).all(1), datum]).sum()
                for v in range(V)
            ]
            prefix.append(int(np.argmax(mass)))
        assert lab.numpy(found.codes)[0, datum].tolist() == prefix


def test_bad_input_is_named(lab):
    models, nets = lab.module("models"), lab.module("nets")
    for cross_attention, num_classes in [(True, None), (False, 3)]:
        net = transformer(lab, cross_attention=cross_attention)
        with pytest.raises(ValueError, match="must have cross_attention="):
            models.AutoregressivePrior(net, num_classes=num_classes)
    with pytest.raises(ValueError, match="`num_classes` must be at least 1"):
        models.AutoregressivePrior(transformer(lab), num_classes=0)
    with pytest.raises(ValueError, match="`labels` must be given"):
        prior(lab, "classes")()
    with pytest.raises(ValueError, match="`labels` must be None"):
        prior(lab, "autoregressive")(lab.asarray(LABELS))
    with pytest.raises(ValueError, match="`beam_width` must be at least 1"):
        nets.decode_codes(distribution(lab, "autoregressive"), beam_width=0)
    with pytest.raises(ValueError, match="must be an AutoregressiveCategorical; got Independent"):
        nets.decode_codes(distribution(lab, "independent"))


def test_a_prior_of_the_wrong_length_is_named(lab):
    nets, models = lab.module("nets"), lab.module("models")
    codes = lab.asarray(np.zeros((4, L + 1), int))
    with pytest.raises(ValueError, match="of 3 latents, but the codes are 4"):
        lab.sites(models.CodeModel(prior(lab, "independent")), codes)
    with pytest.raises(ValueError, match="Without `codes`"):
        lab.sites(models.CodeModel(prior(lab, "independent")))
    decoder = nets.MLPDecoder(L + 1, V, SHAPE, embed_dim=3, hidden=(8,))
    model = models.DiscreteVAE(decoder, prior(lab, "independent"), models.BernoulliLikelihood())
    x = lab.asarray(np.zeros((4, *SHAPE), np.float32))
    with pytest.raises(ValueError, match="of 3 latents, but the codes are 4"):
        lab.sites(model, x, condition={"z": np.zeros((4, L + 1), int)})
