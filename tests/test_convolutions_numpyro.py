"""Convolutions on a CPU: their steps are dispatched one by one, with the results of a loop.

Within a loop XLA has no fast kernel for the gradient of a convolution.
"""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import numpyro  # noqa: E402
from flax import linen as nn  # noqa: E402

from numpyro_dvae.fit import fit, steps  # noqa: E402
from numpyro_dvae.guides import IndependentGuide  # noqa: E402
from numpyro_dvae.infer import SVI, Reinforce_ELBO  # noqa: E402
from numpyro_dvae.models import DiscreteVAE, GaussianLikelihood, UniformPrior  # noqa: E402
from numpyro_dvae.nets import MLPDecoder  # noqa: E402

L, V, X = 2, 3, np.random.default_rng(0).normal(size=(12, 4, 4, 1)).astype(np.float32)


class Encoder(nn.Module):
    convolves: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (2, 2), (2, 2))(x) if self.convolves else x
        return nn.Dense(L * V)(x.reshape(*x.shape[:-3], -1)).reshape(*x.shape[:-3], L, V)


def run(convolves, monkeypatch, platform):
    """Losses and parameters, and how many steps were dispatched apart."""
    apart = []

    def noted(self, svi_state, arrays, rows, due, *rest):
        apart.append(due[0])
        return take_apart(self, svi_state, arrays, rows, due, *rest)

    take_apart = steps.Steps._take_apart
    decoder = MLPDecoder(L, V, X.shape[1:], embed_dim=2, hidden=())
    model = DiscreteVAE(decoder, UniformPrior(L, V), GaussianLikelihood())
    guide = IndependentGuide(Encoder(convolves))
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Reinforce_ELBO(2))
    with monkeypatch.context() as patch:
        patch.setattr(steps.Steps, "_take_apart", noted)
        patch.setattr(steps, "_platform", lambda state: platform)
        options = {"num_steps": 5, "batch_size": 4, "log_every": 3, "progress": False}
        result = fit(jax.random.key(0), svi, X, **options, transform=lambda key, x: 2 * x)
    return result.losses, result.params, sum(apart)


@pytest.mark.slow
def test_steps_with_convolutions_are_dispatched_one_by_one(monkeypatch):
    losses, params, apart = run(True, monkeypatch, "cpu")
    in_a_loop, same, together = run(True, monkeypatch, "gpu")
    assert (apart, together) == (5, 0)
    np.testing.assert_allclose(losses, in_a_loop, rtol=1e-6)
    for found, expected in zip(*map(jax.tree.leaves, (params, same)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_other_steps_stay_together(monkeypatch):
    assert run(False, monkeypatch, "cpu")[2] == 0
