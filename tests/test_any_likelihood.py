"""A discrete VAE with likelihoods of a user's own: what outputs and data look like is theirs."""

import numpy as np
import pytest

B, L, V = 5, 2, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, size=(B, 4))
REAL = RNG.normal(size=(B, 3, 2)).astype(np.float32)
BYTES = RNG.integers(0, 256, size=(B, 3, 2)).astype(np.uint8)


def frameworks(name):
    """Its distributions, its arrays' functions, and a discretised logistic written for it."""
    if name == "pyro":
        import pyro.distributions as dist
        import torch
        from torch.distributions import constraints

        base, xp = dist.TorchDistribution, torch
    else:
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro.distributions import constraints

        base, xp = dist.Distribution, jnp
        jnp.sigmoid = jax.nn.sigmoid

    class Logistic(base):
        """Bytes, by the mass of a logistic distribution about each."""

        arg_constraints = {}  # noqa: RUF012
        pytree_data_fields = ("loc", "scale")
        support = constraints.integer_interval(0, 255)

        def __init__(self, loc, scale):
            self.loc, self.scale = loc, scale
            super().__init__(batch_shape=tuple(loc.shape), validate_args=False)

        def expand(self, batch_shape, _instance=None):
            return Logistic(*(xp.broadcast_to(a, batch_shape) for a in (self.loc, self.scale)))

        def log_prob(self, value):
            x = value / 127.5 - 1.0
            low, high = (xp.sigmoid((x + side / 255 - self.loc) / self.scale) for side in (-1, 1))
            low, high = (
                xp.where(x < -0.999, 0.0 * low, low),
                xp.where(x > 0.999, 1.0 + 0.0 * high, high),
            )
            return xp.log(high - low + 1e-30)

    return dist, xp, Logistic


def case(name, kind):
    """A likelihood, the shape of the decoder's outputs, data, and log p(x | outputs) in NumPy."""
    dist, xp, logistic = frameworks(name)

    def log_softmax(a):
        return a - np.log(np.exp(a).sum(-1, keepdims=True))

    def tokens(outputs, event_dim):
        return dist.Categorical(logits=outputs).to_event(event_dim - 1)

    def mean_and_scale(outputs, event_dim):
        return dist.Normal(outputs[..., 0], xp.exp(outputs[..., 1])).to_event(event_dim - 1)

    def laplace(outputs, event_dim):
        return dist.Laplace(outputs, 0.5).to_event(event_dim)

    def discretised(outputs, event_dim):
        return logistic(outputs[..., 0], xp.exp(0.2 * outputs[..., 1])).to_event(event_dim - 1)

    def of_logistic(outputs, x):
        x, loc, scale = x / 127.5 - 1.0, outputs[..., 0], np.exp(0.2 * outputs[..., 1])
        low, high = (1 / (1 + np.exp(-(x + s / 255 - loc) / scale)) for s in (-1, 1))
        low, high = np.where(x < -0.999, 0.0, low), np.where(x > 0.999, 1.0, high)
        return np.log(high - low).sum((-2, -1))

    def of_normal(outputs, x):
        loc, log_scale = outputs[..., 0], outputs[..., 1]
        z = (x - loc) / np.exp(log_scale)
        return (-0.5 * z**2 - log_scale - 0.5 * np.log(2 * np.pi)).sum((-2, -1))

    return {
        "tokens": (
            tokens,
            (4, 7),
            TOKENS,
            lambda o, x: np.take_along_axis(log_softmax(o), x[..., None], -1)[..., 0].sum(-1),
        ),
        "mean and scale": (mean_and_scale, (3, 2, 2), REAL, of_normal),
        "laplace": (laplace, (3, 2), REAL, lambda o, x: -2 * np.abs(x - o).sum((-2, -1))),
        "bytes": (discretised, (3, 2, 2), BYTES, of_logistic),
    }[kind]


def vae(lab, likelihood, shape):
    """A model whose decoder is a sum of two tables, and the tables."""
    models, tables = lab.module("models"), np.random.default_rng(1).normal(size=(L, V, *shape))
    one, two = (lab.asarray(table) for table in tables)

    def decoder(z):
        return one[z[..., 0]] + two[z[..., 1]]

    return models.DiscreteVAE(decoder, models.UniformPrior(L, V), likelihood), tables


def outputs_of(tables, sites):
    z = sites["z"].value
    return tables[0][z[:, 0]] + tables[1][z[:, 1]]


KINDS = ("tokens", "mean and scale", "laplace", "bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_the_likelihoods(lab, kind):
    likelihood, shape, x, log_prob = case(lab.__name__.removesuffix("_lab"), kind)
    model, tables = vae(lab, likelihood, shape)
    sites = lab.sites(model, lab.asarray(x))
    expected = log_prob(outputs_of(tables, sites), x)
    np.testing.assert_allclose(sites["x"].log_prob, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_another_shape_are_named(lab, kind):
    likelihood, shape, x, _ = case(lab.__name__.removesuffix("_lab"), kind)
    with pytest.raises(ValueError, match=r"`x` must have shape \(data, ") as error:
        lab.sites(
            vae(lab, likelihood, shape)[0], lab.asarray(np.swapaxes(x, 0, 1).copy()[:, :, None])
        )
    assert f"(data, {', '.join(map(str, x.shape[1:]))})" in str(error.value)


def test_integers_where_the_likelihood_is_of_reals_are_named(lab):
    likelihood, shape, _, _ = case(lab.__name__.removesuffix("_lab"), "laplace")
    with pytest.raises(ValueError, match=r"must hold floating-point numbers; got .*uint8"):
        lab.sites(vae(lab, likelihood, shape)[0], lab.asarray(BYTES))


def test_missing_tokens(lab):
    likelihood, shape, x, log_prob = case(lab.__name__.removesuffix("_lab"), "tokens")
    observed = RNG.integers(0, 2, size=x.shape).astype(bool)
    model, tables = vae(lab, likelihood, shape)
    sites = lab.sites(model, lab.asarray(x), observed=lab.asarray(observed))
    found = outputs_of(tables, sites)
    entries = [log_prob(found[:, [t]], x[:, [t]]) for t in range(x.shape[1])]
    expected = (np.stack(entries, -1) * observed).sum(-1)
    np.testing.assert_allclose(sites["x"].log_prob, expected, rtol=1e-5)


def test_tokens_are_reconstructed_as_the_likeliest(lab):
    likelihood, shape, _, _ = case(lab.__name__.removesuffix("_lab"), "tokens")
    model, tables = vae(lab, likelihood, shape)
    z = RNG.integers(V, size=(B, L))
    found = lab.numpy(lab.bind(model.reconstruct, lab.asarray(z))(lab.asarray(z)))
    np.testing.assert_array_equal(found, (tables[0][z[:, 0]] + tables[1][z[:, 1]]).argmax(-1))
