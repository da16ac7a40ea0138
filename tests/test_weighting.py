"""A policy search's target is a natural-gradient step; its weights keep the promises of theory."""

import functools

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

grid = st.integers(-160, 160).map(lambda i: i / 8)  # nats
tables = npst.arrays(np.float64, (5, 3), elements=grid)  # one shape, since JAX compiles per shape
temperatures = st.sampled_from([0.125, 1.0, 30.0])


@functools.cache
def operation(backend, name):
    return backend.jit(getattr(backend.module("ops.weighting"), name))


def call(backend, name, *arguments):
    arrays = (backend.asarray(np.asarray(argument)) for argument in arguments)
    return np.asarray(operation(backend, name)(*arrays))


def log_softmax(values):
    return values - oracles.log_sum_exp(values)


def target_of(backend, log_q, rewards, beta, temperature):
    """q* as particles of every state represent it: their weights times the chance of a draw."""
    with np.errstate(invalid="ignore"):
        scores = np.where(np.isneginf(log_q), -np.inf, rewards - beta * log_q)
    product = call(backend, "policy_weights", scores, temperature) * np.exp(log_q)
    return product / product.sum(0)


def test_weights_by_hand(backend):
    scores = np.array([[np.log(3), 2.0], [0.0, 2.0 - np.log(4)]])
    for temperature, expected in [(1.0, [0.75, 0.8]), (0.5, [0.9, 16 / 17])]:
        weights = call(backend, "policy_weights", scores, temperature)
        np.testing.assert_allclose(weights, [expected, 1 - np.array(expected)], rtol=1e-14)
    centered = call(backend, "centered_weights", np.array([[0.75], [0.25]]))
    np.testing.assert_array_equal(centered, [[0.25], [-0.25]])


# --- q*, the target ---


@given(rewards=tables, logits=tables, beta=temperatures, eta=st.sampled_from([0.0, 0.5, 8.0]))
def test_target_maximises_the_penalised_objective(backend, rewards, logits, beta, eta):
    """F(q) = E_q[R] + β H(q) - η KL(q ‖ q_θ) falls short of F(q*) by T KL(q ‖ q*), for every q."""
    log_q, temperature = log_softmax(logits), eta + beta

    def objective(q):
        return oracles.policy_objective(rewards, q, beta) - eta * oracles.kl(q, np.exp(log_q))

    target = target_of(backend, log_q, rewards, beta, temperature)
    np.testing.assert_allclose(target.sum(0), 1.0, rtol=1e-12)
    others = oracles.softmax(np.random.default_rng(0).normal(scale=3.0, size=(20, 5, 3)), axis=1)
    shares = np.random.default_rng(1).uniform(size=(20, 1, 1))
    for other in shares * others + (1 - shares) * target:
        shortfall = objective(target) - objective(other)
        np.testing.assert_allclose(
            shortfall, temperature * oracles.kl(other, target), rtol=1e-6, atol=1e-9
        )


@given(rewards=tables, logits=tables, beta=temperatures)
def test_first_order_condition_holds_at_the_target(backend, rewards, logits, beta):
    log_q, eta = log_softmax(logits), 0.5
    log_target = np.log(target_of(backend, log_q, rewards, beta, eta + beta))
    slopes = rewards - beta * log_target - eta * (log_target - log_q)  # dF/dq less constants
    np.testing.assert_allclose(slopes, np.broadcast_to(slopes[0], slopes.shape), atol=1e-10)


@given(
    rewards=npst.arrays(np.float64, 5, elements=st.integers(-40, 40).map(lambda i: i / 8)),
    logits=npst.arrays(np.float64, 5, elements=st.integers(-16, 16).map(lambda i: i / 8)),
    temperature=st.sampled_from([0.5, 1.0, 30.0]),
)
def test_target_is_a_natural_gradient_step(backend, rewards, logits, temperature):
    """Logits plus (1/T) F⁻¹ ∇J, with F the Fisher information of a categorical."""
    beta, q = 0.5, oracles.softmax(logits)
    fisher = np.diag(q) - np.outer(q, q)
    step = np.linalg.pinv(fisher) @ oracles.guide_gradient(rewards, logits, beta)
    expected = oracles.softmax(logits + step / temperature)
    found = target_of(backend, np.log(q), rewards, beta, temperature)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@given(rewards=tables, logits=tables, beta=temperatures, slack=st.sampled_from([1.0, 1.5, 20.0]))
def test_objective_never_falls_at_temperatures_from_beta_up(backend, rewards, logits, beta, slack):
    log_q = log_softmax(logits)
    target = target_of(backend, log_q, rewards, beta, slack * beta)
    before = oracles.policy_objective(rewards, np.exp(log_q), beta)
    after = oracles.policy_objective(rewards, target, beta)
    assert (after >= before - 1e-10 * (1 + np.abs(before))).all()


