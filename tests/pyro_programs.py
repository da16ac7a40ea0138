"""The primitives that `zoo` is written in, for Pyro."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from zoo import NOISE


class FixedNoiseNormal(dist.Normal):
    """Reparameterised, with one noise for all draws, so that oracles can know it."""

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        return (self.loc + self.scale * NOISE).expand(shape)


def as_data(data, dtype=torch.float64):
    tensors = {name: torch.as_tensor(value) for name, value in data.items()}
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}


def ppl(params, dtype):
    """Leaf tensors by name, and the primitives over them."""
    tensors = {
        name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in params.items()
    }
    primitives = SimpleNamespace(
        sample=pyro.sample,
        deterministic=pyro.deterministic,
        plate=pyro.plate,
        mask=poutine.mask,
        scale=poutine.scale,
        param=lambda name, data: tensors[name],
        dist=dist,
        fixed_noise_normal=FixedNoiseNormal,
        exp=torch.exp,
        stack=torch.stack,
        zeros=lambda n: torch.zeros(n, dtype=dtype),
    )
    return tensors, primitives
