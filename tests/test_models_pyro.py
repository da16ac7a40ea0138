"""Parameters of models in Pyro's store: any number of instances train, restore and are copied."""

import copy

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro import distributions as dist  # noqa: E402
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO  # noqa: E402

from pyro_dvae.guides import IndependentGuide  # noqa: E402
from pyro_dvae.models import (  # noqa: E402
    BernoulliLikelihood,
    DiscreteVAE,
    GaussianLikelihood,
    UniformPrior,
    mnist_vae,
)
from pyro_dvae.nets import MLPDecoder, MLPEncoder, register  # noqa: E402
from pyro_dvae.nets.registration import run_encoder  # noqa: E402

SHAPE, L, V = (3, 2), 4, 5


@pytest.fixture(autouse=True)
def _fresh():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def vae():
    decoder = MLPDecoder(L, V, SHAPE, embed_dim=3, hidden=(8,))
    return DiscreteVAE(decoder, UniformPrior(L, V), BernoulliLikelihood())


def guide():
    return IndependentGuide(MLPEncoder(SHAPE, L, V, hidden=(8,)))


def images(size=6):
    return torch.rand(size, *SHAPE).round()


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
    pyro.poutine.trace(fresh).get_trace(x)
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
    twin.decoder.layers[0].weight.data.mul_(2.0)  # more could silence its units
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


def test_the_variance_now_is_an_attribute():
    likelihood = GaussianLikelihood(bounds=(0.01, 1.0))
    for raw, bound in [(-30.0, 0.01), (30.0, 1.0)]:
        likelihood.raw.data.fill_(raw)
        assert likelihood.variance.item() == pytest.approx(bound)
    assert not list(GaussianLikelihood(learn=False).parameters())


def test_a_gaussian_likelihood_is_checked_as_a_normal_is():
    means, wide = torch.zeros(3, 2, 2), torch.full((3, 2, 2), 3e38)
    likelihood = GaussianLikelihood(variance=0.25, learn=False)
    for outputs in (means, wide, wide * torch.tensor([1.0, -2.0]), means.log()):
        fn, stock = likelihood(outputs, 2), dist.Normal(outputs, 0.5).to_event(2)
        torch.testing.assert_close(fn.log_prob(means), stock.log_prob(means))
        with pytest.raises(ValueError, match="within the support"):
            fn.log_prob(means * torch.nan)
    with pytest.raises(ValueError, match="parameter loc"):
        likelihood(means * torch.nan, 2)
    likelihood.raw.fill_(torch.nan)
    with pytest.raises(ValueError, match="parameter scale"):
        likelihood(means, 2)
    with pyro.validation_enabled(False):
        assert likelihood(means, 2).log_prob(means).isnan().all()


@pytest.mark.parametrize("layer", [torch.nn.Linear(3, 2), torch.nn.Conv2d(3, 2, 1)])
def test_data_in_another_precision_than_the_encoder_are_told_what_to_do(layer):
    x = torch.zeros(4, 3) if isinstance(layer, torch.nn.Linear) else torch.zeros(4, 3, 5, 5)
    with pytest.raises(
        ValueError, match=r"float64: .* one precision: x\.float\(\), or encoder\.to"
    ):
        run_encoder(layer, x.double())
    with pytest.raises(ValueError, match="x / 255 of bytes"):
        run_encoder(layer, x.byte())
