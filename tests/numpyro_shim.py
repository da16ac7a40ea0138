"""The primitives that `zoo` is written in, for NumPyro, and one way to get losses and gradients.

Each (model, guide, loss and its settings) is compiled once; draws, state and data are arguments.
"""

import atexit
import copy
import functools
import tempfile
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import Predictive
from zoo import NOISE

from numpyro_dvae import diagnostics
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import SVI
from numpyro_dvae.infer.elbo import LOSS_MEMORY, ParticleELBO
from numpyro_dvae.infer.layout import find_layout
from numpyro_dvae.infer.particles import run_particles
from numpyro_dvae.infer.space import enumerate_draws
from numpyro_dvae.infer.truncated_guide import TruncatedGuide, draws_of
from numpyro_dvae.ops import states


class FixedNoiseNormal(dist.Normal):
    """Reparameterised, with one noise for all draws, so that oracles can know it."""

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        return jnp.broadcast_to(self.loc + self.scale * NOISE, shape)


def loop_warning():
    """Under vmap every program is vectorised as it is: there is nothing to warn of."""
    return nullcontext()


def stock(name, **options):
    """One of NumPyro's own losses."""
    return getattr(numpyro.infer, name)(**options)


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

    def layout(self, elbo=None):
        find = elbo._find_layout if elbo else find_layout
        return find(jax.random.key(0), *self.substituted(), (self.data,), {})

    def substituted(self):
        return [handlers.substitute(f, data=self.params) for f in (self.model, self.guide)]

    def record(self, elbo, **options):
        """The particles that a loss would see."""

        def run(key):
            programs = *self.substituted(), (self.data,), {}
            return run_particles(key, *programs, layout, elbo.num_particles, **options)[0]

        layout = self.layout(elbo)
        return jax.jit(run)(jax.random.key(0))

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


COMPILED = {}  # what it depends on -> a jitted function


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


class Sets:
    """A truncated posterior of a program of `truncated_zoo`.

    The sets travel as NumPyro's mutable state does. What is compiled is kept by all that it
    depends on, and is not optimised: it runs once or twice.
    """

    def __init__(self, program, num_states, model=None, params=None, data=None, **options):
        params = params or program.params
        self.params = {name: jnp.asarray(value) for name, value in params.items()}
        self.programs = model or program.model, program.rest
        self.model, self.rest = bound(*self.programs, "float64")
        self.rest = program.rest and self.rest
        self.cardinalities = program.cardinalities
        self.data = as_data(program.data if data is None else data)
        self.guide = TruncatedGuide(self.model, num_states, rest=self.rest, **options)
        self.recipe = *self.programs, num_states, *sorted(options.items())
        self.words, self.memories = None, {}

    def _data(self, data):
        return self.data if data is None else as_data(data)

    def _mutable(self, data):
        """The sets, which the first call of the guide makes; it knows the rows."""
        if self.words is None and isinstance(self.guide, TruncatedGuide):

            def start(params, key):
                guide = handlers.seed(handlers.substitute(self.guide, data=params), key)
                return handlers.trace(guide).get_trace(data)[self.guide.site]["value"]

            rows = data["rows"].tobytes() if "rows" in data else b""
            self.words = quickly(("start", *self.recipe, rows), start)(self.params, new_key())
        return {} if self.words is None else {self.guide.site: self.words}

    def step(self, elbo, data=None, seed=0):
        """Loss, and gradients by name; the sets evolve."""
        data, guide, model = self._data(data), self.guide, self.model
        mutable = self._mutable(data)
        memory = self.memories.get(elbo) or elbo.init_memory(mutable)

        def step(params, mutable, data, key):
            def loss_fn(params):
                found = elbo.loss_with_mutable_state(key, params | mutable, model, guide, data)
                return found["loss"], found["mutable_state"]

            return jax.value_and_grad(loss_fn, has_aux=True)(params)

        recipe = "step", *self.recipe, *settings(elbo)
        found = quickly(recipe, step)(
            self.params, mutable | {LOSS_MEMORY: memory}, data, new_key(seed)
        )
        (loss, mutable), grads = found
        self.words, self.memories[elbo] = mutable[self.guide.site], mutable[LOSS_MEMORY]
        elbo.info = self.memories[elbo].info
        return float(loss), {name: np.asarray(value) for name, value in grads.items()}

    def loss(self, elbo, data=None, seed=0):
        """Loss at the sets as they are; of any algorithm."""
        data, guide, model = self._data(data), self.guide, self.model
        recipe = "loss", *self.recipe, type(guide), type(elbo), elbo.beta, elbo.num_particles

        def loss(params, data, key):
            return elbo.loss(key, params, model, guide, data)

        params = self.params | self._mutable(data)
        return float(quickly(recipe, loss)(params, data, new_key(seed)))

    def codes(self):
        """(N, S, H)."""
        return np.asarray(states.unpack(self.words, self.cardinalities))

    def set_codes(self, codes):
        """Of a guide that has been called."""
        dtype = states.code_dtype(self.cardinalities)
        self.words = states.pack(jnp.asarray(codes, dtype), self.cardinalities)

    def posterior(self, data=None):
        data, guide = self._data(data), self.guide

        def posterior(params, data):
            return handlers.substitute(guide.posterior, data=params)(data)

        params = self.params | self._mutable(data)
        return to_numpy(quickly(("posterior", *self.recipe), posterior)(params, data))

    def sites(self, data=None, seed=0):
        """One draw of the guide: values and log-densities by site."""
        data, guide = self._data(data), self.guide

        def sites(params, data, key):
            program = handlers.seed(handlers.substitute(guide, data=params), key)
            trace = handlers.trace(program).get_trace(data)
            return {
                name: (site["value"], site["fn"].log_prob(site["value"]))
                for name, site in trace.items()
                if site["type"] == "sample"
            }

        params = self.params | self._mutable(data)
        found = quickly(("sites", *self.recipe), sites)(params, data, new_key(seed))
        return jax.tree.map(np.asarray, found)

    def predict(self, num_samples, data=None, seed=0):
        data, guide = self._data(data), self.guide

        def predict(params, data, key):
            return Predictive(guide, params=params, num_samples=num_samples)(key, data)

        params, recipe = self.params | self._mutable(data), ("predict", *self.recipe, num_samples)
        found = quickly(recipe, predict)(params, data, jax.random.key(seed))
        return {name: np.asarray(value) for name, value in found.items()}

    def for_data(self, data, seed=0, proposals=None, **options):
        """The same for other data."""
        other, data, made = copy.copy(self), as_data(data), []
        proposals = proposals and bound(proposals, None, "float64")[0]

        def make(params, key):
            made.append(self.guide.for_data(key, params, data, proposals=proposals, **options))
            return made[0].words

        words = quickly(("for_data", *self.recipe, proposals, *options.items()), make)(
            self.params | self._mutable(self.data), new_key(seed)
        )
        other.data, other.guide, other.words = data, made[0], words
        other.recipe = *other.recipe, other.guide.site
        return other

    def draws_of(self, program, num_draws):
        return draws_of(bound(program, None, "float64")[0], num_draws)


