"""The primitives that `zoo` is written in, for NumPyro, and one way to get losses and gradients.

Each (model, guide, loss and its settings) is compiled once; draws, state and data are arguments.
"""

import functools
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from zoo import NOISE

from numpyro_dvae.infer.elbo import LOSS_MEMORY
from numpyro_dvae.infer.layout import find_layout
from numpyro_dvae.infer.space import enumerate_draws


class FixedNoiseNormal(dist.Normal):
    """Reparameterised, with one noise for all draws, so that oracles can know it."""

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        return jnp.broadcast_to(self.loc + self.scale * NOISE, shape)


def loop_warning():
    """Under vmap every program is vectorised as it is: there is nothing to warn of."""
    return nullcontext()


def as_data(data, dtype="float64"):
    arrays = {name: jnp.asarray(value) for name, value in data.items()}
    return {
        name: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in arrays.items()
    }


def plate(name, size, *, dim=None, subsample=None):
    if subsample is None:
        return numpyro.plate(name, size, dim=dim)
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


class Case:
    """A program bound to parameters; each call of `run` is one evaluation of a loss."""

    def __init__(self, program, params=None, model=None, guide=None, dtype="float64"):
        self.program = program
        params = params or program.params
        self.params = {name: jnp.asarray(value, dtype) for name, value in params.items()}
        self.ppl, self.data = ppl(dtype), as_data(program.data, dtype)
        self.programs = model or program.model, guide or program.guide, dtype
        self.model, self.guide = bound(*self.programs)

    def layout(self):
        model, guide = (handlers.substitute(f, data=self.params) for f in (self.model, self.guide))
        return find_layout(jax.random.key(0), model, guide, (self.data,), {})

    def run(self, elbo, seed=0):
        """Loss, and gradients by name."""
        state = getattr(elbo, "state", None) or elbo.init_state()
        memory, draws = elbo.init_memory()._replace(state=state), getattr(elbo, "draws", None)
        evaluate = compiled(elbo, *self.programs)
        loss, grads, memory = evaluate(self.params, self.data, jax.random.key(seed), memory, draws)
        elbo.state, elbo.info = memory
        if draws is not None:
            elbo.info, elbo.log_draw = elbo.info.info, float(elbo.info.log_draw)
        return float(loss), {name: np.asarray(value) for name, value in grads.items()}

    def forced(self, elbo_class, **options):
        """A loss whose draws are set: `elbo.draws`, states (K, *plates); it keeps their log q."""
        elbo = forced_class(elbo_class)(**options)
        elbo.recipe = elbo_class, *sorted(options.items())
        elbo.state = elbo.init_state()
        return elbo


class ForcedInfo(NamedTuple):
    info: Any
    log_draw: Any


@functools.cache
def forced_class(elbo_class):
    class Forced(elbo_class):
        def _values(self, rng_key, guide, args, kwargs, layout):
            table = enumerate_draws(rng_key, guide, args, kwargs, layout, 2**16)
            return {name: place(values, layout, self.draws) for name, values in table.items()}

        def _estimate(self, particles, state):
            estimate = super()._estimate(particles, state)
            return estimate._replace(info=ForcedInfo(estimate.info, particles.log_draw.sum()))

        def init_memory(self):
            memory = super().init_memory()
            return memory._replace(info=ForcedInfo(memory.info, jnp.zeros((), float)))

    return Forced


@functools.cache
def bound(model, guide, dtype):
    primitives = ppl(dtype)
    return (lambda data: model(primitives, data)), (lambda data: guide(primitives, data))


COMPILED = {}  # (loss or its recipe, model, guide, dtype) -> jitted step


def compiled(elbo, model, guide, dtype):
    key = getattr(elbo, "recipe", elbo), model, guide, dtype
    if key not in COMPILED:
        COMPILED[key] = jax.jit(functools.partial(evaluate, elbo, *bound(model, guide, dtype)))
    return COMPILED[key]


def evaluate(elbo, model, guide, params, data, key, memory, draws):
    def loss_fn(params):
        with holding(elbo, draws):
            found = elbo.loss_with_mutable_state(
                key, {**params, LOSS_MEMORY: memory}, model, guide, data
            )
        return found["loss"], found["mutable_state"][LOSS_MEMORY]

    (loss, memory), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, grads, memory


@contextmanager
def holding(elbo, draws):
    """Let a traced array be the draws, and leave none behind."""
    kept, elbo.draws = getattr(elbo, "draws", None), draws
    try:
        yield
    finally:
        elbo.draws = kept


def place(values, layout, draws):
    """Rows `draws` (K, *plates) of a state table, each at its own cell of the shared plates."""
    picked = values[draws]  # (K, *plates, *own batch with singletons, *event)
    for axis, dim in enumerate(layout.dims):
        own = 1 + len(layout.dims) + layout.nesting + dim
        picked = jnp.swapaxes(picked, 1 + axis, own)
    return picked.reshape(picked.shape[0], *picked.shape[1 + len(layout.dims) :])
