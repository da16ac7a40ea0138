"""Reweighted wake-sleep: the formula by hand, its kinship with DAPS, the exact mean of sleep."""

import itertools
from functools import partial

import numpy as np
import pytest
from zoo import NOISE, PROGRAMS, Program, bernoulli, gradient, log_softmax, normal
from zoo_binary import assert_same, sigmoid

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]
DISTINCT = np.array([[0, 2], [1, 3], [3, 0]])


def run(shim, module, name, case, states, **options):
    elbo = case.forced(getattr(shim.module(f"infer.{module}"), name), **options)
    elbo.draws = states
    loss, grads = case.run(elbo)
    return loss, grads, elbo.info


@pytest.mark.parametrize("beta", [1.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_wake_sleep_is_policy_search_at_the_temperature_beta(shim, beta):
    """A target that no T above beta reaches leaves T = beta."""
    case = shim.Case(VAE)
    loss, grads, info = run(
        shim, "wake_sleep", "WakeSleep_ELBO", case, DISTINCT, num_particles=3, beta=beta
    )
    options = {"target_ess": 1e-9, "importance_weighted": beta == 1.0}
    policy_loss, policy, policy_info = run(
        shim, "daps", "DAPS_ELBO", case, DISTINCT, num_particles=3, beta=beta, **options
    )
    np.testing.assert_allclose(float(policy_info.temperature), beta)
    np.testing.assert_allclose(loss, policy_loss, rtol=1e-12)
    np.testing.assert_allclose(float(info.ess), float(policy_info.ess), rtol=1e-9)
    np.testing.assert_allclose(grads["encoder"], policy["encoder"], rtol=1e-9)
    if beta == 1.0:
        assert_same(grads, policy, 1e-9)


def softmax(scores):
    weights = np.exp(scores - scores.max(0))
    return weights / weights.sum(0)


def mixed_terms(p, c, x, states):
    """Log q and log p of the drawn states, the continuous latent held fixed."""
    a, b = states % 2, states // 2
    log_q = normal(c, p["loc"][0] * x, p["loc"][1]) + bernoulli(a, p["gate"][0] + p["gate"][1] * c)
    log_q = log_q + log_softmax(p["step"] * (a + c * x)[:, None])[[0, 1, 2], b]
    loc = p["slope"][0] * c + p["slope"][1] * a * c + p["slope"][2] * b
    log_p = normal(c, 0.0) + bernoulli(a, p["link"][0, 0]) + normal(x, loc)
    return log_q, log_p + log_softmax(p["link"][1] * a[:, None])[[0, 1, 2], b]


def test_wake_sleep_sends_no_gradient_through_draws(shim):
    """Continuous latents too are weighed draws, and no path leads to them."""
    program = BY_NAME["mixed"]
    _, grads, info = run(
        shim, "wake_sleep", "WakeSleep_ELBO", shim.Case(program), DISTINCT, num_particles=3
    )
    p, bounds = program.params, []
    noise = [p["loc"][0] * x + np.exp(p["loc"][1]) * NOISE for x in program.data["x"]]
    held = list(zip(noise, program.data["x"], DISTINCT.T, strict=True))

    def surrogate(moved):
        total = 0.0
        for c, x, states in held:
            log_q, log_p = mixed_terms(p, c, x, states)
            weights = softmax(log_p - log_q)
            log_q, log_p = mixed_terms(moved, c, x, states)
            total = total - ((weights - 1 / 3) * log_q + weights * log_p).sum()
        return total

    assert_same(grads, gradient(surrogate, p), 1e-9)
    for c, x, states in held:
        log_q, log_p = mixed_terms(p, c, x, states)
        bounds.append(np.log(np.exp(log_p - log_q).mean()))
    np.testing.assert_allclose(float(info.iwae), np.mean(bounds), rtol=1e-12)


def dream_model(ppl, data):
    theta = ppl.param("theta", data)
    with ppl.plate("data", 4000):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=theta[0] + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Bernoulli(logits=theta[1] + theta[2] * z), obs=data["x"])


def dream_guide(ppl, data):
    phi = ppl.param("phi", data)
    with ppl.plate("data", 4000):
        ppl.sample("z", ppl.dist.Bernoulli(logits=phi[0] + phi[1] * data["x"]))


DREAM = Program(
    "dream",
    dream_model,
    dream_guide,
    None,
    {"theta": np.array([0.5, -1.0, 2.0]), "phi": np.array([0.3, -0.7])},
    {"x": np.zeros(4000)},
    ("data",),
    2,
)


def put_x(made, args, kwargs):
    """The programs take a dict of data."""
    return ({"x": made["x"] * 1.0},), kwargs


def test_sleep_teaches_the_guide_the_models_own_posterior(shim):
    """Against the exact mean over the model's draws, in standard errors."""
    theta, phi = DREAM.params["theta"], DREAM.params["phi"]
    terms, probs = [], []
    for z, x in itertools.product((0, 1), repeat=2):
        probs.append(np.exp(bernoulli(z, theta[0]) + bernoulli(x, theta[1] + theta[2] * z)))
        slope = z - sigmoid(phi[0] + phi[1] * x)
        terms.append(np.array([slope, slope * x]))
    exact = np.array(probs) @ terms
    error = np.sqrt((np.array(probs) @ (terms - exact) ** 2) / 4000)
    elbo = shim.module("infer.wake_sleep").WakeSleep_ELBO(2, sleep=1.0, replace_data=put_x)
    grads = shim.Case(DREAM).run(elbo)[1]
    assert (np.abs(grads["phi"] / -4000 - exact) < 5 * error).all()
    assert np.abs(grads["theta"]).min() > 1.0  # the model stays awake
    awake = np.array([sigmoid(theta[0]) - sigmoid(phi[0]), 0.0])  # at the real data, all zero
    assert (np.abs(awake - exact) > 5 * error).any()


def backward_model(at_hand, ppl, data):
    """Its second data are drawn given the first that are at hand, or the first that are drawn."""
    theta = ppl.param("theta", data)
    with ppl.plate("data", 4000):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=theta[0] + 0.0 * data["x"]))
        x = ppl.sample("x", ppl.dist.Bernoulli(logits=theta[1] * z), obs=data["x"])
        given = data["x"] if at_hand else x
        ppl.sample("y", ppl.dist.Bernoulli(logits=theta[2] * given - z), obs=data["y"])