def train(make_model, num_states, elbo, *data, lr=0.02, seed=0, **settings):
    """Fit a `DiscreteVAE` with a truncated guide: losses, sets, and what the model has learnt."""
    model = make_model()
    guide = TruncatedGuide(model, num_states)
    svi = QuickSVI(model, guide, numpyro.optim.Adam(lr), loss=elbo)
    with compiling_less():
        result = fit(new_key(seed), svi, *data, progress=False, **settings)
    params = result.params
    prior = params.get("model.prior$logits", model.prior.start())
    raw = params.get("model.likelihood$raw", model.likelihood.start())
    reconstruct = handlers.substitute(model.reconstruct, data=params)
    posterior = handlers.substitute(guide.posterior, data=params)
    return SimpleNamespace(
        losses=result.losses,
        words=np.asarray(params["guide.words"]),
        params={
            jax.tree_util.keystr(path): np.asarray(value)
            for path, value in jax.tree_util.tree_leaves_with_path(params)
        },
        probs=np.asarray(jax.nn.sigmoid(prior)),
        variance=np.asarray(model.likelihood._variance(raw)),
        reconstruct=lambda codes: np.asarray(reconstruct(jnp.asarray(codes))),
        posterior=lambda *data: to_numpy(posterior(*data)),
    )


@contextmanager
def compiling_less():
    """What is compiled runs little, and often again."""
    options = {  # within, and by default
        "jax_disable_most_optimizations": (True, False),
        "jax_compilation_cache_dir": (cache_folder(), None),
        "jax_persistent_cache_min_compile_time_secs": (0.2, 1.0),
    }
    for name, (value, _) in options.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, (_, default) in options.items():
            jax.config.update(name, default)


@functools.cache
def cache_folder():
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return folder.name


class QuickSVI(SVI):
    """Whose first state is compiled at once."""

    def init(self, rng_key, *args, **kwargs):
        init = functools.partial(super().init, **kwargs)
        return jax.jit(lambda key: init(key, *args))(rng_key)


def to_numpy(posterior):
    values = {name: np.asarray(value) for name, value in posterior.values.items()}
    return values, np.asarray(posterior.weights), np.asarray(posterior.bound)


def settings(elbo):
    names = "evolve", "generations", "sweeps", "closed_form", "beta", "target_rate"
    return tuple(getattr(elbo, name) for name in names)


def new_key(seed=0):
    return jax.random.key(seed, impl="unsafe_rbg")  # compiles faster


def quickly(recipe, function):
    if recipe not in COMPILED:
        options = {"xla_backend_optimization_level": 0}
        COMPILED[recipe] = jax.jit(function, compiler_options=options)
    return COMPILED[recipe]


def flip_in_turn(rng_key, population):
    """Children of the best state, one for each latent: the same for the same set."""
    best = population.scores.argmax(0)
    parent = jnp.take_along_axis(population.codes, best[None, :, None], axis=0)
    flips = jnp.eye(parent.shape[-1], dtype=parent.dtype)[:, None]
    return parent ^ flips


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


def diagnose_sets(program, num_states, name):
    """A diagnostic of a program with a truncated guide, at its first sets."""
    sets = Sets(program, num_states)
    params = sets.params | sets._mutable(sets.data)
    function = getattr(diagnostics, name)
    return function(jax.random.key(0), (sets.model, sets.guide), sets.data, params=params)
