"""Enumeration by running programs one state at a time, for the tests of any program in Pyro."""

import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402

from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    VIMCO_ELBO,
    Reinforce_ELBO,
    WakeSleep_ELBO,
)

SAMPLED = [Reinforce_ELBO, DAPS_ELBO, VIMCO_ELBO, WakeSleep_ELBO]
LOOP = "once per particle"


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def quiet(run):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{LOOP}")
        warnings.filterwarnings("ignore", "the discrete sites share no plate")
        return run()


def joint(program, states, *args):
    """Log-density of a program at given latents, run by itself."""
    with pyro.validation_enabled(False):
        conditioned = poutine.condition(program, data=states)
        return poutine.trace(conditioned).get_trace(*args).log_prob_sum()


def exact_loss(model, guide, tables, *args):
    """Minus the ELBO by a plain sum; `tables` has all values of each latent."""
    loss = 0.0
    for values in itertools.product(*tables.values()):
        states = dict(zip(tables, values, strict=True))
        log_q = joint(guide, states, *args)
        loss = loss - log_q.exp() * (joint(model, states, *args) - log_q)
    return loss


def bits(*shape):
    """All binary tensors of a shape."""
    size = int(np.prod(shape))
    return [torch.tensor(z).reshape(shape) * 1.0 for z in itertools.product((0, 1), repeat=size)]


def assert_mean(draw, expected, times=100):
    """The mean of so many draws is within five standard errors."""
    expected = torch.as_tensor(expected).detach()
    draws = np.array([draw() for _ in range(times)])
    error = draws.std(ddof=1) / times**0.5
    assert abs(draws.mean() - float(expected)) < 5 * error + 1e-12, (draws.mean(), expected, error)


DATA = torch.tensor([0.4, 3.0], dtype=torch.float64)


def mixture(x):
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def mixture_guide(x):
    with pyro.plate("data", 2):
        logits = pyro.param("logits", torch.tensor([0.1, -0.3, 0.4]))
        pyro.sample("z", dist.Categorical(logits=logits.expand(2, 3)))


def value_and_gradient(elbo, model, guide, seed=0):
    mixture_guide(DATA)
    leaf = pyro.param("logits").unconstrained()
    leaf.grad = None
    pyro.set_rng_seed(seed)
    value = elbo.loss_and_grads(model, guide, DATA)
    return float(value), leaf.grad.numpy().copy()
