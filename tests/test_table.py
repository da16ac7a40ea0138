"""Every loss under subsampling, beta, masks and weights of data, all at once: value and gradient.

Estimators are summed over all draws, or compared draw by draw with the formula that they have. All
cells but one differ in their data alone, so that a loss is compiled twice.
"""

import itertools

import numpy as np
import pytest
from test_disarm import paired
from zoo import gradient
from zoo_binary import all_draws, assert_same, mean_gradient, sigmoid
from zoo_table import (
    CELLS,
    COMMITMENT,
    PARAMS,
    ROWS,
    VQ_PARAMS,
    guessing_guide,
    log_draw,
    minus_bound,
    minus_elbo,
    minus_elbo_at,
    minus_truncated,
    minus_vq,
    policy,
    policy_temperature,
    row_elbo,
    table_program,
    table_sets,
    vq_program,
    wake,
    weight_of,
)

BETA = 0.3
cells = pytest.mark.parametrize("cell", CELLS)


def forced(shim, case, path, num_particles=2, **options):
    module, name = path.split(".")
    elbo_class = getattr(shim.module(f"infer.{module}"), name)
    return case.forced(elbo_class, num_particles=num_particles, beta=BETA, **options)


def assert_beta_elbo(found, cell):
    """Value: minus the ELBO; gradient: of minus the beta-ELBO."""
    loss, grads = found
    np.testing.assert_allclose(loss, minus_elbo(PARAMS, cell), rtol=1e-10)
    assert_same(grads, gradient(lambda p: minus_elbo(p, cell, BETA), PARAMS))


@cells
def test_enumeration(shim, cell):
    elbo = shim.module("infer").Exact_ELBO(beta=BETA)
    assert_beta_elbo(shim.Case(table_program(cell)).run(elbo), cell)


@cells
@pytest.mark.parametrize("closed_form_entropy", [True, False])
def test_leave_one_out(shim, cell, closed_form_entropy):
    case = shim.Case(table_program(cell))
    options = {"closed_form_entropy": closed_form_entropy}
    elbo = forced(shim, case, "reinforce.Reinforce_ELBO", **options)
    assert_beta_elbo(mean_gradient(case, elbo, all_draws(case.program, 2, 2)), cell)


@pytest.mark.thrifty
@cells
@pytest.mark.parametrize("baseline", ["no_baseline", "moving_average"])
def test_one_particle_with_other_baselines(shim, cell, baseline):
    case = shim.Case(table_program(cell))
    chosen = getattr(shim.module("ops.baselines"), baseline)()
    elbo = forced(shim, case, "reinforce.Reinforce_ELBO", 1, baseline=chosen)
    elbo.draws = np.array([[1, 0]])
    case.run(elbo)  # leaves a memory, the same for each of the draws
    past = elbo.state

    def draws():
        for each in all_draws(case.program, 1, 2):
            elbo.state = past
            yield each

    assert_beta_elbo(mean_gradient(case, elbo, draws()), cell)


@cells
def test_a_learned_baseline(shim, cell):
    """Its gradient is that of half the squared distance to the scores, weighed as the data are."""
    params = PARAMS | {"guess": np.array(0.7)}
    case = shim.Case(table_program(cell, guessing_guide, params))
    learned = shim.module("ops.baselines").learned()
    elbo = forced(shim, case, "reinforce.Reinforce_ELBO", 1, baseline=learned)
    loss, grads = mean_gradient(case, elbo, all_draws(case.program, 1, 2))
    slope = grads.pop("guess")
    assert_beta_elbo((loss, grads), cell)
    gaps = [weight_of(cell, n) * (0.7 - row_elbo(PARAMS, cell, n, BETA)) for n in ROWS]
    np.testing.assert_allclose(slope, sum(gaps), rtol=1e-10)


@cells
def test_vimco(shim, cell):
    case = shim.Case(table_program(cell))
    elbo = forced(shim, case, "vimco.VIMCO_ELBO")
    loss, grads = mean_gradient(case, elbo, all_draws(case.program, 2, 2))
    np.testing.assert_allclose(loss, minus_elbo(PARAMS, cell), rtol=1e-10)
    assert_same(grads, gradient(lambda p: minus_bound(p, cell, BETA, 2), PARAMS))


