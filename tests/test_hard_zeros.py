"""A guide that never draws a state is found out, whatever density a clamp gives the state."""

import importlib

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of

# What never comes, of each family: constructor, its arguments, values and whether they never come
CODES = np.array([0.0, 1.0, 2.0, 3.0])
PROBS, LOW = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, -1e30, -1e30])
LAST_TWO, NONE = [False, False, True, True], [False] * 4
CASES = {
    "probs of 0": ("Categorical", {"probs": PROBS}, CODES, LAST_TWO),
    "logits of -inf": (
        "Categorical",
        {"logits": np.where(PROBS > 0, 0.0, -np.inf)},
        CODES,
        LAST_TWO,
    ),
    "logits of -1e30": ("Categorical", {"logits": LOW}, CODES, LAST_TWO),
    "one-hot": ("OneHotCategorical", {"probs": PROBS}, np.eye(4), LAST_TWO),
    "a coin of 0": ("Bernoulli", {"probs": np.array(0.0)}, CODES[:2], [False, True]),
    "a coin of 1": ("Bernoulli", {"probs": np.array(1.0)}, CODES[:2], [True, False]),
    "a coin of -1e30": ("Bernoulli", {"logits": np.array(-1e30)}, CODES[:2], [False, True]),
    "counts of 0": (
        "Binomial",
        {"total_count": 3, "probs": np.array(0.0)},
        CODES,
        [False, True, True, True],
    ),
    "counts of all": (
        "Binomial",
        {"total_count": 2, "probs": np.array(1.0)},
        CODES,
        [True, True, False, True],
    ),
    "beyond the counts": (
        "Binomial",
        {"total_count": 2, "probs": np.array(0.4)},
        CODES,
        [*NONE[:3], True],
    ),
    # negative controls: rare, and near to what clamps give
    "rare": ("Categorical", {"logits": np.array([0.0, -15.9, -36.0, -90.0])}, CODES, NONE),
    "tiny": ("Categorical", {"probs": np.array([1 - 3e-8, 1e-8, 1e-8, 1e-8])}, CODES, NONE),
    "a sure coin": ("Bernoulli", {"logits": np.array(20.0)}, CODES[:2], NONE[:2]),
    "a surer coin": ("Bernoulli", {"logits": np.array(-800.0)}, CODES[:2], NONE[:2]),
    "rates": ("Poisson", {"rate": np.array(0.3)}, CODES, NONE),
}


def dist_of(backend):
    return importlib.import_module(f"{backend.name}.distributions")


@pytest.mark.thrifty
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_what_never_comes(backend, name, dtype):
    family, arguments, values, expected = CASES[name]

    def array(value):
        return backend.asarray(value.astype(dtype)) if isinstance(value, np.ndarray) else value

    own = family == "OneHotCategorical" or name == "logits of -inf"  # which NumPyro's refuses
    home = backend.module("distributions") if own else dist_of(backend)
    fn = getattr(home, family)(**{key: array(value) for key, value in arguments.items()})
    values = backend.asarray(values.astype(int)) if family == "Categorical" else array(values)
    found = backend.module("programs.readers.impossible").excludes(fn, values)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_guide_leaves_out_what_the_model_has(backend):
    leaves_out, dist = backend.module("programs.readers.impossible").leaves_out, dist_of(backend)

    def coins(*probs):
        return dist.Bernoulli(backend.asarray(np.array(probs))).to_event(1)

    pair = dist.Bernoulli(backend.asarray(np.array(0.5))).expand([2]).to_event(1)
    assert bool(leaves_out(coins(0.0, 0.5), coins(0.1, 0.5)))
    assert bool(leaves_out(coins(0.3, 1.0), pair))
    assert not bool(leaves_out(coins(0.0, 0.5), coins(0.0, 0.5)))
    assert not bool(leaves_out(pair, coins(0.0, 1.0)))
    poisson = dist.Poisson(backend.asarray(np.array(2.0)))
    assert leaves_out(poisson, poisson) is None


