"""The primitives of `zoo` in NumPy, with draws in front: an oracle of what a run draws and scores.

What a site is given broadcasts; plates and the arrays of a program make its shape. Masks silence
densities, as in the packages.
"""

import functools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from zoo import bernoulli, normal

__all__ = ["Runner"]


class Bernoulli:
    def __init__(self, probs=None, logits=None):
        self.logits = np.log(probs) - np.log1p(-probs) if logits is None else np.asarray(logits)
        self.shape = np.shape(self.logits)

    def draw(self, rng, shape):
        return 1.0 * (rng.random(shape) < 1 / (1 + np.exp(-self.logits)))

    def log_prob(self, value):
        return bernoulli(value, self.logits)


class Normal:
    def __init__(self, loc, scale):
        self.loc, self.scale = np.asarray(loc), np.asarray(scale)
        self.shape = np.broadcast_shapes(self.loc.shape, self.scale.shape)

    def draw(self, rng, shape):
        return self.loc + self.scale * rng.normal(size=shape)

    def log_prob(self, value):
        return normal(value, self.loc, np.log(self.scale))


class Site(SimpleNamespace):
    """A value, its log-density where no mask silences it, and where that is."""


class Runner:
    """Runs programs with `num_draws` in front of `num_dims` batch dims."""

    def __init__(self, rng, num_draws, num_dims):
        self.rng, self.num_draws, self.num_dims = rng, num_draws, num_dims
        self.ppl = SimpleNamespace(
            sample=self._sample,
            plate=self._plate,
            mask=self._mask,
            dist=SimpleNamespace(Bernoulli=Bernoulli, Normal=Normal),
            exp=np.exp,
            zeros=np.zeros,
        )

    def run(self, program, data, values=None, observes=True):
        """Sites by name: drawn, unless they have values, or observe data and are to."""
        self.values, self.observes = values or {}, observes
        self.sites, self.plates, self.masks = {}, {}, []
        program(self.ppl, data)
        return self.sites

    @contextmanager
    def _plate(self, name, size, *, dim=None, subsample_size=None):
        dim = -1 if dim is None else dim
        self.plates[dim] = subsample_size or size
        yield np.arange(subsample_size or size)
        del self.plates[dim]

    @contextmanager
    def _mask(self, mask):
        self.masks.append(mask)
        yield
        self.masks.pop()

    def _sample(self, name, fn, obs=None):
        batch = [self.plates.get(dim, 1) for dim in range(-self.num_dims, 0)]
        shape = (self.num_draws, *batch)
        if name in self.values:
            value = self.values[name]
        elif obs is not None and self.observes:
            value = obs
        else:
            value = np.broadcast_to(fn.draw(self.rng, shape), shape)
        counted = functools.reduce(np.logical_and, self.masks, np.ones(shape, bool))
        log_prob = np.where(counted, np.broadcast_to(fn.log_prob(value), shape), 0.0)
        self.sites[name] = Site(
            value=value, log_prob=log_prob, counted=counted, is_observed=obs is not None
        )
        return value
