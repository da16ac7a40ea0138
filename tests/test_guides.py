"""Guides in Pyro programs: shapes, particles, prediction, training, bad input."""

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro.infer import SVI, Predictive, TraceGraph_ELBO  # noqa: E402

from pyro_dvae.guides import AutoregressiveGuide, IndependentGuide, mnist_guide  # noqa: E402
from pyro_dvae.models import (  # noqa: E402
    BernoulliLikelihood,
    BernoulliPrior,
    DiscreteVAE,
    UniformPrior,
)
from pyro_dvae.nets import CausalTransformer, MLPDecoder, MLPEncoder, PatchEncoder  # noqa: E402

SHAPE, L, V = (4, 4), 3, 5
KINDS = ["independent", "binary", "autoregressive"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _fresh():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def pair(kind):
    num_codes = None if kind == "binary" else V
    prior = BernoulliPrior(L) if kind == "binary" else UniformPrior(L, V)
    decoder = MLPDecoder(L, num_codes, SHAPE, embed_dim=4, hidden=(8,))
    model = DiscreteVAE(decoder, prior, BernoulliLikelihood())
    if kind == "autoregressive":
        encoder = PatchEncoder(SHAPE, 4, embed_dim=8, num_heads=2)
        net = CausalTransformer(L, V, embed_dim=8, num_heads=2)
        return model, AutoregressiveGuide(encoder, net)
    return model, IndependentGuide(MLPEncoder(SHAPE, L, num_codes), binary=kind == "binary")


def images(size=6):
    return torch.rand(size, *SHAPE).round()


def test_published_encoder_size():
    # Published: 156k. Fixed sinusoidal positions, no biases in attention, and one embedding
    # more than theirs: that of the beginning of a sequence.
    assert sum(p.numel() for p in mnist_guide().parameters()) == 155_648
    independent = mnist_guide(autoregressive=False)
    assert sum(p.numel() for p in independent.parameters()) == 785 * 256 + 257 * 8 * 256


@kinds
def test_the_site_and_its_particles(kind):
    _, guide = pair(kind)
    x = images()
    trace = pyro.poutine.trace(pyro.plate("particles", 7, dim=-2)(guide)).get_trace(x)
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (7, 6, L)
    assert site["log_prob"].shape == (7, 6)
    torch.testing.assert_close(site["log_prob"], guide.posterior(x).log_prob(site["value"]))
    assert len(torch.unique(site["value"][:, 0], dim=0)) > 1


@kinds
def test_every_parameter_trains(kind):
    model, guide = pair(kind)
    elbo = TraceGraph_ELBO(num_particles=4, vectorize_particles=True)
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    x = images()
    for _ in range(5):
        svi.step(x)
    after = (*model.parameters(), *guide.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@kinds
def test_predictive_with_a_guide(kind):
    model, guide = pair(kind)
    x = images()
    draws = Predictive(model, guide=guide, num_samples=5, return_sites=("z", "x"))(x)
    assert draws["z"].shape == (5, 6, L)
    z = Predictive(guide, num_samples=5)(x)
    replicated = Predictive(model, posterior_samples={"z": z["z"]})(num_data=6)["x"]
    assert replicated.shape == (5, 6, *SHAPE)
    fast = Predictive(model, guide=guide, num_samples=5, parallel=True)(x)
    assert fast["z"].reshape(5, 6, L).shape == (5, 6, L)


def test_gradients_of_two_backward_passes_add():
    """The autoregressive guide keeps no graph from one call to the next."""
    _, guide = pair("autoregressive")
    x = images()
    for _ in range(2):
        q = guide.posterior(x)
        q.log_prob(q.sample((3,))).sum().backward()


@kinds
def test_half_precision_networks_keep_float32_densities(kind):
    model, guide = pair(kind)
    x = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = guide.posterior(x)
        z = q.sample((50,))
        log_q, log_p = q.log_prob(z), model.likelihood(model.decoder(z), 2).log_prob(x)
    assert log_q.dtype == log_p.dtype == torch.float32
    torch.testing.assert_close(log_q, guide.posterior(x).log_prob(z), rtol=0, atol=0.1)
    (log_q.sum() + log_p.sum()).backward()


@kinds
def test_bad_data_are_named(kind):
    _, guide = pair(kind)
    with pytest.raises(ValueError, match=r"needs data `x`.*got None"):
        guide()
    with pytest.raises(ValueError, match=r"needs data `x`.*\(0, 4, 4\)"):
        guide(images(0))
    with pytest.raises(ValueError, match="`num_data`"):
        guide(images(), num_data=5)
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*batch, 4, 4\)"):
        guide(images()[..., :2])


def test_logits_that_do_not_fit_the_kind_of_latent():
    x = images()
    with pytest.raises(ValueError, match="with `binary`"):
        IndependentGuide(MLPEncoder(SHAPE, L, V), binary=True)(x)
    with pytest.raises(ValueError, match="with `binary`"):
        IndependentGuide(MLPEncoder(SHAPE, L))(x)