def test_objective_falls_at_a_temperature_well_below_beta(backend):
    """Negative control: the step overshoots, here from a mild guide to a sharp opposite one."""
    log_q, rewards = np.log([0.6, 0.4]), np.zeros(2)
    target = target_of(backend, log_q, rewards, 1.0, 0.3)
    after = oracles.policy_objective(rewards, target, 1.0)
    assert after < oracles.policy_objective(rewards, np.exp(log_q), 1.0) - 0.01


@given(rewards=tables, logits=tables, temperature=temperatures)
def test_particles_of_every_state_represent_the_target(backend, rewards, logits, temperature):
    """Self-normalised weights of the whole space, times q, are q*: the two formulas are one."""
    log_q, beta = log_softmax(logits), 0.125
    expected = np.exp(oracles.policy_log_target(log_q, rewards, beta, temperature))
    found = target_of(backend, log_q, rewards, beta, temperature)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_impossible_states_stay_impossible(backend, temperature):
    log_q, rewards = np.log([0.5, 0.25, 0.25]), np.array([1.0, -np.inf, 0.0])
    log_q[2] = -np.inf
    found = target_of(backend, log_q, rewards, 0.5, temperature)
    np.testing.assert_array_equal(found, [1.0, 0.0, 0.0])
    expected = oracles.policy_log_target(log_q, rewards, 0.5, temperature)
    np.testing.assert_array_equal(np.exp(expected), found)


def test_target_at_beta_forgets_the_guide(backend):
    rng = np.random.default_rng(0)
    rewards, log_q = rng.normal(size=5), log_softmax(rng.normal(size=5))
    found = target_of(backend, log_q, rewards, 0.5, 0.5)
    np.testing.assert_allclose(found, oracles.softmax(rewards / 0.5), rtol=1e-12)


# --- the weights of particles ---


@given(scores=tables, temperature=temperatures)
def test_weights_are_a_tempered_softmax(backend, scores, temperature):
    found = call(backend, "policy_weights", scores, temperature)
    np.testing.assert_allclose(found, oracles.softmax(scores / temperature), rtol=1e-10)


@given(scores=tables, temperature=temperatures, shift=grid, scale=st.sampled_from([0.25, 64.0]))
def test_constants_units_order_and_neighbours_do_not_matter(
    backend, scores, temperature, shift, scale
):
    weights = call(backend, "policy_weights", scores, temperature)
    shifts = shift * np.arange(1.0, 4.0)  # a constant of its own for each column
    moved = call(backend, "policy_weights", scale * (scores + shifts), scale * temperature)
    np.testing.assert_allclose(moved, weights, atol=1e-12)
    turned = call(backend, "policy_weights", scores[::-1].copy(), temperature)
    np.testing.assert_allclose(turned[::-1], weights, rtol=1e-12)
    alone = [call(backend, "policy_weights", column, temperature) for column in scores.T]
    np.testing.assert_allclose(np.stack(alone, 1), weights, rtol=1e-12)


@given(rewards=tables, logits=tables, shift=grid)
def test_a_constant_in_the_rewards_cancels_in_the_target(backend, rewards, logits, shift):
    log_q, shifts = log_softmax(logits), shift * np.arange(1.0, 4.0)
    found, moved = (
        np.log(target_of(backend, log_q, some, 0.5, 1.0)) for some in (rewards, rewards + shifts)
    )
    np.testing.assert_allclose(moved, found, atol=1e-10)


@given(log_p=tables, logits=tables)
def test_without_a_penalty_at_beta_one_weights_are_those_of_wake_sleep(backend, log_p, logits):
    log_q = log_softmax(logits)
    found = call(backend, "policy_weights", log_p - log_q, 1.0)
    np.testing.assert_allclose(found, oracles.softmax(log_p - log_q), rtol=1e-10)


def test_each_column_may_have_its_own_temperature(backend):
    scores, own = np.random.default_rng(0).normal(size=(5, 3)), np.array([0.1, 1.0, 10.0])
    found = call(backend, "policy_weights", scores, own)
    np.testing.assert_allclose(found, oracles.softmax(scores / own), rtol=1e-12)


def test_impossible_particles_weigh_nothing_and_nan_shows(backend):
    scores = np.array([[0.0, 0.0, -np.inf], [-np.inf, np.nan, -np.inf], [0.0, 0.0, -np.inf]])
    found = call(backend, "policy_weights", scores, 2.0)
    np.testing.assert_array_equal(found[:, 0], [0.5, 0.0, 0.5])
    assert np.isnan(found[:, 1:]).all()


def test_weights_carry_no_gradient(backend):
    ops = backend.module("ops.weighting")
    scores = backend.asarray(np.random.default_rng(0).normal(size=(4, 3)))

    def total(scores):
        return (scores[0] + ops.policy_weights(scores, 0.5)[1:]).sum()

    np.testing.assert_array_equal(backend.grad(total)(scores)[1:], np.zeros((3, 3)))


# --- gradients of the weighted update, exact over all draws ---


