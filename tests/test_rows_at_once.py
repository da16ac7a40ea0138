"""Reports of data that go through the programs in parts are those of all at once."""

import inspect

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of

CODES = np.array([[0, 1], [1, 1], [0, 1], [1, 1], [2, 1]])

SETTINGS = {
    "active_latents": {"num_draws": 2},
    "code_usage": {"num_draws": 2},
    "discrete_posterior": {"num_draws": 25},
    "evaluate": {"num_particles": 2},
    "importance_diagnostics": {"num_particles": 25},
    "latent_rates": {"num_draws": 2},
    "posterior_gap": {},
    "rate_distortion": {"num_draws": 2},
    "to_arviz": {"num_draws": 2},
}


def sure_model(ppl, data):
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(6).reshape(2, 3)).to_event(1))
        ppl.sample("x", ppl.dist.Normal(z[..., 0] + 0.0, 1.0), obs=data["x"][:, 0, 1])


def sure_guide(ppl, data):
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Categorical(logits=60.0 * data["x"]).to_event(1))


SURE = program_of(sure_model, sure_guide, {}, {"x": np.eye(3)[CODES]})


def shown(report):
    """What a report says; of ArviZ data, the numbers that are no new draws."""
    if not hasattr(report, "log_likelihood"):
        return str(report)
    return [report[name].to_dict()["data_vars"] for name in ("posterior", "log_likelihood")]


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_of_the_rows_say_what_all_say(thrifty_shim, name):
    """Codes that are known for sure, so that draws are the same; the last part has one row."""
    case = thrifty_shim.Case(SURE)
    whole = diagnose(thrifty_shim, name, case, **SETTINGS[name])
    parts = diagnose(thrifty_shim, name, case, **SETTINGS[name], batch_size=2)
    assert shown(parts) == shown(whole)


def test_all_that_take_parts_are_here(backend):
    room = backend.module("diagnostics")
    functions = {n: f for n in room.__all__ if inspect.isfunction(f := getattr(room, n))}
    taking = {n for n, f in functions.items() if "batch_size" in inspect.signature(f).parameters}
    assert taking == {*SETTINGS, "compare_restarts"}  # which has more than one result
