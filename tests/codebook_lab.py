"""Codebooks of both packages as NumPy sees them: quantise, learn, and say what is held."""

import numpy as np


class PyroLab:
    """A codebook of pyro_dvae."""

    def __init__(self, nets, make):
        import torch

        self.torch = torch
        torch.manual_seed(0)
        self.codebook = make(nets)

    def quantize(self, inputs, mask=None, learn=True):
        asarray = self.torch.asarray
        mask = None if mask is None else asarray(mask)
        found = self.codebook.quantize(asarray(inputs), learn=learn, mask=mask)
        return type(found)(*(np.asarray(a.detach()) for a in found))

    def call(self, name, *arrays):
        """A method of the codebook."""
        found = getattr(self.codebook, name)(*map(self.torch.asarray, arrays))
        return np.asarray(found.detach())

    def rows(self):
        return self.call("rows")

    def counts(self):
        return self.codebook.counts.numpy().copy()

    def gradient(self, weights, inputs, route=None):
        """Of the weighed sum of what a decoder sees, to the inputs."""
        leaf = self.torch.tensor(inputs, requires_grad=True)
        found = self.codebook.quantize(leaf)
        path = found.vectors if route is None else route(found.inputs, found.vectors).path
        (self.torch.asarray(weights) * self.codebook.join(path)).sum().backward()
        return leaf.grad.numpy()


class NumpyroLab:
    """A codebook of numpyro_dvae, with the values that its programs leave."""

    def __init__(self, nets, make):
        import jax
        from numpyro import handlers

        self.jax, self.handlers = jax, handlers
        self.codebook, self.values, self.key = make(nets), {}, jax.random.key(0)
        self._run(
            lambda: self.codebook.join(self.codebook(jax.numpy.zeros((1, 12), int))), keep=True
        )

    def _run(self, program, keep):
        self.key, key = self.jax.random.split(self.key)
        data = {k: dict(v) if isinstance(v, dict) else v for k, v in self.values.items()}
        program = self.handlers.substitute(self.handlers.seed(program, key), data=data)
        with self.handlers.trace() as found:
            value = program()
        if keep:
            kinds = ("param", "mutable")
            self.values = {k: s["value"] for k, s in found.items() if s["type"] in kinds}
        return value

    def quantize(self, inputs, mask=None, learn=True):
        inputs = self.jax.numpy.asarray(inputs)
        mask = None if mask is None else self.jax.numpy.asarray(mask)

        def program():
            return self.codebook.quantize(inputs, learn=learn, mask=mask)

        if learn and not any(name.endswith("$state") for name in self.values):
            self._run(program, keep=True)  # the state is made, as when training starts
        found = self._run(program, keep=learn)
        return type(found)(*map(np.asarray, found))

    def call(self, name, *arrays):
        arrays = [self.jax.numpy.asarray(a) for a in arrays]
        return np.asarray(self._run(lambda: getattr(self.codebook, name)(*arrays), keep=False))

    def rows(self):
        return self.call("rows")

    def counts(self):
        return np.asarray(self.values["codebook$state"]["counts"])

    def gradient(self, weights, inputs, route=None):
        def total(inputs):
            found = self.codebook.quantize(inputs)
            path = found.vectors if route is None else route(found.inputs, found.vectors).path
            return (weights * self.codebook.join(path)).sum()

        grad = self.jax.grad(total)
        return np.asarray(self._run(lambda: grad(self.jax.numpy.asarray(inputs)), keep=False))


def lab(backend, make):
    kind = PyroLab if backend.name == "pyro" else NumpyroLab
    return kind(backend.module("nets"), make)
