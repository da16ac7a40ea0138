"""Models that the frameworks' own test suites try: each loss has the exact value, or says why not.

The models are in `host_zoo` and the files that add to it; the exact loss is a sum over all that the
guide can draw. Of unbiased losses the gradients are compared, too.
"""

import functools
import importlib

import host_zoo_weights  # noqa: F401  (adds its models, and those of `host_zoo_plates`)
import numpy as np
import pytest
from host_zoo import HOSTS, Host

K = 8
LOSSES = {  # how often each is drawn, and whether its gradient is that of the ELBO
    "Exact_ELBO": ({}, 60, True),
    "Reinforce_ELBO": ({"num_particles": K}, 60, True),
    "DisARM_ELBO": ({"num_particles": K}, 60, True),
    "DAPS_ELBO": ({"num_particles": K}, 30, False),
    "VIMCO_ELBO": ({"num_particles": K}, 30, False),
    "WakeSleep_ELBO": ({"num_particles": K}, 30, False),
}
NAMES = [f"{host.name}-{host.guide.__name__}" for host in HOSTS]


@pytest.fixture(params=["pyro", "numpyro"])
def package(request):
    library = pytest.importorskip({"pyro": "torch", "numpyro": "jax"}[request.param])
    if request.param == "pyro":
        library.set_default_dtype(library.float64)
    yield importlib.import_module(f"host_{request.param}")
    if request.param == "pyro":
        library.set_default_dtype(library.float32)


@functools.cache
def exact(package, number):
    return package.exact(HOSTS[number])


def assert_near(draws, expected, what):
    """The mean of draws is within five standard errors; a loss that draws nothing is exact."""
    spread = draws.std(0, ddof=1)
    error = 5 * spread / len(draws) ** 0.5 + 1e-8 * (1 + np.abs(expected))
    np.testing.assert_array_less(np.abs(draws.mean(0) - expected), error, err_msg=what)


def check(package, number, loss, expected):
    host, (options, times, is_unbiased) = HOSTS[number], LOSSES[loss]
    elbo = getattr(package.infer, loss)(**options)
    if loss in host.refusals:
        with pytest.raises(ValueError, match=host.refusals[loss]):
            package.draws(host, elbo, 2)
        return
    values, grads = package.draws(host, elbo, 2)
    if values[0] != values[1] or loss != "Exact_ELBO":
        values, grads = package.draws(host, elbo, times)
    value, slopes = expected
    assert_near(values, value, "value")
    for name in slopes if is_unbiased else ():
        assert_near(grads[name], slopes[name], f"gradient of {name}")


def in_turn(number):
    """All of Pyro's; of NumPyro's, which compiles each, every twelfth by default."""
    return [("pyro", ()), ("numpyro", () if number % 12 == 4 else pytest.mark.slow)]


CASES = [
    pytest.param(package, number, marks=marks, id=f"{package}-{NAMES[number]}")
    for number in range(len(HOSTS))
    for package, marks in in_turn(number)
]


@pytest.mark.parametrize(("package", "number"), CASES, indirect=["package"])
def test_all_states_are_summed(package, number):
    check(package, number, "Exact_ELBO", exact(package, number))


@pytest.mark.slow
@pytest.mark.parametrize("loss", list(LOSSES)[1:])
@pytest.mark.parametrize("number", range(len(HOSTS)), ids=NAMES)
def test_draws_have_the_exact_mean(package, number, loss):
    check(package, number, loss, exact(package, number))


def test_another_model_is_noticed(package):
    """Parameters a little off make another value and gradient."""
    number = NAMES.index("plated_coins-plated_coins_guide")
    value, slopes = exact(package, number)
    moved = {name: slope + 0.3 for name, slope in slopes.items()}
    with pytest.raises(AssertionError, match="gradient"):
        check(package, number, "Exact_ELBO", (value, moved))
    with pytest.raises(AssertionError, match="value"):
        check(package, number, "Exact_ELBO", (value + 1e-6, slopes))


COPIES = 200_000


def many(ppl):
    copies, data = ppl.plate("copies", COPIES, dim=-2), ppl.plate("data", 2, dim=-1)
    ppl.sample("a", ppl.dist.Normal(0.0, 1.0))
    with copies, data:
        z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
    ppl.sample("b", ppl.dist.Normal(2.0, 3.0))
    with copies, data:
        ppl.sample("x", ppl.dist.Normal(z, 1.0), obs=ppl.array([-0.5, 2.0]))
    ppl.sample("c", ppl.dist.Normal(4.0, 5.0))


def many_guide(ppl):
    ppl.sample("c", ppl.score_normal(4.0, 5.0))
    with ppl.plate("copies", COPIES, dim=-2), ppl.plate("data", 2, dim=-1):
        ppl.sample("z", ppl.score_normal(ppl.param("loc"), ppl.param("scale")))
    ppl.sample("b", ppl.score_normal(2.0, 3.0))
    ppl.sample("a", ppl.score_normal(0.0, 1.0))


def test_global_draws_beside_many_local_ones_leave_their_gradients_alone(package):
    """As in Pyro's test: one weight for all draws would have hundreds of times the noise."""
    params = {"loc": np.zeros(2), "scale": np.ones(1)}
    host = Host("many", many, many_guide, params, {}, 2)
    _, grads = package.draws(host, package.infer.Reinforce_ELBO(2), 1)
    each = {name: np.round(grads[name][0] / COPIES, 3) for name in ("loc", "scale")}
    print(f"{package.__name__}: {each}")
    np.testing.assert_allclose(grads["loc"][0] / COPIES, [0.5, -2.0], atol=0.06)
    np.testing.assert_allclose(grads["scale"][0] / COPIES, [2.0], atol=0.06)
