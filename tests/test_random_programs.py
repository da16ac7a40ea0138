"""Random programs: every loss has the value and gradient of a sum over all states, or refuses.

`python tests/random_programs.py --backend pyro --count 200` tries more, and counts the refusals.
"""

import importlib
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checks import LOSSES, Checker, make
from random_programs import EXTRA, try_program
from random_specs import Link, Part, Plate, Site, Spec, make_data
from random_strategy import spec_of, specs

BACKENDS = ["pyro"]
ALL = (*LOSSES, *EXTRA)
AT_ONCE = 3  # losses of each program of the default suite, in turn
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", params=BACKENDS)
def package(request):
    pytest.importorskip({"pyro": "torch", "numpyro": "jax"}[request.param])
    return importlib.import_module(f"random_{request.param}")


def assert_right(tally):
    assert not tally.failed, "\n".join(
        f"{name}, {label}: {type(error).__name__}: {error}" for name, label, error in tally.failed
    )


def in_turn(seed):
    return [ALL[(seed + place) % len(ALL)] for place in range(0, len(ALL), len(ALL) // AT_ONCE)]


def test_losses_agree_with_the_sum_over_states(package):
    for seed in range(40):
        calls = spec_of(seed, package.takes_python)
        assert_right(try_program(package, calls, seed, in_turn(seed)))


@pytest.mark.slow
def test_a_thousand_programs(package):
    @settings(max_examples=1000, **SETTINGS)
    @given(specs(package.takes_python), st.integers(0, 10**6))
    def run(calls, seed):
        assert_right(try_program(package, calls, seed))

    run()


# ------------------------------------------------------------------------- the checks notice


NESTED = Spec(
    plates=(Plate("data", -2, 2, 3), Plate("words", -1)),
    sites=(
        Site(
            "z0",
            plates=("data", "words"),
            model=Part(scale=3.0, mask="handler"),
            guide=Part(mask="handler"),
        ),
        Site("y0", "normal", ("data",), model=Part((Link("z0"),))),
    ),
    order=("z0",),
)
BREAKS = {
    "scale": lambda particles: particles._replace(scale=2 * particles.scale),
    "prior": lambda particles: particles._replace(log_prior=1.01 * particles.log_prior),
    "draws": lambda particles: particles._replace(log_draw=0.99 * particles.log_draw),
    "likelihood": lambda particles: particles._replace(log_likelihood=particles.log_prior),
}


def broken(package, loss, change):
    kind = getattr(package.infer, loss)

    class Broken(kind):
        def _estimate(self, particles, state):
            return super()._estimate(change(particles), state)

    return Broken


@pytest.mark.parametrize("change", BREAKS)
@pytest.mark.parametrize("loss", ["Exact_ELBO", "Reinforce_ELBO", "VIMCO_ELBO"])
def test_a_broken_loss_is_noticed(package, loss, change):
    if package.name == "numpyro" and loss == "VIMCO_ELBO":
        return  # the same in both, and JAX compiles
    checker = Checker(package.Program(NESTED))
    checker.check(loss, make(package, loss, 0.3), 0.3)
    options = {} if loss == "Exact_ELBO" else {"num_particles": 3}
    with pytest.raises(AssertionError, match=r"value|gradient"):
        checker.check(loss, broken(package, loss, BREAKS[change])(beta=0.3, **options), 0.3)


def test_data_that_are_not_independent_are_noticed():
    """The words of a document are observed together: no word has credit of its own."""
    checker = Checker(SimpleNamespace(spec=NESTED, arrays=make_data(NESTED)))
    checker.check_mean(("data",), 0.3)
    with pytest.raises(AssertionError, match="mean over"):
        checker.check_mean(("data", "words"), 0.3)


def test_draws_of_other_frequencies_are_noticed(package):
    program = package.Program(NESTED)
    checker, elbo = Checker(program), package.infer.Reinforce_ELBO(200)
    checker.check_frequencies(elbo)
    program.move("guide.z0.bias", 1.0)
    with pytest.raises(AssertionError):
        checker.check_frequencies(elbo)


# ---------------------------------------------------------------------- what they have found


FOUND = {
    "masked draws that Python chooses": Spec(
        plates=(Plate("left", -1),),
        sites=(
            Site("z0", "binomial", ("left",), model=Part(), guide=Part()),
            Site(
                "z1", "normal", model=Part(mask="all"), guide=Part((Link("z0", "if"),), mask="all")
            ),
            Site("y0", "normal", model=Part((Link("z1"),))),
        ),
        order=("z0", "z1"),
    ),
    "no discrete sites": Spec(
        plates=(Plate("data", -1),),
        sites=(Site("z0", "normal", ("data",), guide=Part()), Site("y0", "normal", ("data",))),
        order=("z0",),
    ),
    "a mask of one word": Spec(
        plates=(Plate("data", -1),),
        sites=(
            Site("z0", plates=("data",), model=Part(mask="all"), guide=Part()),
            Site("y0", "normal", ("data",)),
        ),
        order=("z0",),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_programs_that_were_wrong_once(package, name):
    spec = FOUND[name]
    if spec.asks_python and not package.takes_python:
        pytest.skip("a traced program cannot ask")
    assert_right(try_program(package, (spec, spec), 0))
