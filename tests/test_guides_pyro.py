"""Guides under autograd and autocast, and Pyro's vectorised prediction."""

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

import pyro_lab as lab  # noqa: E402
from pyro.infer import Predictive  # noqa: E402
from test_guides import L, images, kinds, pair  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh():
    lab.reset()
    lab.module = lambda path: __import__(f"pyro_dvae.{path}", fromlist=["_"])


def test_gradients_of_two_backward_passes_add():
    """The autoregressive guide keeps no graph from one call to the next."""
    _, guide = pair(lab, "autoregressive")
    for _ in range(2):
        q = guide.posterior(images(lab))
        q.log_prob(q.sample((3,))).sum().backward()


@kinds
def test_models_under_autocast_keep_float32_densities(kind):
    model, guide = pair(lab, kind)
    x = images(lab)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = guide.posterior(x)
        z = q.sample((50,))
        log_q, log_p = q.log_prob(z), model.likelihood(model.decoder(z), 2).log_prob(x)
    assert log_q.dtype == log_p.dtype == torch.float32
    (log_q.sum() + log_p.sum()).backward()


@kinds
def test_parallel_prediction(kind):
    model, guide = pair(lab, kind)
    draws = Predictive(model, guide=guide, num_samples=5, parallel=True)(images(lab))
    assert draws["z"].reshape(5, 6, L).shape == (5, 6, L)
