"""The loss on held-out data is the exact mean over all of them, of modules in evaluation mode."""

import pytest

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402
import pyro  # noqa: E402
import pyro.distributions as dist  # noqa: E402
from pyro.infer import SVI, Trace_ELBO  # noqa: E402

from pyro_dvae.fit.devices import Devices  # noqa: E402
from pyro_dvae.fit.evaluation import HeldOut  # noqa: E402

X = np.array([[0.3], [-1.0], [2.0], [0.1], [5.0]], np.float32)


class Noisy(torch.nn.Module):
    """Half of its inputs are dropped and the rest normalised, but for evaluation."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(1))

    def forward(self, x):
        pyro.module("noisy", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.layers(x + 1.0), 1.0).to_event(1), obs=x)


def nothing(x):
    pass


def test_five_data_in_batches_of_two():
    pyro.clear_param_store()
    model = Noisy()
    svi = SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    found = HeldOut(svi, torch.as_tensor(X), 2, Devices(svi, ())).loss()
    error = (X.astype(float) + 1.0) / np.sqrt(1.0 + 1e-5) - X
    expected = (0.5 * error**2 + 0.5 * np.log(2 * np.pi)).mean()
    assert found == pytest.approx(expected, rel=1e-6)
    assert model.layers.training
    assert model.layers[1].num_batches_tracked == 0
