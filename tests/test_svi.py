"""NumPyro's protocol: one compilation, state and info inside it, mutable state at any K."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import numpyro.infer
import optax
from flax import linen as nn
from numpyro.contrib.module import flax_module

from numpyro_dvae.infer import DAPS_ELBO, SVI, Exact_ELBO, Reinforce_ELBO
from numpyro_dvae.infer.objective import LOSS_MEMORY
from numpyro_dvae.infer.reinforce import read_prediction
from numpyro_dvae.infer.svi import loss_info, loss_state, with_memory
from numpyro_dvae.programs.record import read_codes
from numpyro_dvae.programs.run import run_particles
from numpyro_dvae.programs.sites import Pair
from numpyro_dvae.programs.structure.layout import find_layout

LATENTS, CODES, PIXELS = 2, 5, 3
X = np.random.default_rng(0).normal(size=(6, PIXELS))


def key(seed=0):
    return jax.random.key(seed)


def model(x):
    prior = numpyro.param("prior", jnp.zeros((LATENTS, CODES)))
    weight = numpyro.param("weight", lambda key: jax.random.normal(key, (LATENTS, CODES, PIXELS)))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=prior).to_event(1))
        loc = weight[jnp.arange(LATENTS), z].sum(-2)
        numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def guide(x):
    encoder = numpyro.param("encoder", jnp.zeros((PIXELS, LATENTS * CODES)))
    logits = (x @ encoder).reshape(-1, LATENTS, CODES)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=logits).to_event(1))


def counting_guide(x):
    counter = numpyro.primitives.mutable("counter", {"calls": jnp.zeros((), int)})
    counter["calls"] = counter["calls"] + 1
    guide(x)


def start(loss, guide=guide, svi_class=SVI):
    svi = svi_class(model, guide, optax.adam(1e-2), loss)
    return svi, jax.jit(svi.init)(key(), X)  # jitted: in eager mode each operation compiles alone


REMEMBERING = {
    "schedule": lambda: DAPS_ELBO(4, beta=lambda step: 1.0 / (1.0 + step)),
    "target rate": lambda: DAPS_ELBO(4, target_rate=1.0),
    "moving average": lambda: Reinforce_ELBO(1),
}
STATELESS = {
    "daps": lambda: DAPS_ELBO(4, beta=0.5),
    "reinforce": lambda: Reinforce_ELBO(4),
    "exact": lambda: Exact_ELBO(),
}


@pytest.mark.parametrize("name", ["schedule", "moving average", "exact"])
def test_fifty_steps_on_changing_data_compile_once(name):
    svi, state = start((REMEMBERING | STATELESS)[name]())
    update, losses, betas = jax.jit(svi.update), [], []
    for step in range(50):
        state, loss = update(state, X + 0.01 * step)
        losses.append(loss)
        betas.append(float(loss_info(state).beta))
    assert update._cache_size() == 1
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    if name == "schedule":
        np.testing.assert_allclose(betas, 1 / np.arange(1, 51), rtol=1e-6)
        assert int(loss_state(state).beta.step) == 50


@pytest.mark.parametrize("name", REMEMBERING)
def test_what_remembers_says_what_it_needs(name):
    svi, state = start(REMEMBERING[name](), svi_class=numpyro.infer.SVI)
    with pytest.raises(ValueError, match=r"remembers between steps.*numpyro_dvae.infer.SVI"):
        jax.eval_shape(svi.update, state, X)


def test_plain_svi_takes_a_memory_too():
    loss = REMEMBERING["target rate"]()
    svi, state = start(loss, svi_class=numpyro.infer.SVI)
    state, _ = jax.jit(svi.update)(with_memory(state, loss), X)
    assert np.isfinite(float(loss_info(state).elbo))
    assert float(loss_state(state).beta.log_beta) != 0.0


def test_what_does_not_remember_runs_in_plain_svi_with_the_same_numbers():
    losses = []
    for svi_class in (SVI, numpyro.infer.SVI):
        svi, state = start(STATELESS["reinforce"](), svi_class=svi_class)
        state, loss = jax.jit(svi.update)(state, X)
        losses.append(loss)
    np.testing.assert_allclose(*losses, rtol=1e-12)
    assert loss_info(state) is None


def test_a_run_scans_with_the_state():
    svi, _ = start(REMEMBERING["schedule"]())
    result = svi.run(key(), 20, X, progress_bar=False)
    assert int(loss_state(result.state).beta.step) == 20
    assert result.losses.shape == (20,)


def test_other_losses_are_left_alone():
    _, state = start(numpyro.infer.TraceGraph_ELBO())
    assert state.mutable_state is None


@pytest.mark.parametrize(
    ("svi_class", "vectorize"), [(SVI, False), (numpyro.infer.SVI, True)], ids=["ours", "plain"]
)
def test_mutable_state_is_kept_at_any_number_of_particles(svi_class, vectorize):
    """A counter rises by one per step: all particles start from the same state."""
    loss = DAPS_ELBO(4, vectorize_particles=vectorize)
    svi, state = start(loss, counting_guide, svi_class)
    first = int(state.mutable_state["counter"]["calls"])
    update = jax.jit(svi.update)
    for _ in range(3):
        state, _ = update(state, X)
    assert int(state.mutable_state["counter"]["calls"]) == first + 3


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.5)(x)
        return nn.Dense(LATENTS * CODES)(x)


def test_batch_statistics_follow_the_data():
    def normalised(x):
        net = flax_module("encoder", Encoder(), mutable=["batch_stats"], input_shape=(1, PIXELS))
        with numpyro.plate("data", len(x)):
            logits = net(x).reshape(-1, LATENTS, CODES)
            numpyro.sample("z", dist.Categorical(logits=logits).to_event(1))

    svi, state = start(Reinforce_ELBO(4), normalised)
    update = jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state, X)
    found = state.mutable_state["encoder$state"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, X.mean(0) * (1 - 0.5**3), rtol=1e-5)  # init runs it once


def test_keys_can_be_vmapped_under_jit():
    loss = DAPS_ELBO(4)
    svi, state = start(loss)
    params = svi.get_params(state)

    def evaluate(rng_key):
        return loss.loss(rng_key, params, model, guide, X)

    together = jax.jit(jax.vmap(evaluate))(jax.random.split(key(3), 5))
    alone = [jax.jit(evaluate)(k) for k in jax.random.split(key(3), 5)]
    np.testing.assert_allclose(together, alone, rtol=1e-10)
    assert len(set(np.asarray(together))) == 5


def test_particles_and_draws_follow_the_guide():
    """Codes are drawn as often as the guide says, for stock categoricals and under a plate."""
    logits = jnp.log(jnp.array([0.5, 1e-30, 0.3, 0.2]))

    def many(x):
        with numpyro.plate("data", 4000):
            numpyro.sample("z", dist.Categorical(logits=logits).expand([2]).to_event(1))

    pair = Pair(many, many, (X,), {})
    pair = pair._replace(layout=find_layout(key(), pair))

    def run(rng_key):
        return run_particles(rng_key, pair, 3, reads={"codes": read_codes})[0].extras["codes"]

    codes = jax.jit(run)(key())
    assert codes.shape == (3, 4000, 2)
    counts = np.bincount(np.asarray(codes).ravel(), minlength=4)
    expected = 24000 * np.array([0.5, 0.0, 0.3, 0.2])
    assert counts[1] == 0
    deviation = np.abs(counts - expected) / np.sqrt(np.maximum(expected, 1))
    assert deviation.max() < 5
    assert not np.array_equal(codes[0], codes[1])


class Coin(dist.Distribution):
    """Without parameters, of which NumPyro says that all of them are reparameterised."""

    support = dist.constraints.boolean

    def sample(self, key, sample_shape=()):
        return jax.random.bernoulli(key, shape=sample_shape)

    def log_prob(self, value):
        return jnp.full(jnp.shape(value), -np.log(2))


def test_a_discrete_site_without_parameters_needs_the_score_function():
    def program(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", Coin())

    assert Coin().has_rsample
    layout = find_layout(key(), Pair(program, program, (X,), {}))
    assert layout.credited == ("z",)
    assert layout.plates == ("data",)


def test_every_particle_sees_the_same_minibatch():
    def subsampled(x):
        with numpyro.plate("data", len(x), subsample_size=2) as rows:
            numpyro.deterministic("baseline", jnp.asarray(rows, float))
            numpyro.sample("z", dist.Bernoulli(0.5))

    pair = Pair(subsampled, subsampled, (X,), {})
    pair = pair._replace(layout=find_layout(key(), pair))
    for vectorize in (True, False):
        pair, reads = pair._replace(vectorize=vectorize), {"prediction": read_prediction}
        record, _ = run_particles(key(), pair, 4, reads=reads)
        predictions = np.asarray(record.extras["prediction"])
        assert (predictions == predictions[0]).all()
        assert float(record.scale) == 3.0


def test_a_schedule_that_asks_for_the_step_is_refused():
    svi, state = start(DAPS_ELBO(4, beta=lambda step: max(0.1, 1.0 - 0.1 * float(step))))
    with pytest.raises(ValueError, match="`beta` must be a schedule of JAX operations"):
        jax.jit(svi.update)(state, X)


def coins(x):
    """The model with a likelihood that keeps to its own dtype, as NumPyro's Normal does not."""
    prior, weight = numpyro.param("prior"), numpyro.param("weight")
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=prior).to_event(1))
        logits = weight[jnp.arange(LATENTS), z].sum(-2)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=(x > 0).astype(x.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_has_the_dtype_of_the_program(dtype):
    loss = DAPS_ELBO(4, beta=lambda step: 1.0 / (1.0 + step))
    params = {
        "prior": jnp.zeros((LATENTS, CODES), dtype),
        "weight": jnp.ones((LATENTS, CODES, PIXELS), dtype),
        "encoder": jnp.zeros((PIXELS, LATENTS * CODES), dtype),
    }
    memory = {LOSS_MEMORY: loss.init_loss_memory()}

    def evaluate(x):
        return loss.loss_with_mutable_state(key(), params | memory, coins, guide, x)

    found = jax.eval_shape(evaluate, X.astype(dtype))
    assert found["loss"].dtype == dtype
    assert found["mutable_state"][LOSS_MEMORY].info.ess.dtype == memory[LOSS_MEMORY].info.ess.dtype


LEAN = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
LEAK_CHECK = """
import sys
sys.path.insert(0, "tests")
import jax
from test_svi import DAPS_ELBO, X, start
svi, state = start(DAPS_ELBO(3, beta=lambda step: 1.0 / (1.0 + step)))
update = jax.jit(svi.update)
for _ in range(2):
    state, loss = update(state, X)
print("finite", bool(jax.numpy.isfinite(loss)))
"""


def test_no_tracer_leaks():
    run = subprocess.run(
        [sys.executable, "-c", LEAK_CHECK],
        cwd=Path(__file__).parents[1],
        env=LEAN | {"JAX_CHECK_TRACER_LEAKS": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "finite True" in run.stdout, run.stderr
