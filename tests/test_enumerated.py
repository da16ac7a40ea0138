"""Marked sites are summed out within each datum, whatever the loss; brute force says how much."""

import functools
import importlib

import numpy as np
import pytest
from enumerated_zoo import BY_HAND, PROGRAMS, exact
from host_zoo import Host
from test_host_models import assert_near

NAMES = [host.name for host in PROGRAMS]


@pytest.fixture(params=["pyro", "numpyro"])
def package(request):
    library = pytest.importorskip({"pyro": "torch", "numpyro": "jax"}[request.param])
    torch = pytest.importorskip("torch")  # of the brute force
    if request.param == "numpyro":
        library = pytest.importorskip("funsor")
    assert library is not None
    torch.set_default_dtype(torch.float64)
    yield importlib.import_module(f"host_{request.param}")
    torch.set_default_dtype(torch.float32)


@functools.cache
def known(name):
    return exact(PROGRAMS[NAMES.index(name)])


def check(package, name, elbo, times=1, *, gradients=True):
    """Within five standard errors; exactly, if nothing is drawn."""
    values, grads = package.draws(PROGRAMS[NAMES.index(name)], elbo, max(times, 2))
    value, slopes = known(name)
    if times == 1:
        values, grads = values[:1].repeat(2), {n: g[:1].repeat(2, 0) for n, g in grads.items()}
    assert_near(values, value, "value")
    for parameter in slopes if gradients else ():
        assert_near(grads[parameter], slopes[parameter], f"gradient of {parameter}")


IN_JAX = ("mixture", "nested")  # which compiles each for a while
CASES = [
    pytest.param(
        package,
        name,
        marks=pytest.mark.slow if package == "numpyro" and name not in IN_JAX else (),
        id=f"{package}-{name}",
    )
    for name in NAMES
    for package in ("pyro", "numpyro")
]


@pytest.mark.parametrize(("package", "name"), CASES, indirect=["package"])
def test_all_else_summed_is_brute_force(package, name):
    check(package, name, package.infer.Exact_ELBO())


@pytest.fixture
def pyro_alone():
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    yield importlib.import_module("host_pyro")
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_one_state_at_a_time(pyro_alone, name):
    check(pyro_alone, name, pyro_alone.infer.Exact_ELBO(vectorize_particles=False))


LOSSES = {
    "Reinforce_ELBO": {"num_particles": 4},
    "DAPS_ELBO": {"num_particles": 4},
    "VIMCO_ELBO": {"num_particles": 4},
    "DisARM_ELBO": {"num_particles": 4},
    "Exact_ELBO": {},
}
GIVEN = [
    pytest.param(
        package,
        loss,
        pair,
        marks=pytest.mark.slow if package == "numpyro" and loss != "DAPS_ELBO" else (),
        id=f"{package}-{loss}-{pair}",
    )
    for pair in BY_HAND
    for loss in LOSSES
    for package in ("pyro", "numpyro")
]


@pytest.mark.parametrize(("package", "loss", "pair"), GIVEN, indirect=["package"])
def test_given_the_draws_each_loss_is_that_of_a_sum_by_hand(package, loss, pair):
    """Value and gradient, with a weight of the rate: what is of the rate is told from the rest."""
    marked, by_hand, guide, params = BY_HAND[pair]
    arrays = {name: np.asarray(value) for name, value in params.items()}
    found = []
    for model in (marked, by_hand):
        elbo = getattr(package.infer, loss)(**LOSSES[loss], beta=0.6)
        found.append(package.draws(Host(pair, model, guide, arrays, {}, 9), elbo, 2))
    (values, grads), (expected, slopes) = found
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    for name, slope in slopes.items():
        np.testing.assert_allclose(grads[name], slope, rtol=1e-8, atol=1e-10, err_msg=name)


MEANS = [
    pytest.param("pyro", "mixture", "Reinforce_ELBO", id="pyro-mixture"),
    pytest.param("pyro", "nested", "DisARM_ELBO", id="pyro-nested"),
    *(
        pytest.param(package, name, loss, marks=pytest.mark.slow, id=f"{package}-{name}-{loss}")
        for package in ("pyro", "numpyro")
        for name in ("chain", "nested", "masked")
        for loss in ("Reinforce_ELBO", "DisARM_ELBO", "DAPS_ELBO", "VIMCO_ELBO", "WakeSleep_ELBO")
    ),
]


@pytest.mark.parametrize(("package", "name", "loss"), MEANS, indirect=["package"])
def test_draws_have_the_mean_of_brute_force(package, name, loss):
    elbo = getattr(package.infer, loss)(num_particles=8)
    check(package, name, elbo, 60, gradients=loss in ("Reinforce_ELBO", "DisARM_ELBO"))


def test_another_value_or_gradient_is_noticed(pyro_alone, monkeypatch):
    value, slopes = known("masked")
    moved = {name: slope + 1e-6 for name, slope in slopes.items()}
    for name, false in (("value", (value + 1e-6, slopes)), ("gradient", (value, moved))):
        monkeypatch.setitem(check.__globals__, "known", lambda _, false=false: false)
        with pytest.raises(AssertionError, match=name):
            check(pyro_alone, "masked", pyro_alone.infer.Exact_ELBO())
