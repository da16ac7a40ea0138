"""The losses in plain Torch: an `ELBOModule` under any optimiser, and `SVI` beside it."""

import copy

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

from pyro_dvae.guides import AutoregressiveGuide, IndependentGuide
from pyro_dvae.infer import DAPS_ELBO, VIMCO_ELBO, Exact_ELBO, Reinforce_ELBO, WakeSleep_ELBO
from pyro_dvae.models import BernoulliLikelihood, DiscreteVAE, UniformPrior
from pyro_dvae.nets import CausalTransformer, MLPDecoder, MLPEncoder, PatchEncoder

LOSSES = {
    "daps": lambda: DAPS_ELBO(4),
    "reinforce": lambda: Reinforce_ELBO(4),
    "exact": Exact_ELBO,
    "vimco": lambda: VIMCO_ELBO(4),
    "wake_sleep": lambda: WakeSleep_ELBO(4, sleep=0.5),
}


def make_pair(seed=0, *, autoregressive=False):
    pyro.set_rng_seed(seed)
    decoder = MLPDecoder(2, 3, (4, 4), embed_dim=8, hidden=(16,))
    model = DiscreteVAE(decoder, UniformPrior(2, 3), BernoulliLikelihood())
    if autoregressive:
        transformer = CausalTransformer(2, 3, embed_dim=8, num_heads=2)
        return model, AutoregressiveGuide(
            PatchEncoder((4, 4), 2, embed_dim=8, num_heads=2), transformer
        )
    return model, IndependentGuide(MLPEncoder((4, 4), 2, 3, hidden=(16,)))


IMAGES = (torch.rand(12, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_plain_optimiser_takes_the_steps_of_svi(name, autoregressive):
    model, guide = make_pair(autoregressive=autoregressive)
    twin_model, twin_guide = copy.deepcopy(model), copy.deepcopy(guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=LOSSES[name]())
    pyro.set_rng_seed(1)
    losses = [svi.step(IMAGES) for _ in range(4)]
    elbo = LOSSES[name]()(twin_model, twin_guide)
    optimiser = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    pyro.set_rng_seed(1)
    twin_losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = elbo(IMAGES)
        loss.backward()
        optimiser.step()
        twin_losses.append(loss.item())
    np.testing.assert_allclose(twin_losses, losses, rtol=1e-6)
    for found, expected in zip(twin_guide.parameters(), guide.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_leaves_state_and_gradients_alone(name):
    model, guide = make_pair()
    elbo = LOSSES[name]()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    svi.step(IMAGES)
    state, info = elbo.state, elbo.info
    assert np.isfinite(svi.evaluate_loss(IMAGES))
    assert elbo.state == state
    assert elbo.info is info
    assert all(p.grad is None or not p.grad.any() for p in guide.parameters())


def test_the_value_is_that_of_pyros_own_losses():
    """Same model, same guide: all estimate one number."""
    model, guide = make_pair()
    exact = Exact_ELBO().loss(model, guide, IMAGES)
    for elbo in (
        Trace_ELBO(),
        TraceGraph_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
        Reinforce_ELBO(4),
        Reinforce_ELBO(4, closed_form_entropy=False),
        DAPS_ELBO(4),
    ):
        assert abs(z_score(elbo, model, guide, exact)) < 4
    assert abs(z_score(DAPS_ELBO(4), model, guide, exact + 5.0)) > 10  # control: 5 nats are seen


def z_score(elbo, model, guide, expected):
    losses = [elbo.loss(model, guide, IMAGES) for _ in range(60)]
    return (np.mean(losses) - expected) / (np.std(losses) / np.sqrt(len(losses)))


def make_telling_pair():
    """Codes that say much of the image, so that there is something to infer."""
    model, guide = make_pair()
    with torch.no_grad():
        for parameter in model.decoder.layers[-1].parameters():
            parameter.mul_(40.0)
    return model, guide


@pytest.mark.parametrize("name", ["daps", "reinforce"])
def test_a_guide_alone_learns_what_enumeration_teaches_it(name):
    """With the model fixed there is one best guide; all losses end near it."""
    found = {}
    for loss in ("exact", name):
        model, guide = make_telling_pair()
        fixed = poutine.block(model, hide_types=["param"])
        svi = SVI(fixed, guide, pyro.optim.Adam({"lr": 2e-2}), loss=LOSSES[loss]())
        for _ in range(120):
            svi.step(IMAGES)
        found[loss] = Exact_ELBO().loss(model, guide, IMAGES) / len(IMAGES)
    start = Exact_ELBO().loss(*make_telling_pair(), IMAGES) / len(IMAGES)
    assert found[name] - found["exact"] < 0.1 * (start - found["exact"])


def test_float64_and_a_module_default():
    torch.set_default_dtype(torch.float64)
    try:
        model, guide = make_pair()
        loss = DAPS_ELBO(4).differentiable_loss(model, guide, IMAGES.double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float64
