"""Estimators that claim to be unbiased are, by summing over every draw of K particles.

The exact gradient comes from NumPy and complex steps (`zoo`); the mean gradient from running the
loss on each possible set of draws and weighing it by its probability. Nothing is random.
"""

import itertools

import numpy as np
import pytest
from zoo import PROGRAMS, exact_gradient, sample_codes

BY_NAME = {program.name: program for program in PROGRAMS}


def mean_gradient(case, elbo_class, num_particles, **options):
    """Sum over all draws of their probability times the gradient, and the same of the loss."""
    elbo = case.forced(elbo_class, num_particles=num_particles, **options)
    cells = 2 if case.program.plates else 1  # each program has two data
    past = past_state(case, elbo)
    mean_loss, mean, mass = 0.0, None, 0.0
    for states in itertools.product(range(case.program.states), repeat=num_particles * cells):
        shape = (num_particles, 2) if case.program.plates else (num_particles,)
        elbo.draws = np.array(states).reshape(shape)
        elbo.state = past
        loss, grads = case.run(elbo)
        probability = np.exp(elbo.log_draw)
        mass, mean_loss = mass + probability, mean_loss + probability * loss
        terms = {name: probability * grad for name, grad in grads.items()}
        mean = terms if mean is None else {name: mean[name] + terms[name] for name in terms}
    np.testing.assert_allclose(mass, 1.0, rtol=1e-12)
    return mean_loss, mean


def past_state(case, elbo):
    """The state that two earlier batches left, so that a moving average has something to say."""
    for state in (0, case.program.states - 1):
        elbo.draws = np.full((elbo.num_particles, *[2] * bool(case.program.plates)), state)
        case.run(elbo)
    return elbo.state


def assert_exact(found, program):
    for name, exact in exact_gradient(program).items():
        np.testing.assert_allclose(found[name], exact, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", BY_NAME)
def test_enumeration_gives_the_exact_loss_and_gradient(shim, name):
    program = BY_NAME[name]
    loss, grads = shim.Case(program).run(shim.module("infer.exact").Exact_ELBO())
    np.testing.assert_allclose(loss, program.loss(program.params), rtol=1e-12)
    assert_exact(grads, program)


@pytest.mark.thrifty
@pytest.mark.parametrize("closed_form_entropy", [False, True])
@pytest.mark.parametrize("name", BY_NAME)
def test_leave_one_out_is_unbiased(shim, name, closed_form_entropy):
    program, module = BY_NAME[name], shim.module("infer.reinforce")
    loss, grads = mean_gradient(
        shim.Case(program), module.Reinforce_ELBO, 2, closed_form_entropy=closed_form_entropy
    )
    np.testing.assert_allclose(loss, program.loss(program.params), rtol=1e-12)
    assert_exact(grads, program)


@pytest.mark.thrifty
@pytest.mark.parametrize("baseline", ["no_baseline", "moving_average"])
@pytest.mark.parametrize("name", BY_NAME)
def test_other_baselines_are_unbiased(shim, name, baseline):
    program, module = BY_NAME[name], shim.module("infer.reinforce")
    chosen = getattr(shim.module("ops.baselines"), baseline)()
    _, grads = mean_gradient(shim.Case(program), module.Reinforce_ELBO, 1, baseline=chosen)
    assert_exact(grads, program)


def test_a_learned_baseline_is_unbiased_and_follows_the_scores(shim):
    program, module = BY_NAME["vae"], shim.module("infer.reinforce")
    params = program.params | {"guess": np.array([0.4, -1.1])}

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.deterministic("baseline", ppl.param("guess", data))
            sample_codes(ppl, data)

    learned = shim.module("ops.baselines").learned()
    case = shim.Case(program, params, guide=guide)
    _, grads = mean_gradient(case, module.Reinforce_ELBO, 1, baseline=learned)
    slope = grads.pop("guess")
    assert_exact(grads, program)
    gap = params["guess"].sum() + program.loss(program.params)  # both data: sum of b - ELBO
    np.testing.assert_allclose(slope.sum(), gap, rtol=1e-10)


def test_a_prediction_under_a_plate_of_its_own_is_refused(shim):
    """Of as many cells as there are particles, left of all plates that sites are under."""
    program = BY_NAME["global"]
    params = program.params | {"guess": np.array([[0.4], [-1.1]])}

    def guide(ppl, data):
        with ppl.plate("others", 2, dim=-2):
            ppl.deterministic("baseline", ppl.param("guess", data))
        program.guide(ppl, data)

    learned = shim.module("ops.baselines").learned()
    case = shim.Case(program, params, guide=guide)
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(2, baseline=learned)
    with pytest.raises(ValueError, match=r"'baseline' is under \['others'\]"):
        case.run(elbo)
    case.run(shim.module("infer.reinforce").Reinforce_ELBO(2))  # takes none


def test_three_particles_too(shim):
    program, module = BY_NAME["global"], shim.module("infer.reinforce")
    _, grads = mean_gradient(shim.Case(program), module.Reinforce_ELBO, 3)
    assert_exact(grads, program)


def test_the_mean_of_all_particles_is_a_biased_baseline(shim):
    """Negative control: it shrinks the score function's part by (K - 1) / K, and is caught."""
    program, module = BY_NAME["vae"], shim.module("infer.reinforce")
    baselines = shim.module("ops.baselines")
    mean = baselines.Baseline(
        init=lambda: (),
        apply=lambda scores, state, prediction: (scores.mean(0), state),
        min_particles=1,
        predicts=False,
    )
    _, grads = mean_gradient(
        shim.Case(program), module.Reinforce_ELBO, 2, baseline=mean, closed_form_entropy=False
    )
    exact = exact_gradient(program)
    np.testing.assert_allclose(grads["weight"], exact["weight"], rtol=1e-10)  # not its concern
    np.testing.assert_allclose(grads["encoder"], exact["encoder"] / 2, rtol=1e-10)
    with pytest.raises(AssertionError, match="encoder"):
        assert_exact(grads, program)


def test_a_learned_baseline_ends_at_the_mean_score(shim):
    """NVIL: the guide's site "baseline" is fitted to the scores while the guide learns."""
    program = BY_NAME["vae"]
    params = program.params | {"guess": np.zeros(2)}

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.deterministic("baseline", ppl.param("guess", data))
            sample_codes(ppl, data)

    learned = shim.module("ops.baselines").learned()
    case = shim.Case(program, params, guide=guide)
    elbo = shim.module("infer.reinforce").Reinforce_ELBO(8, baseline=learned)
    losses = []
    for seed in range(150):
        loss, grads = case.run(elbo, seed)
        case.move(grads, 0.1)
        losses.append(loss)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.5
    guess = case.params["guess"].sum().item()  # of both data
    np.testing.assert_allclose(guess, -np.mean(losses[-20:]), atol=0.5)
