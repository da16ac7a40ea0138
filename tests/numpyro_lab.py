"""What the shared tests of networks, distributions and programs need of NumPyro, as `pyro_lab`."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as stock  # noqa: F401  (the tests compare with it)
import pytest
from flax import linen as nn
from numpyro import handlers
from numpyro.infer import SVI, Predictive, TraceGraph_ELBO

from numpyro_dvae.nets import attention, register, registration

name = "numpyro"
asarray = jnp.asarray
_key = None


def reset():
    global _key
    _key = jax.random.key(0)


def next_key():
    global _key
    _key, key = jax.random.split(_key)
    return key


def numpy(array):
    return np.asarray(array)


def cast(tree, dtype):
    def convert(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(convert, tree)


def network(net, *inputs, dtype="float64"):
    """The network with parameters, in `dtype`."""
    if not isinstance(net, nn.Module):
        return net
    inputs = tuple(jnp.zeros(i) if isinstance(i, tuple) else i for i in inputs)
    made = handlers.seed(register, next_key())("net", net, *inputs)
    return jax.jit(lambda net: cast(net, dtype))(made)


def params_of(program, *args, **kwargs):
    """Fresh parameters of a program, whose draws are thrown away."""
    return _values_of("param", program, args, kwargs)


def state_of(program, *args, **kwargs):
    """The mutable state that a program starts with."""
    return _values_of("mutable", program, args, kwargs)


def _values_of(kind, program, args, kwargs):
    def make(key):
        trace = handlers.trace(handlers.seed(program, key)).get_trace(*args, **kwargs)
        return {k: site["value"] for k, site in trace.items() if site["type"] == kind}

    return jax.jit(make)(next_key())


def bind(program, *args, **kwargs):
    """A method of a model or guide, with parameters."""
    return handlers.substitute(program, data=params_of(program, *args, **kwargs))


def draw(distribution, shape=()):
    return jax.jit(lambda key: distribution.sample(key, shape))(next_key())


def sample(net, *args, **kwargs):
    return jax.jit(lambda key, *args: net.sample(key, *args, **kwargs))(next_key(), *args)


def gradient(function, array):
    """Of a scalar function, at a NumPy array."""
    return np.asarray(jax.jit(jax.grad(function))(jnp.asarray(array)))


def sites(program, *args, particles=None, condition=None, **kwargs):
    """Run a program; its sites' values and log-densities, as NumPy arrays."""
    if condition:
        program = handlers.condition(program, data=condition)

    def run(key):
        plated = program
        if particles:
            plated = numpyro.plate("particles", particles, dim=-2)(program)
        trace = handlers.trace(handlers.seed(plated, key)).get_trace(*args, **kwargs)
        found = {k: s for k, s in trace.items() if s["type"] == "sample"}
        observed.update({k: s["is_observed"] for k, s in found.items()})
        return {k: (s["value"], s["fn"].log_prob(s["value"])) for k, s in found.items()}

    observed = {}
    found = jax.jit(run)(next_key())
    return {
        key: SimpleNamespace(
            value=np.asarray(value), log_prob=np.asarray(log_prob), is_observed=observed[key]
        )
        for key, (value, log_prob) in found.items()
    }


def num_parameters(program, *args):
    def make(key):
        trace = handlers.trace(handlers.seed(program, key)).get_trace(*args)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "param"}

    shapes = jax.eval_shape(make, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def parameter_gradients(net, function):
    """Of a scalar function of a network, by its parameters."""
    return jax.tree.leaves(jax.jit(jax.grad(function))(net))


def filled(net, value):
    """The network with every parameter at one value."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), net)


def flattening(net):
    """A network that loses the batch."""
    return nn.Sequential([net, lambda x: x.reshape(-1, *x.shape[2:])])


def half_and_full(posterior, x):
    """The posterior of networks in bfloat16, and of the same in float32."""
    params = params_of(posterior, x)
    low, full = (
        handlers.substitute(posterior, data=cast(params, d)) for d in ("bfloat16", "float32")
    )
    return low(cast(x, "bfloat16")), full(x)


def variance_of(trainer, model):
    """The trained variance of a Gaussian likelihood, free of bounds."""
    return float(jnp.exp(trainer.params["model.likelihood$params"]["raw"]))


def refused(message):
    """NumPyro warns of values outside the support and scores them -inf."""
    return pytest.warns(UserWarning, match=message)


def plated_sample(name, distribution, size):
    with numpyro.plate("data", size, dim=-1):
        return numpyro.sample(name, distribution)


def step_by_step():
    """Inside, loops run in Python, so that a test can look at each step."""
    return jax.disable_jit()


def see_the_future(monkeypatch):
    """New causal transformers see all codes, from here to the end of the test."""
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, context, *_: attend(q, context))
    monkeypatch.setattr(registration, "_apply", registration._apply.__wrapped__)


class Trainer:
    """Steps of `SVI` on a model and a guide."""

    def __init__(self, model, guide, x, *, lr=0.02, num_particles=4):
        elbo = TraceGraph_ELBO(num_particles=num_particles)
        self.svi = SVI(model, guide, numpyro.optim.Adam(lr), elbo)
        self.state = jax.jit(self.svi.init)(next_key(), x)
        self.update = jax.jit(lambda state, x: self.svi.update(state, x)[0])

    def run(self, num_steps, x):
        for _ in range(num_steps):
            self.state = self.update(self.state, x)

    @property
    def params(self):
        return self.svi.get_params(self.state)

    def parameters(self):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self.params)]


def predict(model, guide=None, values=None, *args, num_samples=5, **kwargs):
    """Predictive draws: with a guide, from values of latents, or from the prior."""
    params = {} if guide is None else params_of(guide, *args)
    params |= params_of(model, *args, **kwargs)
    predictive = Predictive(
        model,
        guide=guide,
        posterior_samples=values,
        num_samples=num_samples,
        params=params,
        return_sites=("z", "x"),
    )
    found = jax.jit(lambda key: predictive(key, *args, **kwargs))(next_key())
    return {key: np.asarray(value) for key, value in found.items()}
