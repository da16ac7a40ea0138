"""The discrete VAE as a Pyro model: sites, priors, likelihoods, and parameters that train."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO  # noqa: E402

from pyro_dvae.guides import IndependentGuide  # noqa: E402
from pyro_dvae.models import (  # noqa: E402
    BernoulliLikelihood,
    BernoulliPrior,
    DiscreteVAE,
    GaussianLikelihood,
    UniformPrior,
    mnist_vae,
)
from pyro_dvae.nets import MLPDecoder, MLPEncoder, register  # noqa: E402

SHAPE, L, V = (3, 2), 4, 5


@pytest.fixture(autouse=True)
def _fresh():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def vae(likelihood=None, prior=None):
    num_codes = V if prior is None else None
    decoder = MLPDecoder(L, num_codes, SHAPE, embed_dim=3, hidden=(8,))
    return DiscreteVAE(decoder, prior or UniformPrior(L, V), likelihood or BernoulliLikelihood())


def guide():
    return IndependentGuide(MLPEncoder(SHAPE, L, V, hidden=(8,)))


def images(size=6):
    return torch.rand(size, *SHAPE).round()


def trace_of(model, *args, **kwargs):
    trace = pyro.poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes


def test_published_decoder_size():
    assert sum(p.numel() for p in mnist_vae().parameters()) == 267_344  # published: 267k


def test_sites_with_and_without_data():
    sites = trace_of(vae(), images())
    assert sites["z"]["value"].shape == (6, L)
    assert sites["z"]["log_prob"].shape == sites["x"]["log_prob"].shape == (6,)
    assert sites["x"]["is_observed"]
    torch.testing.assert_close(sites["z"]["log_prob"], torch.full((6,), -L * np.log(V)).float())
    drawn = trace_of(vae(), num_data=9)["x"]
    assert drawn["value"].shape == (9, *SHAPE)
    assert not drawn["is_observed"]


def test_particles_on_the_left():
    model, x = vae(), images()
    sites = trace_of(pyro.plate("particles", 7, dim=-2)(model), x)
    assert sites["z"]["value"].shape == (7, 6, L)
    assert sites["x"]["log_prob"].shape == (7, 6)
    assert len(torch.unique(sites["z"]["value"][:, 0], dim=0)) > 1


def test_bernoulli_likelihood_in_closed_form():
    logits, x = torch.randn(7, 6, *SHAPE, dtype=torch.float64), images().double()
    probs = 1 / (1 + (-logits).exp())
    expected = torch.where(x == 1, probs, 1 - probs).log().sum((-2, -1))
    found = BernoulliLikelihood()(logits, 2).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), SHAPE])
@pytest.mark.parametrize("bounds", [None, (0.01, 1.0)])
def test_gaussian_likelihood_in_closed_form(shape, bounds):
    likelihood = GaussianLikelihood(variance=0.3, shape=shape, bounds=bounds).double()
    mean, x = torch.randn(7, 6, *SHAPE).double(), torch.randn(6, *SHAPE).double()
    density = -0.5 * (x - mean) ** 2 / 0.3 - 0.5 * np.log(2 * np.pi * 0.3)
    found = likelihood(mean, 2).log_prob(x)
    torch.testing.assert_close(found, density.sum((-2, -1)), rtol=1e-6, atol=0)
    found.sum().backward()
    assert likelihood.raw.grad.shape == shape
    assert (likelihood.raw.grad != 0).all()


def test_gaussian_variance_stays_within_its_bounds():
    likelihood = GaussianLikelihood(bounds=(0.01, 1.0))
    for raw, bound in [(-30.0, 0.01), (30.0, 1.0)]:
        likelihood.raw.data.fill_(raw)
        assert likelihood.variance.item() == pytest.approx(bound)
    for wrong in [{"variance": -1.0}, {"variance": 1.0, "bounds": (0.01, 1.0)}]:
        with pytest.raises(ValueError, match="`variance` must lie"):
            GaussianLikelihood(**wrong)
    assert not list(GaussianLikelihood(learn=False).parameters())


def test_gaussian_variance_learns_the_residuals():
    model = vae(GaussianLikelihood())
    q, x = guide(), 0.2 * torch.randn(200, *SHAPE)
    svi = SVI(model, q, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(x)
    assert model.likelihood.variance.item() == pytest.approx(0.04, rel=0.3)


@pytest.mark.parametrize("learn", [True, False])
def test_bernoulli_prior(learn):
    prior = BernoulliPrior(L, probability=0.2, learn=learn)
    assert len(list(prior.parameters())) == learn
    sites = trace_of(vae(prior=prior), images())
    active = sites["z"]["value"].sum(-1)
    expected = active * np.log(0.2) + (L - active) * np.log(0.8)
    torch.testing.assert_close(sites["z"]["log_prob"], expected)
    with pytest.raises(ValueError, match="`probability`"):
        BernoulliPrior(L, probability=1.0)


def test_reconstruction_is_the_mean():
    model, z = vae(), torch.randint(V, (7, 6, L))
    torch.testing.assert_close(model.reconstruct(z), model.decoder(z).sigmoid())


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_from_the_prior(parallel):
    draws = Predictive(vae(), num_samples=5, parallel=parallel)(num_data=3)
    assert draws["z"].shape == (5, 3, L)
    assert draws["x"].shape == (5, 3, *SHAPE)


def snapshot(*nets):
    return [p.detach().clone() for net in nets for p in net.parameters()]


def moved(before, *nets):
    pairs = zip(before, snapshot(*nets), strict=True)
    return [not torch.equal(old, new) for old, new in pairs]


def step(model, q, x):
    svi = SVI(model, q, pyro.optim.Adam({"lr": 0.01}), TraceGraph_ELBO())
    svi.step(x)
    return svi


def test_two_models_train_in_one_process():
    x, first, second = images(), (vae(), guide()), (vae(), guide())
    svis = []
    for pair in (first, second):
        before = snapshot(*pair)
        svis.append(step(*pair, x))
        assert all(moved(before, *pair))
    before, other = snapshot(*first), snapshot(*second)
    svis[0].step(x)  # interleaved: the first trains on, the second keeps still
    assert all(moved(before, *first))
    assert not any(moved(other, *second))


def test_stock_registration_would_train_nothing():
    """The negative control: `pyro.module` leaves a second network as it was."""

    class Stock(DiscreteVAE):
        def forward(self, x=None, **kwargs):
            pyro.module("model", self)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(self.decoder(z), 2), obs=x)

    pair, q = [Stock(*(vae()._modules.values())) for _ in range(2)], guide()
    before = snapshot(pair[1])
    for model in pair:
        step(model, q, images())
    assert not any(moved(before, pair[1]))


def test_optimiser_state_is_found_by_name_again():
    x, svi = images(), step(vae(), guide(), images())
    saved = svi.optim.get_state()
    assert {name.partition("$$$")[0] for name in saved} == {"model", "guide"}
    model, q = vae(), guide()
    resumed = SVI(model, q, pyro.optim.Adam({"lr": 0.01}), TraceGraph_ELBO())
    resumed.optim.set_state(saved)
    resumed.step(x)
    steps = {s["state"][0]["step"].item() for s in resumed.optim.get_state().values()}
    assert steps == {2.0}


def test_a_loaded_store_is_adopted(tmp_path):
    model, q, x = vae(), guide(), images()
    step(model, q, x)
    pyro.get_param_store().save(tmp_path / "store.pt")
    saved = snapshot(model)
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    fresh = vae()
    trace_of(fresh, x)
    assert not any(moved(saved, fresh))
    assert all(moved(saved, step(fresh, guide(), x).model))
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    with pytest.raises(ValueError, match=r"shape.*clear_param_store"):
        register("model", mnist_vae())


def test_a_copy_of_a_model_is_a_model_of_its_own():
    model, q, x = vae(), guide(), images()
    step(model, q, x)
    twin = copy.deepcopy(model)
    before = snapshot(model)
    twin.decoder.layers[0].weight.data.add_(1.0)
    changed = snapshot(twin)
    step(twin, q, x)
    assert all(moved(changed, twin))
    assert not any(moved(before, model))


def test_plain_torch_training_through_an_elbo_module():
    model, q, x = vae(), guide(), images()
    elbo = Trace_ELBO()(model, q)
    before, optimiser = snapshot(model, q), torch.optim.Adam(elbo.parameters(), 0.01)
    elbo(x).backward()
    optimiser.step()
    assert all(moved(before, model, q))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "must be told `num_data`"),
        ({"num_data": 0}, "at least one datum"),
        ({"x": torch.zeros(0, *SHAPE)}, "at least one datum"),
        ({"x": torch.zeros(4, *SHAPE), "num_data": 5}, "without `x`"),
        ({"x": torch.zeros(4, 2, 3)}, r"\(data, 3, 2\).*got \(4, 2, 3\)"),
        ({"x": torch.zeros(4, 1, *SHAPE)}, r"\(data, 3, 2\).*got \(4, 1, 3, 2\)"),
        ({"x": torch.zeros(4, *SHAPE, dtype=torch.uint8)}, "Convert it first"),
    ],
)
def test_bad_data_are_named(arguments, message):
    if arguments.get("x") is not None and arguments["x"].dtype == torch.uint8:
        model = pyro.condition(vae(), data={"z": torch.zeros(4, L, dtype=torch.long)})
    else:
        model = vae()
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_a_decoder_that_drops_the_batch_is_named():
    decoder = torch.nn.Sequential(MLPDecoder(L, V, SHAPE), torch.nn.Flatten(0, 1))
    model = DiscreteVAE(decoder, UniformPrior(L, V), BernoulliLikelihood())
    with pytest.raises(ValueError, match="`decoder` must map codes"):
        model(images())
