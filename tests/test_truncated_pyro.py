"""What only Pyro has: one-hot sites, subsampling plates, autoguides, modules and their state."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import log_evidence
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.util import site_is_subsample

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TABLE = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.0]], dtype=torch.float64)
PROBS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def one_hot_model(x, subsample_size=None):
    with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
        z = pyro.sample("z", dist.OneHotCategorical(PROBS).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal((z @ TABLE).sum(-2), 1.0).to_event(1), obs=x[rows])


def log_joints(x):
    """(9, data)."""
    return torch.stack(
        [
            PROBS[i].log() + PROBS[j].log() + dist.Normal(TABLE[i] + TABLE[j], 1).log_prob(x).sum(1)
            for i in range(3)
            for j in range(3)
        ]
    ).numpy()


def test_one_hot_sites_have_a_code_per_row():
    guide = TruncatedGuide(one_hot_model, 9)
    loss = Truncated_ELBO().loss(one_hot_model, guide, X)
    np.testing.assert_allclose(loss, -log_evidence(log_joints(X)).sum(), rtol=1e-9)
    assert guide(X)["z"].shape == (5, 2, 3)
    found = Trace_ELBO(num_particles=4, vectorize_particles=True).loss(one_hot_model, guide, X)
    np.testing.assert_allclose(found, loss, rtol=1e-9)


def test_a_plate_that_subsamples_draws_the_rows_once():
    """The guide, the model and every pass of the loss see the same rows."""
    pyro.set_rng_seed(0)
    guide, elbo = TruncatedGuide(one_hot_model, 9), Truncated_ELBO()
    with poutine.trace() as trace:
        guide(X, 2)
    (rows,) = (site["value"] for site in trace.trace.nodes.values() if site_is_subsample(site))
    expected = -log_evidence(log_joints(X))
    pairs = {(5 / 2) * (expected[a] + expected[b]) for a in range(5) for b in range(a)}
    assert len(rows) == 2
    for loss in (elbo.loss, Trace_ELBO().loss):
        found = loss(one_hot_model, guide, X, 2)
        assert min(abs(found - pair) for pair in pairs) < 1e-9 * abs(found)
    before = guide.words.clone()
    small = TruncatedGuide(one_hot_model, 3)
    small(X, 2)
    small.words.copy_(before[:, :3])
    elbo.differentiable_loss(one_hot_model, small, X, 2)
    assert (small.words != before[:, :3]).any(-1).any(-1).sum() <= 2


def continuous_model(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(c + 2 * z, scale), obs=x)


def test_an_autoguide_samples_the_rest():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    rest = AutoNormal(poutine.block(continuous_model, hide=["z"]))
    guide = TruncatedGuide(continuous_model, 2, rest=rest)
    svi = SVI(continuous_model, guide, pyro.optim.Adam({"lr": 0.05}), loss=Truncated_ELBO())
    x = torch.tensor([-1.0, 0.1, 2.2, 2.5, 0.3])
    losses = [svi.step(x) for _ in range(30)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert guide(x).keys() >= {"scale", "c", "z"}


def test_particles_of_the_rest_have_weights_of_their_own():
    """Draws of several particles: q(z) is given each one's continuous latents."""
    pyro.set_rng_seed(0)

    def rest(x):
        pyro.sample("scale", dist.LogNormal(0.0, 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Normal(0.5 * x, 1.0))

    guide, x = TruncatedGuide(continuous_model, 2, rest=rest), torch.tensor([-1.0, 0.1, 2.2])
    guide(x)
    with poutine.trace() as trace, pyro.plate("particles", 4, dim=-2):
        guide(x)
    z, c, scale = (trace.trace.nodes[name] for name in ("z", "c", "scale"))
    log_joint = [
        torch.tensor(p).log() + dist.Normal(c["value"] + 2 * k, scale["value"]).log_prob(x)
        for k, p in enumerate((0.6, 0.4))
    ]
    log_q = torch.stack(log_joint).log_softmax(0)
    expected = torch.where(z["value"] == 1, log_q[1], log_q[0])
    assert z["value"].shape == (4, 3)
    torch.testing.assert_close(z["fn"].log_prob(z["value"]), expected, rtol=1e-4, atol=1e-5)


def test_sets_are_saved_and_loaded_with_the_guide():
    guide = TruncatedGuide(one_hot_model, 4)
    loss = Truncated_ELBO().loss(one_hot_model, guide, X)
    other = TruncatedGuide(one_hot_model, 4)
    other.load_state_dict(guide.state_dict())
    assert Truncated_ELBO().loss(one_hot_model, other, X) == loss


def test_a_model_that_cannot_broadcast_is_run_once_per_state():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(PROBS).expand([2]).to_event(1))
            loc = z[:, 0] @ TABLE + z[:, 1] @ TABLE  # the states' axis is not foreseen
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    guide = TruncatedGuide(model, 9)
    with pytest.warns(UserWarning, match="once per particle"):
        loss = Truncated_ELBO().loss(model, guide, X)
    np.testing.assert_allclose(loss, -log_evidence(log_joints(X)).sum(), rtol=1e-9)


def test_the_prior_draws_the_first_states_and_probs_replace_it():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((20,), 0.05)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def share(**options):
        guide = TruncatedGuide(model, 16, **options)
        return guide.posterior(torch.zeros(50)).values["z"].mean()

    pyro.set_rng_seed(0)
    assert 0.03 < share() < 0.12  # distinct states lie further out
    assert 0.45 < share(probs=0.5) < 0.55