@cells
def test_disarm(shim, cell):
    case = shim.Case(table_program(cell))
    elbo = forced(shim, case, "disarm.DisARM_ELBO")
    assert_beta_elbo(mean_gradient(case, elbo, antithetic(cell)), cell)


def antithetic(cell):
    """All pairs of draws of both rows, and their probability."""
    encoder, x = PARAMS["encoder"], CELLS[cell]["x"]
    probs = [sigmoid(encoder[0] + encoder[1] * x[n]) for n in ROWS]
    for states in itertools.product((0, 1), repeat=4):
        draws = np.array(states).reshape(2, 2)
        pairs = zip(probs, draws.T, strict=True)
        if probability := np.prod([paired(p, *pair) for p, pair in pairs]):
            yield draws, probability


@cells
def test_wake_sleep(shim, cell):
    case = shim.Case(table_program(cell))
    elbo = forced(shim, case, "wake_sleep.WakeSleep_ELBO")
    for draws, _ in all_draws(case.program, 2, 2):
        elbo.draws = draws
        loss, grads = case.run(elbo)
        np.testing.assert_allclose(loss, minus_elbo_at(draws, cell), rtol=1e-10)
        assert_same(grads, gradient(lambda p, draws=draws: wake(p, cell, draws, BETA), PARAMS))


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "annealed"])
def test_sleep(shim, cell):
    """The model dreams of z = 1 alone, and the guide sees the real data beside it."""
    case = shim.Case(table_program(cell), PARAMS | {"prior": np.array(50.0)})
    options = {"sleep": 1.0, "replace_data": lambda made, args, kwargs: (args, kwargs)}
    elbo = shim.module("infer").WakeSleep_ELBO(2, beta=BETA, **options)
    grads = case.run(elbo)[1]

    def asleep(p):
        rows = [n for n in ROWS if CELLS[cell]["here"][n]]
        return -sum(weight_of(cell, n) * log_draw(p, cell, n, 1) for n in rows)

    np.testing.assert_allclose(grads["encoder"], gradient(asleep, PARAMS)["encoder"], rtol=1e-10)


@cells
def test_daps(shim, cell):
    case = shim.Case(table_program(cell))
    elbo = forced(shim, case, "daps.DAPS_ELBO", target_ess=0.7)
    for draws, _ in all_draws(case.program, 2, 2):
        elbo.draws = draws
        loss, grads = case.run(elbo)
        np.testing.assert_allclose(loss, minus_elbo_at(draws, cell), rtol=1e-10)
        arguments = cell, draws, BETA, policy_temperature(cell, draws, BETA, 0.7)
        expected = gradient(lambda p, arguments=arguments: policy(p, *arguments), PARAMS)
        assert_same(grads, expected, 1e-5, 1e-7)


@cells
def test_all_states_as_a_truncated_posterior(shim, cell):
    program = table_sets(cell)
    elbo = shim.module("infer.truncated").Truncated_ELBO(sweeps=0, beta=BETA)
    loss, grads = shim.Sets(program, 2).step(elbo)
    np.testing.assert_allclose(loss, minus_truncated(PARAMS, cell, BETA)[1], rtol=1e-10)
    expected = gradient(lambda p: minus_truncated(p, cell, BETA)[0], program.params)
    assert_same(grads, expected)


@pytest.mark.parametrize("cell", ["subsample", "padding", "weights"])
def test_quantised_vectors(shim, cell):
    elbo = shim.module("infer").VQ_ELBO(commitment=COMMITMENT, beta=BETA)
    loss, grads = shim.Case(vq_program(cell)).run(elbo)
    np.testing.assert_allclose(loss, minus_vq(VQ_PARAMS, cell, BETA)[1], rtol=1e-10)
    assert_same(grads, gradient(lambda p: minus_vq(p, cell, BETA)[0], VQ_PARAMS))
