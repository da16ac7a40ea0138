"""Truncated posteriors in NumPyro's protocol: compiled once, pure, with state that goes on.

That `fit` resumes to the same numbers is in `test_truncated_models`, over both packages.
"""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro.infer
import optax
from numpyro_shim import quickly
from quick_numpyro import QuickSVI

from numpyro_dvae.infer import Truncated_ELBO, TruncatedGuide
from numpyro_dvae.infer.svi import loss_info, loss_state
from numpyro_dvae.models import BernoulliPrior, DiscreteVAE, GaussianLikelihood
from numpyro_dvae.nets import MLPDecoder
from numpyro_dvae.ops.states import unpack

NUM_DATA, LATENTS, STATES, BATCH = 12, 5, 6, 4
X = np.random.default_rng(0).normal(size=(NUM_DATA, 3))


def make_svi(loss=None, svi_class=QuickSVI):
    decoder = MLPDecoder(LATENTS, None, (3,), hidden=(4,))
    prior = BernoulliPrior(LATENTS, probability=0.3, learn="closed_form")
    model = DiscreteVAE(decoder, prior, GaussianLikelihood(learn="closed_form"))
    guide = TruncatedGuide(model, STATES)
    return svi_class(model, guide, optax.adam(1e-2), loss or Truncated_ELBO(beta=lambda step: 1.0))


SVI_OF_ALL = make_svi()


def init(key, svi=SVI_OF_ALL):
    return svi.init(key, jnp.asarray(X[:BATCH]), jnp.arange(BATCH), NUM_DATA)


TRACED = []  # rows of each time that Python ran the step


def update(state, rows, svi=SVI_OF_ALL):
    TRACED.append(rows)
    return svi.update(state, jnp.asarray(X)[rows], rows, NUM_DATA)


start, step = quickly("init", init), quickly("update", update)


def codes(state):
    return np.asarray(unpack(state.mutable_state["guide.words"], (2,) * LATENTS))


def test_fifty_steps_on_changing_rows_compile_once_and_touch_their_rows_alone():
    state, losses = start(jax.random.key(0)), []
    rng = np.random.default_rng(1)
    TRACED.clear()
    for _ in range(50):
        rows, before = rng.permutation(NUM_DATA)[:BATCH], codes(state)
        state, loss = step(state, rows)
        losses.append(float(loss))
        others = np.setdiff1d(np.arange(NUM_DATA), rows)
        np.testing.assert_array_equal(codes(state)[others], before[others])
    assert len(TRACED) <= 1  # 0 after another test of this process
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert all(len(np.unique(states, axis=0)) == STATES for states in codes(state))
    assert int(loss_state(state).beta.step) == 50
    assert int(loss_state(state).memory.rows) == (50 * BATCH) % NUM_DATA  # since the last update
    assert 0.0 <= float(loss_info(state).replaced) < 1.0


def test_whole_states_run_side_by_side():
    """Restarts: the step is vmapped, each with sets, parameters and keys of its own."""
    states, rows = [start(jax.random.key(seed)) for seed in (0, 1)], np.arange(BATCH)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    found, losses = quickly("vmapped", jax.vmap(update, (0, None)))(together, rows)
    for i, state in enumerate(states):
        state, loss = step(state, rows)
        np.testing.assert_allclose(loss, losses[i], rtol=1e-5)
        np.testing.assert_array_equal(codes(state), codes(jax.tree.map(lambda a, i=i: a[i], found)))
    assert losses[0] != losses[1]


def test_rows_out_of_range_show_under_jit():
    state = start(jax.random.key(0))
    for rows in ([0, 1, 2, NUM_DATA], [0, 1, 2, -1]):
        after, loss = step(state, np.array(rows))
        assert np.isnan(loss)
        np.testing.assert_array_equal(codes(after)[3:], codes(state)[3:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_keeps_every_dtype(dtype):
    def steps(key):
        x, rows = jnp.asarray(X, dtype), jnp.arange(NUM_DATA)
        state = SVI_OF_ALL.init(key, x, rows, NUM_DATA)
        return state, SVI_OF_ALL.update(state, x, rows, NUM_DATA)[0]

    before, after = jax.eval_shape(steps, jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)


def test_evaluation_finds_the_sets():
    state = start(jax.random.key(0))
    data = jnp.asarray(X), jnp.arange(NUM_DATA)

    def evaluate(state):
        return SVI_OF_ALL.evaluate(state, *data, NUM_DATA), SVI_OF_ALL.loss.loss(
            state.rng_key,
            {**SVI_OF_ALL.get_params(state), **state.mutable_state},
            SVI_OF_ALL.model,
            SVI_OF_ALL.guide,
            *data,
            NUM_DATA,
        )

    found, expected = quickly("evaluate", evaluate)(state)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # no draw in it


def test_what_it_keeps_must_be_there():
    svi = make_svi(Truncated_ELBO(), numpyro.infer.SVI)
    state = jax.eval_shape(lambda: init(jax.random.key(0), svi))
    with pytest.raises(ValueError, match=r"closed form.*numpyro_dvae\.infer\.SVI"):
        jax.eval_shape(lambda state: update(state, jnp.arange(BATCH), svi), state)
    svi.loss.closed_form = False
    jax.eval_shape(lambda state: update(state, jnp.arange(BATCH), svi), state)
    bare = state._replace(mutable_state=None)
    with pytest.raises(ValueError, match=r"'guide\.words', are not there"):
        jax.eval_shape(lambda state: update(state, jnp.arange(BATCH), svi), bare)


def test_schedules_must_be_traceable():
    svi = make_svi(Truncated_ELBO(sweeps=lambda step: 2 if step < 3 else 0))
    with pytest.raises(ValueError, match="`sweeps` must be a schedule of JAX operations"):
        jax.eval_shape(lambda: update(init(jax.random.key(0), svi), jnp.arange(BATCH), svi))


def test_a_population_of_an_e_step_may_be_transformed():
    """Its context is no array to JAX, and no tracer leaks by it into a later trace."""
    seen = []

    @jax.jit
    def flipped(population):
        seen.append(population.context)
        return 1 - population.codes

    svi = make_svi(Truncated_ELBO(lambda rng_key, population: flipped(population)))
    for _ in range(2):
        jax.eval_shape(lambda: update(init(jax.random.key(0), svi), jnp.arange(BATCH), svi))
    assert len({id(scorer) for scorer in seen}) == len(seen) == 2  # one trace in each E-step
