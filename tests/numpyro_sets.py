"""Truncated posteriors of programs in NumPyro: their sets, training and diagnostics."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro_programs import COMPILED, as_data, bound
from quick_numpyro import QuickSVI

from numpyro_dvae import diagnostics
from numpyro_dvae.fit import fit
from numpyro_dvae.infer import TruncatedGuide, draws_of
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.models import variances
from numpyro_dvae.ops import states


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
        memory = self.memories.get(elbo) or elbo.init_loss_memory(mutable)

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
            guide = self.guide.for_data(key, params, data, proposals=proposals, **options)
            words, guide.words = guide.words, None  # no tracer leaves; they are set below
            made.append(guide)
            return words

        words = quickly(("for_data", *self.recipe, proposals, *options.items()), make)(
            self.params | self._mutable(self.data), new_key(seed)
        )
        made[0].words = words
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
        variance=np.asarray(variances.variance_of(raw, model.likelihood.bounds)),
        reconstruct=lambda codes: np.asarray(reconstruct(jnp.asarray(codes))),
        posterior=lambda *data: to_numpy(posterior(*data)),
    )


@contextmanager
def compiling_less():
    """What is compiled runs little."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


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


def diagnose_sets(program, num_states, name):
    """A diagnostic of a program with a truncated guide, at its first sets."""
    sets = Sets(program, num_states)
    params = sets.params | sets._mutable(sets.data)
    function = getattr(diagnostics, name)
    return function(jax.random.key(0), (sets.model, sets.guide), sets.data, params=params)
