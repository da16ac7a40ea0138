"""The primitives that `zoo` is written in, for NumPyro, and programs bound to them."""

import functools
from types import SimpleNamespace

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from zoo import NOISE


class FixedNoiseNormal(dist.Normal):
    """Reparameterised, with one noise for all draws, so that oracles can know it."""

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        return jnp.broadcast_to(self.loc + self.scale * NOISE, shape)


def as_data(data, dtype="float64"):
    arrays = {name: jnp.asarray(value) for name, value in data.items()}
    return {
        name: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in arrays.items()
    }


def plate(name, size, *, dim=None, subsample=None, subsample_size=None):
    if subsample is None:
        return numpyro.plate(name, size, subsample_size=subsample_size, dim=dim)
    with handlers.substitute(data={name: subsample}):
        return numpyro.plate(name, size, subsample_size=len(subsample), dim=dim)


def ppl(dtype):
    return SimpleNamespace(
        sample=numpyro.sample,
        deterministic=numpyro.deterministic,
        plate=plate,
        mask=handlers.mask,
        scale=handlers.scale,
        param=lambda name, data: numpyro.param(name),
        dist=dist,
        fixed_noise_normal=FixedNoiseNormal,
        exp=jnp.exp,
        stack=jnp.stack,
        zeros=lambda n: jnp.zeros(n, dtype),
    )


@functools.cache
def bound(model, guide, dtype):
    primitives = ppl(dtype)
    return (lambda data: model(primitives, data)), (lambda data: guide(primitives, data))


COMPILED = {}  # what it depends on -> a jitted function
