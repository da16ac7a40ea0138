"""What `test_fit` trains, for Pyro: a small VAE, a loss that remembers, and ways to upset them."""

import signal
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceGraph_ELBO
from torch.utils.data import DataLoader, TensorDataset

from pyro_dvae import fit as package

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
FIVE_WIDE = "(5, 4)"  # shape of the encoder's first weights at width 5

late = 0  # steps that may follow a signal
validation_enabled = pyro.validation_enabled


class VAE(torch.nn.Module):
    """A VAE with two codes of three values, dropout and batch norm: generators and buffers."""

    def __init__(self, width=6):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 6)
        )
        self.decoder = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.1))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(len(x), 2, 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z.flatten(1))).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            logits = self.encoder(x).reshape(len(x), 2, 3)
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


class Counting_ELBO(TraceGraph_ELBO):
    """A loss with `state` and `info`, which noises the loss by its state; NaN from a step on."""

    class State(NamedTuple):
        step: torch.Tensor
        inner: tuple = ()

    class Info(NamedTuple):
        ess: torch.Tensor
        codes: torch.Tensor

    def __init__(self, nan_from=999):
        super().__init__()
        self.nan_from, self.info = nan_from, None
        self.state = self.State(torch.tensor(0), (torch.tensor(1.0),))

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        self.state = self.State(self.state.step + 1, (self.state.inner[0] * 1.01,))
        self.info = self.Info(self.state.step.float() / 2, torch.zeros(3))
        failure = torch.where(self.state.step >= self.nan_from, torch.nan, 1.0)
        return (torch.as_tensor(loss) + self.state.inner[0]) * failure


def scheduled():
    return pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": 0.01},
            "lr_lambda": package.exponential_schedule(1.0, 0.1, 20),
        }
    )


def make_svi(seed=0, optim=None, loss=None, width=6, nan_from=999):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = VAE(width)
    return SVI(vae.model, vae.guide, optim or scheduled(), loss=loss or Counting_ELBO(nan_from))


def other_optim():
    """Another step size."""
    return pyro.optim.Adam({"lr": 0.02})


def other_loss_svi():
    return make_svi(nan_from=1000)


def fit(svi, *data, **settings):
    return package.fit(svi, *data, **settings)


def stopping_svi(stop, monkeypatch, number=signal.SIGINT):
    """An SVI that gets a signal, as from Ctrl-C, during step `stop`."""
    svi = make_svi()
    step, elbo = svi.loss_and_grads, svi.loss_and_grads.__self__

    def loss_and_grads(model, guide, x):
        if int(elbo.state.step) == stop - 1:
            signal.raise_signal(number)
        return type(elbo).loss_and_grads(elbo, model, guide, x)

    elbo.loss_and_grads = loss_and_grads
    assert step.__self__ is elbo

    class Bound:
        def __call__(self, *args):
            return loss_and_grads(*args)

        __self__ = elbo

    svi.loss_and_grads = Bound()
    return svi


def recording_svi(seen):
    """An SVI whose programs append to `seen` the batch that a step gets."""

    def model(x, y=None, *, scale=1.0):
        seen.append((x.numpy(), y if y is None else y.numpy(), scale))
        location = pyro.param("m", torch.zeros(()))
        pyro.sample("w", dist.Normal(location, 1.0), obs=x.float().mean())

    pyro.clear_param_store()
    optim = pyro.optim.Adam({"lr": 0.1})
    return SVI(model, lambda *_, **__: None, optim, TraceGraph_ELBO())


def as_transform(function):
    """A transform that draws nothing."""
    return function


binarised = torch.bernoulli  # a transform: pixels drawn with gray values for probabilities


def cropped(x):
    """A transform: four columns in a row, from a random one on."""
    start = torch.randint(x.shape[1] - 3, ())
    return x[:, start : start + 4]


def poisoned_svi():
    """An SVI whose first step makes a NaN of the decoder's bias, with a finite loss."""
    svi = make_svi()
    step = svi.optim.step

    def poison():
        step()
        with torch.no_grad():
            svi.model.__self__.decoder[0].bias[0] = torch.nan

    svi.optim.step = poison
    return svi


def doubled_svi():
    """An SVI that overrides the step."""

    class Doubled(SVI):
        def step(self, *args, **kwargs):
            return 2 * super().step(*args, **kwargs)

    svi = make_svi()
    svi.__class__ = Doubled
    return svi


def failing_svi():
    """An SVI whose model raises."""

    def model(x):
        raise ValueError("mine")

    return SVI(model, model, pyro.optim.Adam({"lr": 0.1}), TraceGraph_ELBO())


def plain_losses(x, num_steps):
    """Losses of `num_steps` steps, by Pyro alone."""
    svi, losses = make_svi(loss=TraceGraph_ELBO()), []
    for _ in range(num_steps):
        losses.append(svi.step(torch.tensor(x)))
        svi.optim.step()
    return np.float32(losses), params_of_store()


def plain_svi():
    return make_svi(loss=TraceGraph_ELBO())


def params_of_store():
    return {name: value.detach().numpy() for name, value in pyro.get_param_store().items()}


def arrays(result):
    """All that was trained, by name."""
    buffers = dict(result.model.__self__.named_buffers())
    return {name: value.numpy() for name, value in {**result.params, **buffers}.items()}


def asarray(value):
    return torch.as_tensor(value)


def saved(path):
    """Step, and parameters."""
    state = torch.load(path, weights_only=True)
    return state["step"], [value.numpy() for value in state["training"]["params"].values()]


def loader(x, batch_size=5):
    return DataLoader(TensorDataset(torch.tensor(x)), batch_size, shuffle=True)


def break_writing(monkeypatch):
    def fail(state, file):
        file.write(b"half a checkpoi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)


def break_reading(monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zipfile.ZipFile", fail)
