"""Diagnostics run at the trained parameters, whatever Pyro's globals hold, and change none."""

import numpy as np
import pytest

pytest.importorskip("torch")

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

from pyro_dvae.diagnostics import to_arviz
from pyro_dvae.fit import FitResult
from pyro_dvae.nets import register

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A trained network, one of Pyro's parameters, and one with a constraint."""

    def __init__(self):
        super().__init__()
        self.net, self.dropout = nn.Linear(1, 2), nn.Dropout(0.5)

    def forward(self, x):
        register("model", self)
        shift = pyro.param("shift", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            mean = self.dropout(self.net(z[..., None])) + shift
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))


TRAINED = {
    "model$$$net.weight": torch.tensor([[0.5], [1.0]]),
    "model$$$net.bias": torch.tensor([2.0, 3.0]),
    "shift": torch.tensor(0.25),
    "scale": torch.tensor(2.0),
}


def log_likelihood(z):
    mean = z[..., None] * TRAINED["model$$$net.weight"][:, 0] + TRAINED["model$$$net.bias"]
    return dist.Normal(mean + TRAINED["shift"], TRAINED["scale"]).log_prob(X).sum(-1)


def check(idata):
    z = torch.from_numpy(idata.posterior["z"].values[0])
    found = idata.log_likelihood["x"].values[0]
    np.testing.assert_allclose(found, log_likelihood(z), rtol=1e-5)


@pytest.fixture
def model():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return Model()


def state(model):
    store = pyro.get_param_store()
    values = {name: value.detach().clone() for name, value in store.items()}
    values |= {f"own {name}": value.detach().clone() for name, value in model.named_parameters()}
    return {**values, "mode": torch.tensor(model.training)}


@pytest.mark.parametrize("before", ["nothing", "others", "the same"])
def test_at_the_trained_parameters_and_nothing_changes(model, before):
    if before != "nothing":
        model(X)  # makes the parameters, at their first values
    if before == "the same":
        for name, value in TRAINED.items():
            pyro.get_param_store()[name].data.copy_(value)
        pyro.get_param_store()["scale"] = TRAINED["scale"]
    result = FitResult(model, guide, TRAINED, np.zeros(0))
    was = state(model)
    check(to_arviz(result, X, num_draws=20))
    is_now = state(model)
    assert was.keys() == is_now.keys()
    assert all(torch.equal(was[name], is_now[name]) for name in was)
    assert model.dropout.training


def test_a_pair_is_taken_as_it_is_or_with_parameters(model):
    check(to_arviz((model, guide), X, num_draws=20, params=TRAINED))
    model(X)
    idata = to_arviz((model, guide), X, num_draws=20, groups=("posterior", "log_likelihood"))
    with pytest.raises(AssertionError):
        check(idata)  # negative control: these are the live ones


def test_parameters_that_no_program_asks_for_are_refused(model):
    for result in ((model, guide), FitResult(model, guide, TRAINED, np.zeros(0))):
        with pytest.raises(
            ValueError, match=r"`params` has \['shfit'\], for which neither .*'scale'"
        ):
            to_arviz(result, X, num_draws=20, params={"shfit": torch.tensor(1.0)})
    check(to_arviz((model, guide), X, num_draws=20, params=TRAINED | {"another": torch.zeros(())}))
    moved = {"shift": TRAINED["shift"] + 1.0}
    idata = to_arviz(FitResult(model, guide, TRAINED, np.zeros(0)), X, num_draws=20, params=moved)
    z = torch.from_numpy(idata.posterior["z"].values[0])
    mean = z[..., None] * TRAINED["model$$$net.weight"][:, 0] + TRAINED["model$$$net.bias"]
    expected = dist.Normal(mean + 1.25, 2.0).log_prob(X).sum(-1)
    np.testing.assert_allclose(idata.log_likelihood["x"].values[0], expected, rtol=1e-5)


def test_a_program_that_does_not_broadcast_is_run_draw_by_draw(model):
    def narrow(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            mean = torch.stack([z, -z], 1)  # takes no axis of draws
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    idata = to_arviz((narrow, guide), X, num_draws=20)
    z = torch.from_numpy(idata.posterior["z"].values[0]).float()
    expected = dist.Normal(torch.stack([z, -z], -1), 1.0).log_prob(X).sum(-1)
    np.testing.assert_allclose(idata.log_likelihood["x"].values[0], expected, rtol=1e-5)
    assert idata.prior_predictive["x"].shape == (1, 20, 4, 2)


def test_something_else_is_refused():
    with pytest.raises(ValueError, match=r"`result` must be a FitResult, or a pair .*got dict"):
        to_arviz({}, X)


def test_a_global_latent_cannot_go_in_batches():
    def program(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            if program.observes:
                pyro.sample("x", dist.Normal(g, 1.0).expand([2]).to_event(1), obs=x)

    def model(x):
        program.observes = True
        program(x)

    def guide(x):
        program.observes = False
        program(x)

    with pytest.warns(UserWarning, match="draws of 'g' as if they were the posterior's"):
        assert to_arviz((model, guide), X, num_draws=3).posterior["g"].shape == (1, 3)
    with pytest.raises(ValueError, match=r"`batch_size`: site 'g' is not under"):
        to_arviz((model, guide), X, num_draws=3, batch_size=2)


def test_gradients_and_states_of_losses_are_left_as_they_were(model):
    from pyro_dvae.diagnostics import gradient_variance
    from pyro_dvae.infer import Reinforce_ELBO

    loss = Reinforce_ELBO(1)  # its moving average remembers
    loss.loss_and_grads(model, guide, X)
    state, grad = loss.state, model.net.weight.grad.clone()
    before = model.net.weight.detach().clone()
    stock = pyro.infer.TraceGraph_ELBO()
    found = gradient_variance(
        FitResult(model, guide, TRAINED, np.zeros(0)),
        X,
        losses={"ours": loss, "stock": stock},
        num_repeats=3,
    )
    assert loss.state is state
    assert torch.equal(model.net.weight.grad, grad)
    assert torch.equal(model.net.weight, before)
    assert set(found.variance) == set(TRAINED)
    assert (found.noise > 0).all()
