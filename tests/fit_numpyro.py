"""What `test_fit` trains, for NumPyro: a small VAE, a loss that remembers, ways to upset them."""

import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO

from numpyro_dvae import fit as package
from numpyro_dvae.fit.steps import Steps
from numpyro_dvae.infer.objective import LOSS_MEMORY, LossMemory

CHECKPOINT, PREVIOUS = "checkpoint", "checkpoint.previous"
FIVE_WIDE = "(4, 5)"  # shape of the encoder's first weights at width 5

late = 5  # steps that may follow a signal: those of its dispatch, to the next evaluation at most
validation_enabled = numpyro.validation_enabled


class VAE:
    """A VAE with two codes of three values, dropout and a running mean: keys, mutable state."""

    def __init__(self, width=6):
        self.width = width

    def model(self, x):
        def init(key):
            return {"weight": jax.random.normal(key, (6, 4)) / 3, "bias": jnp.zeros(4)}

        decoder = numpyro.param("decoder", init)
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.9, (len(x), 6))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones((len(x), 2, 3)) / 3).to_event(1))
            codes = jax.nn.one_hot(z, 3).reshape(len(x), 6)
            logits = (codes * kept) @ decoder["weight"] + decoder["bias"]
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        def init(key):
            keys = jax.random.split(key)
            return [
                jax.random.normal(keys[0], (4, self.width)) / 2,
                jax.random.normal(keys[1], (self.width, 6)) / 2,
            ]

        layers = numpyro.param("encoder", init)
        hidden = x @ layers[0]
        mean = numpyro.primitives.mutable("mean", {"value": jnp.zeros(self.width)})
        mean["value"] = 0.9 * mean["value"] + 0.1 * jax.lax.stop_gradient(hidden.mean(0))
        logits = jnp.tanh(hidden - mean["value"]) @ layers[1]
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Categorical(logits=logits.reshape(-1, 2, 3)).to_event(1))


class Plain_ELBO(Trace_ELBO):
    """The one loss of NumPyro that keeps mutable state; its gradient is beside the point."""

    can_infer_discrete = True


class Counting_ELBO(Plain_ELBO):
    """A loss with state and info, which noises the loss by its state; NaN from a step on."""

    class State(NamedTuple):
        step: jax.Array
        inner: tuple = ()

    class Info(NamedTuple):
        ess: jax.Array
        codes: jax.Array

    def __init__(self, nan_from=999):
        super().__init__()
        self.nan_from = nan_from

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        params = dict(param_map)
        state = params.pop(LOSS_MEMORY).state
        found = super().loss_with_mutable_state(rng_key, params, model, guide, *args, **kwargs)
        state = self.State(state.step + 1, (state.inner[0] * 1.01,))
        info = self.Info(state.step / 2.0, jnp.zeros(3))
        failure = jnp.where(state.step >= self.nan_from, jnp.nan, 1.0)
        return {
            "loss": (found["loss"] + state.inner[0]) * failure,
            "mutable_state": {**found["mutable_state"], LOSS_MEMORY: LossMemory(state, info)},
        }

    def init_loss_memory(self):
        state = self.State(jnp.array(0), (jnp.array(1.0),))
        return LossMemory(state, self.Info(jnp.array(0.0), jnp.zeros(3)))


class Remembering(SVI):
    """What `numpyro_dvae.infer.svi.SVI` does for the package's losses."""

    def init(self, *args, **kwargs):
        state = super().init(*args, **kwargs)
        memory = {LOSS_MEMORY: self.loss.init_loss_memory()}
        return state._replace(mutable_state={**(state.mutable_state or {}), **memory})


def scheduled():
    schedule = package.exponential_schedule(1.0, 0.1, 20)
    return optax.adam(lambda step: 0.01 * schedule(step))


def make_svi(seed=0, optim=None, loss=None, width=6, nan_from=999, kind=Remembering):
    vae = VAE(width)
    svi = kind(vae.model, vae.guide, optim or scheduled(), loss=loss or Counting_ELBO(nan_from))
    svi.rng_key = jax.random.key(seed, impl="unsafe_rbg")  # compiles in half the time
    return svi


def other_optim():
    """Another step size."""
    return optax.adam(0.02)


def other_loss_svi():
    return make_svi(nan_from=1000)


