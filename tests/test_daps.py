"""DAPS as a loss: its gradient at given draws against NumPy, its temperature, its invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import PROGRAMS, VAE_DATA, gradient, vae_terms

VAE = next(program for program in PROGRAMS if program.name == "vae")
DISTINCT = np.array([[0, 2], [1, 3], [3, 0]])  # states of K = 3 particles for two data
draws = st.lists(st.integers(0, 3), min_size=6, max_size=6).map(lambda s: np.array(s).reshape(3, 2))


def run(shim, states, case=None, **options):
    case = case or shim.Case(VAE)
    elbo = case.forced(shim.module("infer.daps").DAPS_ELBO, num_particles=len(states), **options)
    elbo.draws = states
    loss, grads = case.run(elbo)
    return loss, grads, elbo.info


def chosen_terms(p, states):
    """log q, log p(z), log p(x|z) at the drawn states, each (K, 2)."""
    terms = [np.stack(vae_terms(p, x)) for x in VAE_DATA["x"]]
    return np.stack([terms[n][:, states[:, n]] for n in (0, 1)], -1)


def softmax(scores):
    weights = np.exp(scores - scores.max(0))
    return weights / weights.sum(0)


def scores_and_weights(states, beta, temperature, closed_form):
    log_q, log_prior, log_likelihood = chosen_terms(VAE.params, states)
    scores = log_likelihood + beta * (log_prior - (0.0 if closed_form else log_q))
    return scores, softmax(scores / temperature)


def entropies(p):
    return [-(np.exp(q) * q).sum() for q in (vae_terms(p, x)[0] for x in VAE_DATA["x"])]


@pytest.mark.parametrize("closed_form", [False, True])
@pytest.mark.parametrize("per_datum", [False, True])
@pytest.mark.parametrize("importance_weighted", [False, True])
def test_the_gradient_is_the_formula(shim, closed_form, per_datum, importance_weighted):
    beta = 0.3
    _, grads, info = run(
        shim,
        DISTINCT,
        beta=beta,
        target_ess=0.6,
        per_datum=per_datum,
        closed_form_entropy=closed_form,
        importance_weighted=importance_weighted,
    )
    temperature = oracle_temperature(DISTINCT, beta, 0.6, per_datum, closed_form)
    np.testing.assert_allclose(float(info.temperature), temperature.mean(), rtol=1e-6)
    _, weights = scores_and_weights(DISTINCT, beta, temperature, closed_form)
    log_q, log_prior, log_likelihood = chosen_terms(VAE.params, DISTINCT)
    shares = softmax(log_likelihood + log_prior - log_q) if importance_weighted else 1 / 3

    def surrogate(p):
        log_q, log_prior, log_likelihood = chosen_terms(p, DISTINCT)
        policy = ((weights - 1 / 3) * log_q).sum()
        if closed_form:
            policy = policy + sum(beta / temperature * entropies(p))
        return -(policy + (shares * (log_likelihood + beta * log_prior)).sum())

    for name, expected in gradient(surrogate, VAE.params).items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def oracle_temperature(states, beta, target, per_datum, closed_form):
    """By plain search over a fine grid of log T, in NumPy; shape (2,)."""
    grid = np.exp(np.linspace(np.log(beta), 8, 200_001))
    scores, _ = scores_and_weights(states, beta, 1.0, closed_form)
    ess = [1 / (softmax(column[:, None] / grid) ** 2).sum(0) for column in scores.T]
    if not per_datum:
        ess = [np.mean(ess, axis=0)] * 2
    return np.array([np.interp(target * len(states), e, grid) for e in ess])


def test_the_loss_is_minus_the_elbo_at_any_beta(shim):
    log_q, log_prior, log_likelihood = chosen_terms(VAE.params, DISTINCT)
    expected = -(log_likelihood + log_prior - log_q).mean(0).sum()
    for beta in (0.1, 1.0, 4.0):
        loss, _, info = run(shim, DISTINCT, beta=beta, closed_form_entropy=False)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        tempered = (log_likelihood + beta * (log_prior - log_q)).mean()
        np.testing.assert_allclose(float(info.beta_elbo), tempered, rtol=1e-12)


ONE = VAE._replace(data={"x": VAE_DATA["x"][:1]})


@given(states=draws, target=st.sampled_from([0.4, 0.75, 0.9]))
def test_the_target_is_attained_or_the_clamp_holds(shim, states, target):
    """Equal draws count once, so the target is a fraction of what these draws can reach."""
    states = states[:, :1]
    _, _, info = run(shim, states, shim.Case(ONE), target_ess=target, beta=0.5)
    copies = (states[:, None] == states[None]).sum(0)[:, 0]
    reach = len(states) ** 2 / copies.sum()
    wanted = 1 + (target * 3 - 1) * (reach - 1) / 2
    assert float(info.temperature) >= 0.5
    if float(info.temperature) > 0.5:
        np.testing.assert_allclose(float(info.ess) * 3, wanted, rtol=1e-4)
    else:
        assert float(info.ess) * 3 >= wanted - 1e-4


def test_equal_draws_are_one_and_teach_the_guide_nothing(shim):
    states = np.array([[1, 1]] * 3)
    _, grads, info = run(shim, states, closed_form_entropy=False)
    np.testing.assert_allclose(float(info.ess), 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(grads["encoder"], 0.0, atol=1e-12)
    assert np.abs(grads["weight"]).max() > 0.1


@given(states=draws, order=st.permutations(range(3)))
@settings(max_examples=15)
def test_the_order_of_particles_does_not_matter(shim, states, order):
    (loss, grads, _), (moved_loss, moved, _) = run(shim, states), run(shim, states[list(order)])
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-12)
    for name in grads:
        np.testing.assert_allclose(moved[name], grads[name], rtol=1e-6, atol=1e-9)


def test_a_constant_in_the_return_changes_nothing(shim):
    def model(ppl, data):
        VAE.model(ppl, data)
        with ppl.plate("constants", 2):
            ppl.sample("c", ppl.dist.Normal(0.0, 1.0), obs=10.0 * data["x"][:, 0])

    _, grads, _ = run(shim, DISTINCT)
    _, moved, _ = run(shim, DISTINCT, case=shim.Case(VAE, model=model))
    for name in grads:
        np.testing.assert_allclose(moved[name], grads[name], rtol=1e-6, atol=1e-9)


@given(states=draws)
@settings(max_examples=8)
def test_with_a_temperature_per_datum_neighbours_do_not_matter(shim, states):
    swapped = states.copy()
    swapped[:, 1] = (swapped[:, 1] + 1) % 4
    options = {"per_datum": True, "closed_form_entropy": False}
    case = shim.Case(ONE)
    elbo = case.forced(shim.module("infer.daps").DAPS_ELBO, num_particles=3, **options)
    elbo.draws = states[:, :1]
    first = case.run(elbo)[1]["encoder"]
    for other in (states, swapped):
        second = shim.Case(VAE._replace(data={"x": VAE_DATA["x"][1:]}))
        elbo = second.forced(shim.module("infer.daps").DAPS_ELBO, num_particles=3, **options)
        elbo.draws = other[:, 1:]
        rest = second.run(elbo)[1]["encoder"]
        together = run(shim, other, **options)[1]["encoder"]
        np.testing.assert_allclose(together, first + rest, rtol=1e-6, atol=1e-9)


def test_a_kl_bound_is_met_by_the_weights(shim):
    _, _, info = run(shim, DISTINCT, kl_bound=0.2, beta=0.01)
    _, weights = scores_and_weights(DISTINCT, 0.01, float(info.temperature), False)
    np.testing.assert_allclose((weights * np.log(3 * weights)).sum(0).mean(), 0.2, rtol=1e-4)


def test_a_target_rate_steers_beta(shim):
    case = shim.Case(VAE)
    for target, direction in ((0.01, 1), (50.0, -1)):
        options = {"num_particles": 3, "target_rate": target, "closed_form_entropy": True}
        elbo = case.forced(shim.module("infer.daps").DAPS_ELBO, **options)
        elbo.draws = DISTINCT
        betas = []
        for _ in range(3):
            case.run(elbo)
            betas.append(float(elbo.info.beta))
        assert (np.diff(np.log(betas)) * direction > 0).all()


def test_a_schedule_sees_the_step(shim):
    case = shim.Case(VAE)
    elbo = case.forced(
        shim.module("infer.daps").DAPS_ELBO, num_particles=3, beta=lambda step: 1.0 / (1 + step)
    )
    elbo.draws = DISTINCT
    betas = [float((case.run(elbo), elbo.info.beta)[1]) for _ in range(3)]
    np.testing.assert_allclose(betas, [1.0, 0.5, 1 / 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "`num_particles` must be an integer of at least 2"),
        ({"target_ess": 1.0}, "`target_ess` is a fraction of K"),
        ({"target_ess": 0.0}, "`target_ess`"),
        ({"kl_bound": 0.0}, "`kl_bound` must be positive"),
        ({"beta": -1.0}, "`beta` must be finite"),
        ({"beta": float("nan")}, "`beta`"),
        ({"target_rate": -3.0}, "`target_rate` must be positive"),
    ],
)
def test_bad_settings(shim, options, message):
    with pytest.raises(ValueError, match=message):
        shim.module("infer.daps").DAPS_ELBO(**options)
