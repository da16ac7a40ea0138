"""What the shared tests of networks, distributions and programs need of Pyro; `numpyro_lab` too."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as stock  # noqa: F401  (the tests compare with it)
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceGraph_ELBO

name = "pyro"
asarray = torch.asarray


def reset():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def numpy(array):
    return array.detach().numpy()


def cast(array, dtype):
    return array.to(getattr(torch, dtype))


def network(net, *inputs, dtype="float64"):
    """The network with parameters, in `dtype`."""
    return cast(net, dtype)


def bind(program, *args, **kwargs):
    """A method of a model or guide, with parameters."""
    return program


def draw(distribution, shape=()):
    return distribution.sample(shape)


def sample(net, *args, **kwargs):
    return net.sample(*args, **kwargs)


def gradient(function, array):
    """Of a scalar function, at a NumPy array."""
    array = torch.asarray(array).requires_grad_()
    return torch.autograd.grad(function(array), array)[0].numpy()


def sites(program, *args, particles=None, condition=None, **kwargs):
    """Run a program; its sites' values and log-densities, as NumPy arrays."""
    if condition:
        program = pyro.condition(program, data={k: asarray(v) for k, v in condition.items()})
    if particles:
        program = pyro.plate("particles", particles, dim=-2)(program)
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return {
        key: SimpleNamespace(
            value=numpy(site["value"]),
            log_prob=numpy(site["log_prob"]),
            is_observed=site["is_observed"],
        )
        for key, site in trace.nodes.items()
        if site["type"] == "sample" and "log_prob" in site and not key.startswith("_")
    }


def num_parameters(program, *args):
    return sum(p.numel() for p in program.parameters())


def parameter_gradients(net, function):
    """Of a scalar function of a network, by its parameters."""
    return [g.numpy() for g in torch.autograd.grad(function(net), list(net.parameters()))]


def filled(net, value):
    """The network with every parameter at one value."""
    for parameter in net.parameters():
        parameter.data.fill_(value)
    return net


def flattening(net):
    """A network that loses the batch."""
    return torch.nn.Sequential(net, torch.nn.Flatten(0, 1))


def half_and_full(posterior, x):
    """The posterior of networks in bfloat16, and of the same in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = posterior(x)
    return low, posterior(x)


def variance_of(trainer, model):
    """The trained variance of a Gaussian likelihood."""
    return model.likelihood.variance.item()


def refused(message):
    """Values outside the support are an error."""
    return pytest.raises(ValueError, match=message)


def plated_sample(name, distribution, size):
    with pyro.plate("data", size, dim=-1):
        return pyro.sample(name, distribution)


def step_by_step():
    """Inside, loops run in Python, so that a test can look at each step."""
    return nullcontext()


def see_the_future(monkeypatch):
    """New causal transformers see all codes, from here to the end of the test."""
    attend = torch.nn.functional.scaled_dot_product_attention
    blind = SimpleNamespace(
        scaled_dot_product_attention=lambda *args, **_: attend(*args),
        relu=lambda x, **_: torch.relu(x),
    )
    monkeypatch.setattr("pyro_dvae.nets.attention.functional", blind)


class Trainer:
    """Steps of `SVI` on a model and a guide."""

    def __init__(self, model, guide, x, *, lr=0.02, num_particles=4):
        self.nets = model, guide
        elbo = TraceGraph_ELBO(num_particles=num_particles, vectorize_particles=True)
        self.svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo)

    def run(self, num_steps, x):
        for _ in range(num_steps):
            self.svi.step(x)

    def parameters(self):
        return [p.detach().numpy().copy() for net in self.nets for p in net.parameters()]


def predict(model, guide=None, values=None, *args, num_samples=5, **kwargs):
    """Predictive draws: with a guide, from values of latents, or from the prior."""
    values = None if values is None else {k: asarray(np.array(v)) for k, v in values.items()}
    found = Predictive(
        model,
        guide=guide,
        posterior_samples=values,
        num_samples=num_samples,
        return_sites=("z", "x"),
    )(*args, **kwargs)
    return {key: numpy(value) for key, value in found.items()}
