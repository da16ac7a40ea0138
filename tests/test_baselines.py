"""Baselines that claim to be unbiased are, by summing over every possible draw."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

grid = st.integers(-400, 400).map(lambda i: i / 8)
tables = npst.arrays(np.float64, (4, 3), elements=grid)
NAMES = ["no_baseline", "leave_one_out", "moving_average", "learned"]


def make(backend, name, **options):
    return getattr(backend.module("ops.baselines"), name)(**options)


def run(backend, baseline, scores, state=None, prediction=None):
    """Values as NumPy, next state as the backend's."""
    prediction = None if prediction is None else backend.asarray(np.asarray(prediction))
    state = baseline.init() if state is None else state
    values, state = baseline.apply(backend.asarray(scores), state, prediction)
    return np.asarray(values), state


def warmed(backend, baseline):
    """The state after two past batches of different sizes."""
    state = baseline.init()
    for batch in (np.full((3, 2), 1.5), np.full((3, 7), -4.0)):
        _, state = run(backend, baseline, batch, state)
    return state


SCORES = np.array([[1.0, 4], [2, 6], [6, 8]])
BY_HAND = {  # values for the scores, once batches of means 2 and 5 are past
    "no_baseline": 0.0,
    "leave_one_out": [[4, 7], [3.5, 6], [1.5, 5]],
    "moving_average": 4.0,  # (2 / 4 + 5 / 2) / (1 / 4 + 1 / 2)
    "learned": [3, 7],
}


@pytest.mark.parametrize("name", NAMES)
def test_by_hand(backend, name):
    baseline = make(backend, name, **({"decay": 0.5} if name == "moving_average" else {}))
    state, seen = baseline.init(), []
    for batch in (np.full((3, 2), 2.0), np.full((3, 2), 5.0), SCORES):
        values, state = run(backend, baseline, batch, state, [3.0, 7.0])
        seen.append(values)
    np.testing.assert_allclose(seen[-1], BY_HAND[name], rtol=1e-6)
    if name == "moving_average":
        np.testing.assert_allclose(seen[:2], [0.0, 2.0], rtol=1e-6)


class Draws:
    """Every draw of K = 3 of five states, as columns: scores f, ∇ log q, exact ∇ E_q[f]."""

    def __init__(self):
        rng = np.random.default_rng(0)
        logits, rewards = rng.normal(size=5), rng.normal(size=5)
        q = oracles.softmax(logits)
        codes, self.probs = oracles.all_draws(q, 3)
        self.scores = rewards[codes.T]
        self.grad_log_q = (np.eye(5) - q)[codes.T]
        self.exact = oracles.guide_gradient(rewards, logits, beta=0.0)

    def mean_gradient(self, values):
        advantages = self.scores - values
        return self.probs @ np.einsum("kd,kdj->dj", advantages, self.grad_log_q) / 3

    def noise(self, values):
        gradients = np.einsum("kd,kdj->dj", self.scores - values, self.grad_log_q) / 3
        return self.probs @ ((gradients - self.probs @ gradients) ** 2).sum(1)


@pytest.mark.parametrize("name", NAMES)
def test_mean_gradient_is_exact(backend, name):
    draws, baseline = Draws(), make(backend, name)
    prediction = np.full(draws.scores.shape[1], 0.7)  # one per datum; here all are one datum
    values, _ = run(backend, baseline, draws.scores, warmed_or_none(backend, name), prediction)
    np.testing.assert_allclose(draws.mean_gradient(values), draws.exact, rtol=1e-12, atol=1e-14)


def warmed_or_none(backend, name):
    return warmed(backend, make(backend, name)) if name == "moving_average" else None


def test_plain_mean_shrinks_the_gradient(backend):
    """Negative control: the mean of all K, each particle's own score included."""
    draws = Draws()
    found = draws.mean_gradient(draws.scores.mean(0))
    np.testing.assert_allclose(found, draws.exact * 2 / 3, rtol=1e-12)


def test_an_average_that_saw_the_current_batch_is_biased(backend):
    """Negative control: one draw a batch, each leaving its trace in the state it is judged by."""
    draws, baseline = Draws(), make(backend, "moving_average", decay=0.5)
    start = warmed(backend, baseline)
    late = []
    for scores in draws.scores.T[:, :, None]:
        _, after = run(backend, baseline, scores, start)
        late.append(run(backend, baseline, scores, after)[0])
    moved = draws.mean_gradient(np.array(late)) - draws.exact
    assert np.abs(moved).max() > 1e-2 * np.abs(draws.exact).max()


