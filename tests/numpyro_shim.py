"""One way to get losses and gradients of NumPyro's programs; see `zoo` for those.

Each (model, guide, loss and its settings) is compiled once; draws, state and data are arguments.
"""

import functools
from contextlib import contextmanager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro_programs import COMPILED, as_data, bound, ppl
from numpyro_sets import (  # noqa: F401
    Sets,
    diagnose_sets,
    flip_in_turn,
    new_key,
    quickly,
    train,
)

from numpyro_dvae.infer.elbo import ParticleELBO
from numpyro_dvae.infer.objective import LOSS_MEMORY, Info, info_type
from numpyro_dvae.programs.codes import enumerate_draws
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Pair
from numpyro_dvae.programs.structure.layout import find_layout


def loop_warning():
    """Under vmap every program is vectorised as it is: there is nothing to warn of."""
    return nullcontext()


def stock(name, **options):
    """One of NumPyro's own losses."""
    return getattr(numpyro.infer, name)(**options)


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
        return find_layout(jax.random.key(0), self.pair())

    def pair(self):
        programs = [handlers.substitute(f, data=self.params) for f in (self.model, self.guide)]
        return Pair(*programs, (self.data,), {})

    def record(self, elbo, vectorize=True, **options):
        """The particles that a loss would see."""
        key = jax.random.key(0)
        pair = self.pair()._replace(layout=self.layout(), vectorize=vectorize)
        pair = pair._replace(notes=elbo.inspect(key, pair))

        def run(key):
            settings = {"sampler": elbo.sampler(key, pair), "pathwise": elbo.pathwise, **options}
            return run_particles(key, pair, elbo.num_particles, **settings)[0]

        return jax.jit(run)(key)

    def move(self, grads, size):
        """A step against the gradient."""
        self.params = {name: value - size * grads[name] for name, value in self.params.items()}

    def run(self, elbo, seed=0):
        """Loss, and gradients by name."""
        if not isinstance(elbo, ParticleELBO):
            evaluate = compiled(elbo, *self.programs, evaluate_stock)
            loss, grads = evaluate(self.params, self.data, jax.random.key(seed))
            return float(loss), {name: np.asarray(value) for name, value in grads.items()}
        state = getattr(elbo, "state", None) or elbo.init_state()
        memory, draws = elbo.init_loss_memory()._replace(state=state), getattr(elbo, "draws", None)
        evaluate = compiled(elbo, *self.programs)
        loss, grads, memory = evaluate(self.params, self.data, jax.random.key(seed), memory, draws)
        elbo.state, elbo.info = memory
        if draws is not None:
            elbo.log_draw = float(elbo.info.log_draw)
        return float(loss), {name: np.asarray(value) for name, value in grads.items()}

    def forced(self, elbo_class, **options):
        """A loss whose draws are set: `elbo.draws`, states (K, *plates); it keeps their log q."""
        elbo = forced_class(elbo_class)(**options)
        elbo.recipe = elbo_class, *sorted(options.items())
        elbo.state = elbo.init_state()
        return elbo


@functools.cache
def forced_class(elbo_class):
    own = elbo_class.info_class._fields[len(Info._fields) :]

    class Forced(elbo_class):
        info_class = info_type(__name__, "ForcedInfo", *own, "log_draw")

        def values(self, rng_key, pair):
            programs = pair.guide, pair.args, pair.kwargs
            table = enumerate_draws(rng_key, *programs, pair.layout, 2**16)
            return {name: place(values, pair.layout, self.draws) for name, values in table.items()}

        def gain(self, particles, *others):
            gain = super().gain(particles, *others)
            return gain._replace(info={**gain.info, "log_draw": particles.log_draw.sum()})

    return Forced


def compiled(elbo, model, guide, dtype, function=None):
    key = getattr(elbo, "recipe", elbo), model, guide, dtype
    if key not in COMPILED:
        step = functools.partial(function or evaluate, elbo, *bound(model, guide, dtype))
        COMPILED[key] = jax.jit(step)
    return COMPILED[key]


def evaluate_stock(elbo, model, guide, params, data, key):
    return jax.value_and_grad(lambda params: elbo.loss(key, params, model, guide, data))(params)


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


def diagnose(function, case, *args, seed=0, **kwargs):
    """A diagnostic of the programs of a case, at its parameters."""
    pair, key = (case.model, case.guide), jax.random.key(seed)
    return function(key, pair, case.data, *args, params=case.params, **kwargs)


def put_in_store(case):
    """They are NumPyro's as they are."""
