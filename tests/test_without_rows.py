"""Plates and events without rows: the framework's value, or a refusal that names them."""

import importlib

import numpy as np
import pytest

LOGIT = 0.3


class Kit:
    def __init__(self, backend):
        self.backend, self.is_pyro = backend, backend.name == "pyro"
        self.ppl = importlib.import_module("pyro" if self.is_pyro else "numpyro")
        self.np = importlib.import_module("torch" if self.is_pyro else "jax.numpy")
        self.dist = importlib.import_module(f"{self.ppl.__name__}.distributions")

    def array(self, values):
        return self.np.asarray(np.asarray(values, np.float32))

    def keyed(self, function, *args, **options):
        if self.is_pyro:
            return function(*args, **options)
        return function(importlib.import_module("jax").random.key(0), *args, **options)

    def plate(self, x, size):
        """Of as many rows as there are; of none of more, if there is a size."""
        if size and self.is_pyro:
            return self.ppl.plate("data", size, subsample=self.np.arange(len(x)))
        return self.ppl.plate("data", size or len(x), subsample_size=len(x))

    def guide(self, x, size):
        with self.plate(x, size):
            self.ppl.sample("z", self.dist.Bernoulli(0.4))

    def model(self, x, size):
        with self.plate(x, size):
            z = self.ppl.sample("z", self.dist.Bernoulli(0.4))
            self.ppl.sample("x", self.dist.Normal(1.0 * z, 1.0), obs=x)

    def loss(self, model, guide, *args):
        loss = self.backend.module("infer").Exact_ELBO()
        if self.is_pyro:
            return loss.loss(model, guide, *args)
        return self.keyed(loss.loss, {}, model, guide, *args)

    def coins(self, x):
        """A datum has as many coins as there are columns."""
        with self.ppl.plate("data", len(x)):
            self.flip(x)

    def columns(self, x):
        with self.ppl.plate("data", len(x)):
            self.flip(x)
            self.ppl.sample("y", self.dist.Normal(0.0, 1.0), obs=self.array(np.ones(len(x))))

    def flip(self, x):
        probs = self.array(np.full(x.shape, 0.4))
        self.ppl.sample("z", self.dist.Bernoulli(probs).to_event(1))


@pytest.mark.parametrize("size", [0, 10])
@pytest.mark.parametrize("asked", ["loss", "evaluate", "automatic", "truncated"])
def test_a_plate_without_rows_is_refused_by_its_name(backend, asked, size):
    kit = Kit(backend)
    args = kit.array([]), size
    guides, infer = backend.module("guides"), backend.module("infer")
    ask = {
        "loss": lambda: kit.loss(kit.model, kit.guide, *args),
        "evaluate": lambda: kit.keyed(
            backend.module("diagnostics").evaluate, (kit.model, kit.guide), *args
        ),
        "automatic": lambda: kit.loss(kit.model, guides.AutoDiscrete(kit.model), *args),
        "truncated": lambda: kit.loss(
            kit.model, infer.TruncatedGuide(kit.model, num_states=2), *args
        ),
    }
    with pytest.raises(ValueError, match=f"plate 'data' has no rows: .* of {size} here"):
        ask[asked]()


@pytest.mark.thrifty
def test_data_without_latents_have_the_value_of_what_else_there_is(backend):
    kit = Kit(backend)
    x = kit.array(np.zeros((3, 0)))
    found = kit.loss(kit.columns, kit.coins, x)
    np.testing.assert_allclose(float(found), 3 * (0.5 + 0.5 * np.log(2 * np.pi)), rtol=1e-6)
    pair, diagnostics = (kit.columns, kit.coins), backend.module("diagnostics")
    for name in ("code_usage", "discrete_posterior"):
        with pytest.raises(ValueError, match=r"site 'z' has no values, .* its shape is \(3, 0\)"):
            kit.keyed(getattr(diagnostics, name), pair, x)
    guide = backend.module("infer").TruncatedGuide(kit.columns, num_states=1)
    with pytest.raises(ValueError, match="no discrete latent in this call"):
        kit.loss(kit.columns, guide, x)


@pytest.mark.slow
def test_numpyro_takes_a_plate_whose_rows_are_none():
    numpyro = pytest.importorskip("numpyro")
    jax, infer = importlib.import_module("jax"), importlib.import_module("numpyro_dvae.infer")
    dist = numpyro.distributions

    def guide():
        with numpyro.plate("groups", 3):
            numpyro.sample("z", dist.Bernoulli(0.4))

    def model():
        with numpyro.plate("groups", 3, dim=-1):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            rows = jax.numpy.arange(0)
            with numpyro.handlers.substitute(data={"members": rows}):
                members = numpyro.plate("members", 10, subsample_size=0, dim=-2)
            with members:
                numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=jax.numpy.zeros((0, 1)))
            numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=jax.numpy.ones(3))

    key = jax.random.key(0)
    right = 3 * (0.5 * np.log(2 * np.pi) + 0.6 * 0.5)  # y is 1: half a nat away where z is 0
    np.testing.assert_allclose(infer.Exact_ELBO().loss(key, {}, model, guide), right, rtol=1e-6)
    host = numpyro.infer.TraceGraph_ELBO(num_particles=2000).loss(key, {}, model, guide)
    np.testing.assert_allclose(host, right, atol=5 * 0.5 * np.sqrt(3 * 0.24 / 2000))
