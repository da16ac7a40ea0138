"""Ends of ranges and odd arguments of small functions, by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats


def test_counts_are_whole_numbers_of_at_least_one(backend):
    check = backend.module("ops.arguments").check_counts
    check(k=None, other=1)
    for bad in (2.5, True, "3"):
        with pytest.raises(ValueError, match="`k` must be a whole number of at least 1; got"):
            check(k=bad)
    with pytest.raises(ValueError, match="`k` must be at least 2; got 1"):
        check(least=2, k=1)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10])
def test_the_tail_of_chi_square_is_scipys(backend, freedom):
    tail = backend.module("ops.calibration")._chi_square_tail
    assert tail(0.0, freedom) == 1.0
    for statistic in (0.1, 2.5, 30.0):
        expected = stats.chi2.sf(statistic, freedom)
        assert math.isclose(tail(statistic, freedom), expected, rel_tol=1e-12)


def test_equal_counts_are_as_uniform_as_can_be(backend):
    p_value = backend.module("ops.calibration").uniform_p_value
    np.testing.assert_array_equal(p_value(np.full((1, 4), 50)), [1.0])
    nan = np.array([np.nan])
    with pytest.raises(ValueError, match="`truth` holds 1 NaN, which have no rank: leave them"):
        backend.module("ops.calibration").random_ranks(nan, np.zeros((2, 1)), np.zeros(1))


def test_sparse_flips_are_of_binary_latents(backend):
    evolution = backend.module("ops.sets.evolution")
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"`rate` is a share of the latents, in \(0, 1\]; got"):
            evolution.sparse_flip(2, rate, 1.0)
    codes, scores = (backend.asarray(np.zeros(shape)) for shape in ((2, 1, 2), (2, 1)))
    codes = codes.astype(int) if backend.name == "numpyro" else codes.long()
    population = evolution.Population(codes, scores, (2, 3))
    given = () if backend.name == "pyro" else (backend.asarray(np.zeros(2, np.uint32)),)
    operator = evolution.sparse_flip(2, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"needs latents of 2 codes each; got card.*\(2, 3\)"):
        operator(*given, population)


# Truncated posteriors


@pytest.mark.parametrize("kwargs", [{}, {"flag": True}])
def test_parts_are_of_arrays(backend, kwargs):
    parts_of = backend.module("infer.truncated.parts").parts_of
    with pytest.raises(ValueError, match="`batch_size` must be 1 or more; got 0"):
        list(parts_of((), kwargs, 0))
    with pytest.raises(ValueError, match=r"`batch_size` cuts the arrays .* there is none\. Leave"):
        list(parts_of((), kwargs, 3))
    values = backend.asarray(np.arange(5))
    found = list(parts_of((values, "a"), kwargs, 2))
    assert [np.asarray(part.args[0]).tolist() for part in found] == [[0, 1], [2, 3], [3, 4]]
    assert [(part.start, part.num_rows) for part in found] == [(0, 5), (2, 5), (3, 5)]


def site(name, shape=(2,), values=3):
    return SimpleNamespace(name=name, batch_shape=shape, event_shape=(), support=range(values))


def test_the_sites_of_the_states_stay(backend):
    check = backend.module("infer.truncated.minibatch").check_sites
    begun = [site("a"), site("b", (), 2)]
    check(begun, begun)
    cases = [
        (
            [site("a", (4,)), begun[1]],
            r"'a' had shape \(2,\) per datum .* is now \(4,\)\. All",
        ),
        ([begun[0]], r"'b' had shape \(\) per datum .* is now None"),
        ([*begun, site("c")], r"'c' had shape None per datum .* is now \(2,\)"),
        ([site("a", values=4), begun[1]], r"'a' had 3 values .* now has 4\. Give it the largest"),
    ]
    for now, message in cases:
        with pytest.raises(ValueError, match=f"site {message}"):
            check(begun, now)


def test_a_guide_for_other_data_takes_sweeps(backend):
    guide = backend.module("infer").TruncatedGuide(lambda x: None, 3)
    given = () if backend.name == "pyro" else (None, {})
    with pytest.raises(ValueError, match="`num_sweeps` must be 1 or more; got 0"):
        guide.for_data(*given, np.zeros(2), num_sweeps=0)


def test_draws_of_a_guide_are_one_or_more(backend):
    draws_of = backend.module("infer").draws_of
    with pytest.raises(ValueError, match="`num_draws` must be 1 or more; got 0"):
        draws_of(lambda x: None, 0)
    operator = draws_of(lambda x: None, 1)
    given = () if backend.name == "pyro" else (None,)
    with pytest.raises(ValueError, match=r"draws_of\(...\) proposes inside of an E-step"):
        operator(*given, SimpleNamespace(context=None))