class Draws:
    """Every draw of K = 3 of five states, their scores R - β log q and ∇ log q."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.rewards, self.logits, self.beta = rng.normal(size=5), rng.normal(size=5), 0.5
        q = oracles.softmax(self.logits)
        self.codes, self.probs = oracles.all_draws(q, 3)
        self.codes = self.codes.T  # particles lead
        self.scores = (self.rewards - self.beta * np.log(q))[self.codes]
        self.grad_log_q = (np.eye(5) - q)[self.codes]  # (K, draws, logits)

    def gradients(self, weights):
        return np.einsum("kd,kdj->dj", weights, self.grad_log_q)

    def mean_gradient(self, weights):
        return self.probs @ self.gradients(weights)

    def noise(self, weights):
        gradients = self.gradients(weights)
        return self.probs @ ((gradients - self.probs @ gradients) ** 2).sum(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 100.0])
def test_centring_keeps_the_mean_gradient_and_removes_noise(backend, temperature):
    draws = Draws()
    weights = call(backend, "policy_weights", draws.scores, temperature)
    centered = call(backend, "centered_weights", weights)
    np.testing.assert_allclose(centered.sum(0), 0.0, atol=1e-15)
    kept, plain = draws.mean_gradient(centered), draws.mean_gradient(weights)
    np.testing.assert_allclose(kept, plain, atol=1e-14)
    assert draws.noise(centered) < 0.95 * draws.noise(weights)


def test_centring_on_what_depends_on_the_particle_is_biased(backend):
    """Negative control: subtract other weights instead of 1/K and the mean gradient moves."""
    draws = Draws()
    weights, other = (call(backend, "policy_weights", draws.scores, t) for t in (0.3, 3.0))
    moved = draws.mean_gradient(weights - other) - draws.mean_gradient(weights)
    assert np.abs(moved).max() > 1e-2


def test_hot_weights_are_the_policy_gradient_with_the_mean_as_baseline(backend):
    """T (w_k - 1/K) → (f_k - mean f) / K as T → ∞, with an error that falls as 1/T.

    That is REINFORCE with the K-mean baseline, draw by draw, and (K - 1)/K of leave-one-out.
    """
    draws, num_particles = Draws(), 3
    limit = (draws.scores - draws.scores.mean(0)) / num_particles
    errors = []
    for temperature in (1e3, 1e4):
        weights = call(backend, "policy_weights", draws.scores, temperature)
        hot = temperature * call(backend, "centered_weights", weights)
        errors.append(np.abs(hot - limit).max())
    assert errors[0] < 1e-2
    np.testing.assert_allclose(errors[0] / errors[1], 10.0, rtol=0.02)


def test_hot_mean_gradient_is_the_exact_one_shrunk_by_the_mean_baseline(backend):
    draws, temperature = Draws(), 1e5
    weights = call(backend, "policy_weights", draws.scores, temperature)
    exact = oracles.guide_gradient(draws.rewards, draws.logits, draws.beta)
    # The 1/K in each weight adds T/K Σ ∇ log q, of mean zero but of overwhelming noise.
    found = draws.mean_gradient(temperature * call(backend, "centered_weights", weights))
    np.testing.assert_allclose(found, exact * 2 / 3, atol=1e-4)
    uncentred = draws.mean_gradient(temperature * weights)
    np.testing.assert_allclose(uncentred, exact * 2 / 3, atol=1e-4)
    assert draws.noise(weights) > 1e6 * draws.noise(weights - 1 / 3)


# --- copies ---


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_copies_are_counted_per_column(backend, dtype, batch):
    codes = np.random.default_rng(0).integers(0, 2, size=(6, *batch, 2)).astype(dtype)
    equal = (codes[:, None] == codes[None]).all(-1)
    found = call(backend, "count_copies", codes)
    np.testing.assert_array_equal(found, equal.sum(1))
    assert found.shape == (6, *batch)


def test_copies_need_every_code_equal(backend):
    codes = np.array([[0, 1], [0, 2], [0, 1], [3, 1]])
    np.testing.assert_array_equal(call(backend, "count_copies", codes), [2, 1, 2, 1])


IMPOSSIBLE = np.array([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, 4.0], [4.0, -np.inf, 9.0]])


def test_impossible_scores_take_the_mean_of_the_possible(backend):
    """By hand; where none is possible there is no mean, and 0 moves nothing."""
    found = call(backend, "fill_impossible", IMPOSSIBLE)
    np.testing.assert_array_equal(found, [[1.0, 0.0, 2.0], [2.5, 0.0, 4.0], [4.0, 0.0, 9.0]])


@pytest.mark.thrifty
def test_impossible_scores_take_the_weighted_mean(backend):
    """Weights of what is impossible do not count: (.2 + .4 * 4) / .6."""
    probs = np.array([[0.2] * 3, [0.4] * 3, [0.4] * 3])
    found = call(backend, "fill_impossible", IMPOSSIBLE, probs)
    np.testing.assert_allclose(found[:, 0], [1.0, 3.0, 4.0], rtol=1e-15)
    np.testing.assert_array_equal(found[:, 1], 0.0)
    np.testing.assert_array_equal(found[:, 2], IMPOSSIBLE[:, 2])