def fit(svi, *data, **settings):
    return package.fit(getattr(svi, "rng_key", jax.random.key(0)), svi, *data, **settings)


def stopping_svi(stop, monkeypatch, number=signal.SIGINT):
    """An SVI that gets a signal, as from Ctrl-C, while the host waits for step `stop`."""
    take = Steps.take

    def take_and_signal(self, svi_state, step, count, most):
        if step < stop <= step + count:
            signal.raise_signal(number)
        return take(self, svi_state, step, count, most)

    monkeypatch.setattr(Steps, "take", take_and_signal)
    return make_svi()


def recording_svi(seen):
    """An SVI whose programs append to `seen` the batch that a step gets."""

    def model(x, y=None, *, scale=1.0):
        location = numpyro.param("m", jnp.zeros(()))
        numpyro.sample("w", dist.Normal(location, 1.0), obs=x.astype(float).mean())

    class Recording_ELBO(TraceGraph_ELBO):
        def loss(self, rng_key, params, model, guide, x, y=None, scale=1.0):
            def record(x, y=None):
                seen.append((np.asarray(x), y if y is None else np.asarray(y), scale))

            jax.debug.callback(record, x, y, ordered=True)
            return super().loss(rng_key, params, model, guide, x, y, scale=scale)

    return SVI(model, lambda *_, **__: None, optax.adam(0.1), Recording_ELBO())


def as_transform(function):
    """A transform that draws nothing."""
    return lambda rng_key, *args, **kwargs: function(*args, **kwargs)


def binarised(rng_key, x):
    """A transform: pixels drawn with gray values for probabilities."""
    return jax.random.bernoulli(rng_key, x).astype(x.dtype)


def cropped(rng_key, x):
    """A transform: four columns in a row, from a random one on."""
    start = jax.random.randint(rng_key, (), 0, x.shape[1] - 3)
    return jax.lax.dynamic_slice_in_dim(x, start, 4, axis=1)


def poisoned_svi():
    """An SVI whose first step makes a NaN of the decoder's bias, with a finite loss."""

    class Poisoned(Remembering):
        def update(self, svi_state, *args, **kwargs):
            svi_state, loss = super().update(svi_state, *args, **kwargs)
            step, (params, rest) = svi_state.optim_state
            bias = params["decoder"]["bias"].at[0].set(jnp.nan)
            params = {**params, "decoder": {**params["decoder"], "bias": bias}}
            return svi_state._replace(optim_state=(step, (params, rest))), loss

    return make_svi(kind=Poisoned)


def doubled_svi():
    """An SVI that overrides the step."""

    class Doubled(Remembering):
        def update(self, *args, **kwargs):
            svi_state, loss = super().update(*args, **kwargs)
            return svi_state, 2 * loss

    return make_svi(kind=Doubled)


def failing_svi():
    """An SVI whose model raises."""

    def model(x):
        raise ValueError("mine")

    return SVI(model, model, optax.adam(0.1), TraceGraph_ELBO())


def plain_losses(x, num_steps):
    """Losses of `num_steps` steps, by NumPyro alone."""
    svi = plain_svi()
    found = svi.run(svi.rng_key, num_steps, x, progress_bar=False)
    return np.asarray(found.losses), numpy_tree(found.params)


def plain_svi():
    return make_svi(loss=Plain_ELBO(), kind=SVI)


def arrays(result):
    """All that was trained, by name."""
    return numpy_tree(result.params)


def numpy_tree(params):
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def asarray(value):
    return jnp.asarray(value)


def saved(path):
    """Step, and parameters."""
    items = {"state": ocp.args.StandardRestore(), "run": ocp.args.JsonRestore()}
    with ocp.CheckpointManager(path.absolute()) as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))
    return found["run"]["step"], list(found["state"].values())


class Loader:
    """Batches in an order drawn from NumPy's global generator."""

    def __init__(self, x, batch_size=5):
        self.x, self.batch_size = x, batch_size

    def __iter__(self):
        order = np.random.permutation(len(self.x))  # noqa: NPY002
        for start in range(0, len(order), self.batch_size):
            yield (self.x[order[start : start + self.batch_size]],)


def loader(x, batch_size=5):
    np.random.seed(1)  # noqa: NPY002
    return Loader(x, batch_size)


def break_writing(monkeypatch):
    async def fail(self, directory, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", fail)


def break_reading(monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
