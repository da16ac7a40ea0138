"""Random programs: every loss has the value and gradient of a sum over all states, or refuses.

`python tests/random_programs.py --backend pyro --count 200` tries more, and counts the refusals.
"""

import importlib
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checks import Checker, make
from random_programs import ALL, Tally, in_turn, try_program
from random_specs import Link, Part, Plate, Site, Spec, make_data
from random_strategy import spec_of, specs

BACKENDS = ["pyro", "numpyro"]
AT_ONCE = 3  # losses of a program, in turn
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", params=BACKENDS)
def package(request):
    pytest.importorskip({"pyro": "torch", "numpyro": "jax"}[request.param])
    return importlib.import_module(f"random_{request.param}")


def assert_right(tally):
    assert not tally.failed, "\n".join(
        f"{name}, {label}: {type(error).__name__}: {error}" for name, label, error in tally.failed
    )


def test_forty_programs_agree_with_the_sum_over_states(package, capsys):
    """Three of the losses each, so that each loss meets seven programs, most of which it takes."""
    total = Tally()
    for seed in range(40):
        calls = spec_of(seed, package.takes_python, rare=False, scans=package.takes_scans)
        order = (0, 1) if package.name == "pyro" else (seed // len(ALL) % 2,)
        total.add(try_program(package, calls, seed, in_turn(seed, AT_ONCE), order))
    with capsys.disabled():
        print(f"\n{package.name}, 40 programs: {total.report()}")
    assert_right(total)
    least = {"pairs of draws": 1 * package.takes_python, "Truncated_ELBO": 2}
    least["Reinforce_ELBO(learned)"] = 2  # for whom half of the guides have a prediction
    scarce = {n: total.agreed[n] for n in ALL if total.agreed[n] < least.get(n, 4)}
    assert not scarce


@pytest.mark.parametrize(
    ("seed", "name"),
    [pytest.param(700403, "credit", marks=pytest.mark.slow), (700632, "Exact_ELBO")],
)
def test_a_plate_that_only_some_of_all_states_have(seed, name):
    """Deeper than those of the draws by which the structure was found."""
    pytest.importorskip("pyro")
    package = importlib.import_module("random_pyro")
    calls = spec_of(seed, package.takes_python, wide=False)
    tally = try_program(package, calls, seed, [name], (0, 1))
    assert_right(tally)
    assert tally.agreed[name] == 2


def test_a_dream_of_steps_with_a_factor():
    """Whose value is drawn anew, with dims that the factor has not."""
    pytest.importorskip("jax")
    package = importlib.import_module("random_numpyro")
    calls = spec_of(20849, package.takes_python, scans=True)
    tally = try_program(package, calls, 20849, ["WakeSleep_ELBO(sleep)"], (0,))
    assert_right(tally)
    assert tally.agreed["WakeSleep_ELBO(sleep)"] == 1


@pytest.mark.slow
def test_a_thousand_programs(package):
    @settings(max_examples=1000, **SETTINGS)
    @given(specs(package.takes_python, scans=package.takes_scans), st.integers(0, 10**6))
    def run(calls, seed):
        order = (0, 1) if package.name == "pyro" else (seed % 2,)
        assert_right(try_program(package, calls, seed, in_turn(seed, AT_ONCE), order))

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


def with_weaker_draws(particles):
    """Draws whose score is too small, also where each is credited with what it influences."""
    credit = {
        name: each._replace(log_draw=0.99 * each.log_draw)
        for name, each in particles.extras.get("credit", {}).items()
    }
    extras = {**particles.extras, **({"credit": credit} if credit else {})}
    return particles._replace(log_draw=0.99 * particles.log_draw, extras=extras)


BREAKS = {
    "scale": lambda particles: particles._replace(scale=2 * particles.scale),
    "prior": lambda particles: particles._replace(log_prior=1.01 * particles.log_prior),
    "draws": with_weaker_draws,
    "likelihood": lambda particles: particles._replace(log_likelihood=particles.log_prior),
}


def broken(package, loss, change):
    kind = getattr(package.infer, loss)

    class Broken(kind):
        def _estimate(self, particles, state):
            return super()._estimate(change(particles), state)

    return Broken


@pytest.mark.parametrize("change", BREAKS)
@pytest.mark.parametrize(
    ("package", "loss"),
    [
        (backend, loss)
        for backend in BACKENDS
        for loss in ("Reinforce_ELBO", "Exact_ELBO", "VIMCO_ELBO")
    ],
    indirect=["package"],
)
def test_a_broken_loss_is_noticed(package, loss, change):
    checker = Checker(package.Program(NESTED))
    checker.check(loss, make(package, loss, 0.3), 0.3)
    options = {} if loss == "Exact_ELBO" else {"num_particles": 8}
    with pytest.raises(AssertionError, match=r"value|gradient"):
        checker.check(loss, broken(package, loss, BREAKS[change])(beta=0.3, **options), 0.3)


def test_data_that_are_not_independent_are_noticed():
    """The words of a document are observed together: no word has credit of its own."""
    checker = Checker(SimpleNamespace(spec=NESTED, arrays=make_data(NESTED), rows={}))
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


DATA = (Plate("data", -1),)
NESTED_PLATES = (Plate("data", -2), Plate("words", -1))
FOUND = {  # what was wrong, and in which losses
    "masked draws that Python chooses": (
        Spec(
            plates=(Plate("left", -1),),
            sites=(
                Site("z0", "binomial", ("left",), guide=Part()),
                Site(
                    "z1",
                    "normal",
                    model=Part(mask="all"),
                    guide=Part((Link("z0", "if"),), mask="all"),
                ),
                Site("y0", "normal", model=Part((Link("z1"),))),
            ),
            order=("z0", "z1"),
        ),
        ["Exact_ELBO", "Reinforce_ELBO", "DAPS_ELBO"],
    ),
    "data that Python looks at together": (
        Spec(
            plates=DATA,
            sites=(
                Site("z0", plates=("data",), guide=Part()),
                Site("y0", "normal", ("data",), model=Part((Link("z0"),)), after="z0"),
            ),
            order=("z0",),
        ),
        ["Exact_ELBO", "Reinforce_ELBO", "VIMCO_ELBO", "pairs of draws"],
    ),
    "masked latents of both kinds": (
        Spec(
            plates=DATA,
            sites=(
                Site("z0", plates=("data",), model=Part(mask="all"), guide=Part()),
                Site("z1", "normal", ("data",), model=Part(mask="all"), guide=Part()),
                Site("y0", "normal", ("data",), model=Part((Link("z0"), Link("z1")))),
            ),
            order=("z0", "z1"),
        ),
        ["Truncated_ELBO"],
    ),
    "weights of particles that have other sites": (
        Spec(
            sites=(
                Site("z0", guide=Part()),
                Site("z1", after="z0", guide=Part(scale=3.0)),
                Site("y0", "normal", model=Part((Link("z0"),))),
            ),
            order=("z0", "z1"),
            scale=0.5,
        ),
        ["Exact_ELBO", "Reinforce_ELBO", "VIMCO_ELBO", "pairs of draws"],
    ),
    "no discrete sites": (
        Spec(
            plates=DATA,
            sites=(Site("z0", "normal", ("data",), guide=Part()), Site("y0", "normal", ("data",))),
            order=("z0",),
        ),
        ["DisARM_ELBO", "Truncated_ELBO"],
    ),
    "credit that passes through a draw of all cells": (
        Spec(
            plates=NESTED_PLATES,
            sites=(
                Site("z0", plates=("data", "words"), guide=Part()),
                Site("z1", plates=("data",), guide=Part((Link("z0"),))),
                Site("y0", "normal", ("data", "words"), model=Part((Link("z1"),))),
            ),
            order=("z0", "z1"),
        ),
        ["credit"],
    ),
    "credit that passes through a continuous draw of all cells": (
        Spec(
            plates=NESTED_PLATES,
            sites=(
                Site("z0", plates=("data", "words"), guide=Part()),
                Site("z1", "normal", ("data",), guide=Part((Link("z0"),))),
                Site("y0", "normal", ("data", "words"), model=Part((Link("z1"),))),
            ),
            order=("z0", "z1"),
        ),
        ["credit"],
    ),
    "weights that change with the sites that are drawn": (
        Spec(
            plates=(Plate("items", -1, 1, 2),),
            sites=(
                Site("z0", plates=("items",), guide=Part()),
                Site("z1", plates=("items",), model=Part(scale=0.5), guide=Part(), after="z0"),
                Site("y0", "normal", ("items",), model=Part((Link("z0"),))),
            ),
            order=("z0", "z1"),
        ),
        ["DAPS_ELBO", "VIMCO_ELBO", "WakeSleep_ELBO"],
    ),
    "data that are one datum where sites come and go": (
        Spec(
            plates=(Plate("items", -1, 1, 4),),
            sites=(
                Site("z0", plates=("items",), model=Part(scale=0.5), guide=Part()),
                Site("z1", plates=("items",), guide=Part(), after="z0"),
                Site("y0", "normal", ("items",), model=Part((Link("z0"),))),
            ),
            order=("z0", "z1"),
            seed=1,  # whose draws differ in their sites
        ),
        ["DAPS_ELBO", "VIMCO_ELBO", "WakeSleep_ELBO", "pairs of draws"],
    ),
    "plates in one dim, one after the other": (
        Spec(
            plates=(Plate("left", -1), Plate("right", -1)),
            sites=(
                Site("z0", "categorical", ("right",), guide=Part()),
                Site("y0", plates=("left",), model=Part((Link("z0", "sum"),))),
            ),
            order=("z0",),
        ),
        ["credit"],
    ),
    "a mask that is one word": (
        Spec(
            plates=DATA,
            sites=(
                Site("z0", plates=("data",), model=Part(mask="all"), guide=Part()),
                Site("y0", "normal", ("data",)),
            ),
            order=("z0",),
        ),
        ["Truncated_ELBO"],
    ),
    "dreams of sites that are weighed otherwise than the data": (
        Spec(
            plates=(Plate("data", -2, 2, 3), Plate("words", -1, 2, 4)),
            sites=(
                Site("z0", plates=("data",), guide=Part()),
                Site("y0", "normal", ("data", "words"), model=Part((Link("z0"),))),
            ),
            order=("z0",),
            scale=0.5,
        ),
        ["WakeSleep_ELBO(sleep)"],
    ),
}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (backend, name)
        for backend in BACKENDS
        for name, (spec, _) in FOUND.items()
        if backend == "pyro" or not spec.asks_python  # a traced program cannot ask
    ],
    indirect=["package"],
)
def test_programs_that_were_wrong_once(package, name):
    spec, losses = FOUND[name]
    assert_right(try_program(package, (spec, spec), 0, losses, (0,)))