def put_both(made, args, kwargs):
    data = args[0]
    return (data | {"x": made["x"] * 1.0, "y": made["y"] * 1.0},), kwargs


@pytest.mark.parametrize("at_hand", [False, True])
def test_dreams_are_of_one_draw(shim, at_hand):
    data = {"x": np.zeros(4000), "y": np.zeros(4000)}
    case = shim.Case(DREAM._replace(model=partial(backward_model, at_hand), data=data))
    elbo = shim.module("infer.wake_sleep").WakeSleep_ELBO(2, sleep=1.0, replace_data=put_both)
    if at_hand:
        with pytest.raises(ValueError, match="what the model draws at 'y' depends on data"):
            case.run(elbo)
    else:
        assert np.isfinite(case.run(elbo)[0])


def test_sleep_without_a_place_for_the_data(shim):
    elbo = shim.module("infer.wake_sleep").WakeSleep_ELBO(sleep=0.5)
    with pytest.raises(
        ValueError, match=r"observed sites are .*'x'.*argument is dict.*replace_data"
    ):
        shim.Case(DREAM).run(elbo)


def test_a_loop_over_particles_cuts_the_same_paths(shim):
    program, found = BY_NAME["mixed"], []
    for vectorize in (True, False):
        options = {"num_particles": 3, "vectorize_particles": vectorize}
        case = shim.Case(program)
        found.append(run(shim, "wake_sleep", "WakeSleep_ELBO", case, DISTINCT, **options))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    assert_same(found[0][1], found[1][1], 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sleep": 1.5}, "`sleep` is a share"),
        ({"beta": 0.0}, "`beta` must be positive"),
        ({"num_particles": 1}, "`num_particles`"),
    ],
)
def test_bad_settings(shim, options, message):
    with pytest.raises(ValueError, match=message):
        shim.module("infer.wake_sleep").WakeSleep_ELBO(**options)
