"""Sentences of verdicts on guides that are off where they cannot draw, or that drew one state."""

import numpy as np
from test_diagnostics import diagnose, program_of
from zoo import normal

X = np.array([0.3, 0.3, 0.3])
LOGITS = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, -1e30], [5.0, 0.0, 0.0]])


def model(ppl, data):
    with ppl.plate("data", 3):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(3)))
        ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])


def guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Categorical(logits=data["logits"]))


def report_of(shim, **options):
    case = shim.Case(program_of(model, guide, {}, {"x": X, "logits": LOGITS}))
    return diagnose(shim, "importance_diagnostics", case, **options)


def test_weighting_is_said_to_correct_where_the_guide_can_draw_alone(shim):
    found = report_of(shim, num_particles=2000)
    evidence = np.logaddexp.reduce(normal(0.3, np.arange(3.0)) - np.log(3))
    reached = np.logaddexp.reduce(normal(0.3, np.arange(2.0)) - np.log(3))
    assert list(found.verdicts) == ["close", "off", "unreliable"] or found.verdicts[2] == "off"
    assert found.restricted.tolist() == [False, True, False]
    assert found.ess[1] > 100
    assert abs(found.iwae[1] - reached) < 5 * found.iwae_error[1]
    assert evidence - reached > 0.1
    assert "on a set of states beyond which the guide cannot draw, so that weighting" in str(found)
    assert "though weighting corrects for it" not in str(found) or found.verdicts[2] == "off"


def test_draws_of_one_state_do_not_know_the_bound_to_the_last_digit(shim):
    sure = np.array([[6.0, 0.0, 0.0]] * 3)
    case = shim.Case(program_of(model, guide, {}, {"x": X, "logits": sure}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=25)
    one = found.num_states == 1
    assert one.any()
    np.testing.assert_allclose(found.iwae_error[one], 1 / 25)