def test_leave_one_out_removes_noise(backend):
    draws = Draws()
    values, _ = run(backend, make(backend, "leave_one_out"), draws.scores + 10.0)
    assert draws.noise(values - 10.0) < 0.1 * draws.noise(np.full(3, -10.0)[:, None])


@given(scores=tables)
def test_leave_one_out_is_the_mean_of_the_others(backend, scores):
    values, state = run(backend, make(backend, "leave_one_out"), scores)
    expected = [np.delete(scores, k, axis=0).mean(0) for k in range(len(scores))]
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert state == ()


@given(batches=st.lists(tables, min_size=1, max_size=5), decay=st.sampled_from([0.0, 0.5, 0.9]))
def test_moving_average_is_the_weighted_mean_of_past_batches(backend, batches, decay):
    baseline, state = make(backend, "moving_average", decay=decay), None
    for step, batch in enumerate(batches):
        values, state = run(backend, baseline, batch[:, : 1 + step % 3], state)
        means = [past[:, : 1 + i % 3].mean() for i, past in enumerate(batches[:step])]
        weights = decay ** np.arange(step)[::-1]
        expected = np.average(means, weights=weights) if step else 0.0
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-5)
        assert values.shape == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_moving_average_never_stores_what_is_not_finite(backend, bad):
    baseline = make(backend, "moving_average")
    state = warmed(backend, baseline)
    values, after = run(backend, baseline, np.array([[1.0, bad], [0.0, 2.0]]), state)
    assert np.isfinite(values)
    np.testing.assert_array_equal(np.asarray(after), np.asarray(state))


def test_nan_shows_in_the_leave_one_out_values_of_its_column_alone(backend):
    scores = np.array([[1.0, np.nan], [0.0, 2.0]])
    values, _ = run(backend, make(backend, "leave_one_out"), scores)
    np.testing.assert_array_equal(np.isnan(values), [[False, True], [False, True]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_broadcast_to_the_scores_in_their_precision(backend, name, dtype):
    scores, prediction = np.ones((4, 3, 2), dtype), np.ones((3, 2), dtype)
    values, _ = run(backend, make(backend, name), scores, prediction=prediction)
    assert np.broadcast_shapes(values.shape, scores.shape) == scores.shape
    assert values.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_values_carry_no_gradient(backend, name):
    baseline = make(backend, name)
    array = backend.asarray(np.ones((3, 2)))
    state = warmed_or_none(backend, name) or baseline.init()

    def total(array):
        values, after = baseline.apply(array, state, array[0])
        return array[0].sum() + (values * array[1]).sum() * 0 + values.sum() + sum(after)

    np.testing.assert_array_equal(backend.grad(total)(array)[2], np.zeros(2))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_baseline_asks_of_its_caller(backend, name):
    baseline = make(backend, name)
    assert baseline.min_particles == (2 if name == "leave_one_out" else 1)
    assert baseline.predicts == (name == "learned")


def test_moving_average_runs_inside_a_scan():
    jax = pytest.importorskip("jax")
    from numpyro_dvae.ops.baselines import moving_average

    baseline = moving_average(0.5)
    batches = jax.numpy.arange(4.0, dtype="float32")[:, None, None] * jax.numpy.ones((4, 3, 2))

    def step(state, scores):
        values, state = baseline.apply(scores, state, None)
        return state, values

    _, values = jax.lax.scan(step, baseline.init(), batches.astype("float32"))
    np.testing.assert_allclose(values, [0.0, 0.0, 2 / 3, 10 / 7], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_of_one_would_never_learn(backend, decay):
    with pytest.raises(ValueError, match=r"`decay` is the weight of the past, in \[0, 1\)"):
        make(backend, "moving_average", decay=decay)


def test_one_particle_has_no_others(backend):
    with pytest.raises(ValueError, match=r"K >= 2 particles.*got \(1, 3\).*num_particles"):
        run(backend, make(backend, "leave_one_out"), np.zeros((1, 3)))


def test_a_learned_baseline_needs_its_prediction(backend):
    with pytest.raises(ValueError, match=r"`prediction` must be an array.*got None"):
        run(backend, make(backend, "learned"), np.zeros((2, 3)))
