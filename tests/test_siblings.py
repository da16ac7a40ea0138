"""Given the same parameters and the same particles, both packages give the same numbers."""

import itertools

import numpy as np
import pytest
from zoo import PROGRAMS

pytest.importorskip("torch")
pytest.importorskip("jax")

import numpyro_shim
import pyro_shim

TOLERANCE = {"float32": 1e-6, "float64": 1e-10}
EVERYTHING = {"per_datum": True, "importance_weighted": True, "closed_form_entropy": True}
LOSSES = {
    "daps": ("infer.daps", "DAPS_ELBO", {"target_rate": 1.0, **EVERYTHING}),
    "reinforce": ("infer.reinforce", "Reinforce_ELBO", {"beta": 0.3}),
    "exact": ("infer.exact", "Exact_ELBO", None),
}


def run(package, shim, program, loss, dtype):
    """Loss, gradients and info of a second step, so that the first has left its state."""
    shim.module = lambda path: __import__(f"{package}.{path}", fromlist=["_"])
    module, name, options = LOSSES[loss]
    elbo_class, case = getattr(shim.module(module), name), shim.Case(program, dtype=dtype)
    if options is None:
        elbo = elbo_class()
    else:
        elbo = case.forced(elbo_class, num_particles=3, **options)
        shape = (3, 2) if program.plates else (3,)
        elbo.draws = np.arange(np.prod(shape)).reshape(shape)[::-1] ** 2 % program.states
    case.run(elbo)
    loss, grads = case.run(elbo)
    return {"loss": loss, **grads}, {k: float(v) for k, v in elbo.info._asdict().items()}


def cases():
    """All in float64, which tells the most; by default only the deepest program in float32 too."""
    for program, loss, dtype in itertools.product(PROGRAMS, LOSSES, TOLERANCE):
        again = dtype == "float32" and program.name != "nested"
        marks = [pytest.mark.slow] if again else []
        yield pytest.param(program, loss, dtype, marks=marks, id=f"{program.name}-{loss}-{dtype}")


@pytest.mark.parametrize(("program", "loss", "dtype"), list(cases()))
def test_same_parameters_and_particles_give_the_same(program, loss, dtype):
    theirs, their_info = run("pyro_dvae", pyro_shim, program, loss, dtype)
    ours, our_info = run("numpyro_dvae", numpyro_shim, program, loss, dtype)
    tolerance = TOLERANCE[dtype]
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # A gradient is a sum of terms as large as the loss, and may cancel.
        scale = max(1.0, abs(theirs["loss"]), np.abs(expected).max())
        np.testing.assert_allclose(ours[name], expected, atol=scale * tolerance, err_msg=name)
    for name, expected in their_info.items():
        np.testing.assert_allclose(
            our_info[name], expected, rtol=10 * tolerance, atol=10 * tolerance, err_msg=name
        )