# Guides with a row each: all states, half of a categorical's, and no head of a coin


TABLE = np.array([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.25] * 4])
COIN = np.array([0.5, 0.5, 0.0])


def model(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(4)))
        ppl.sample("b", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])


def guide(ppl, data):
    with ppl.plate("data", 3):
        ppl.sample("z", ppl.dist.Categorical(probs=ppl.param("table", data)))
        ppl.sample("b", ppl.dist.Bernoulli(probs=ppl.param("coin", data)))


def test_a_guide_of_one_state_is_restricted_if_it_has_no_other(shim):
    """A stuck guide that could draw others is of one state."""

    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("b", ppl.dist.Bernoulli(logits=ppl.zeros(2)))
            ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("b", ppl.dist.Bernoulli(probs=ppl.param("coin", data)))

    coin = np.array([0.0, 1e-12])
    case = shim.Case(program_of(model, guide, {"coin": coin}, {"x": np.zeros(2)}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert list(found.verdicts) == ["restricted", "one state"]


def test_a_guide_that_counts_none_or_all_of_trials_that_are_data(shim):
    """In NumPyro these are traced; a count of no trials has no other state, and is exact."""

    def model(ppl, data):
        with ppl.plate("data", 4):
            n = ppl.sample("n", ppl.dist.Binomial(data["trials"], data["half"]))
            ppl.sample("x", ppl.dist.Normal(0.0 * n, 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 4):
            ppl.sample("n", ppl.dist.Binomial(data["trials"], ppl.param("q", data)))

    trials = np.array([2, 2, 0, 3])
    data = {"trials": trials, "half": np.full(4, 0.5), "x": np.zeros(4)}
    case = shim.Case(program_of(model, guide, {"q": np.array([0.0, 1.0, 0.0, 0.6])}, data))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert list(found.verdicts) == ["restricted", "restricted", "close", "close"]
    assert list(found.num_possible) == [1, 1, 1, 4]


@pytest.mark.thrifty
def test_the_verdict_and_the_exact_gap(shim):
    params = {"table": TABLE, "coin": COIN}
    case = shim.Case(program_of(model, guide, params, {"x": np.zeros(3)}))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert list(found.verdicts) == ["close", "restricted", "restricted"]
    gap = diagnose(shim, "posterior_gap", case)
    np.testing.assert_allclose(gap.support_mass, [1.0, 0.5, 0.5], rtol=1e-12)
    np.testing.assert_allclose(gap.gap, [0.0, np.log(2), np.log(2)], atol=1e-9)
    np.testing.assert_allclose(gap.log_evidence, -0.5 * np.log(2 * np.pi))


@pytest.mark.parametrize("sure", [True, False])
def test_an_impossible_state_that_never_comes_counts_nothing(shim, sure):
    """A clamp gives it a probability of 1e-16, which times minus infinity is no 0."""
    probs = np.array([0.0, 1.0]) if sure else np.array([0.0, 0.9])

    def equal(ppl, data):
        with ppl.plate("data", 2):
            z = ppl.sample("z", ppl.dist.Bernoulli(probs=0.5 + ppl.zeros(2)))
            ppl.sample("x", ppl.dist.Delta(1.0 * z), obs=data["x"])
            ppl.sample("y", ppl.dist.Normal(ppl.param("slope", data) * z, 1.0), obs=data["x"])

    def its_guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(probs=ppl.param("probs", data)))

    params = {"probs": probs, "slope": np.array(0.3)}
    case = shim.Case(program_of(equal, its_guide, params, {"x": np.array([0.0, 1.0])}))
    loss, grads = case.run(shim.module("infer").Exact_ELBO())
    wanted = 2 * np.log(2) + np.log(2 * np.pi) + 0.5 * 0.7**2
    np.testing.assert_allclose(loss, wanted if sure else np.inf, rtol=1e-10)
    np.testing.assert_allclose(grads["slope"], -0.7 if sure else -0.63, rtol=1e-6)
    assert np.isfinite(grads["probs"]).all()
