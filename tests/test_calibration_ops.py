"""Ranks and the tests of their uniformity: one file in both packages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

values = st.integers(-3, 3).map(float)


@pytest.fixture(scope="module")
def ops(thrifty_shim):
    return thrifty_shim.module("ops.calibration")


def test_by_hand(ops):
    """Two draws below and none tied; one below, two tied; all tied."""
    draws = np.array([[1.0, 2, 2], [1, 2, 2], [3, 1, 2], [4, 5, 2]])
    ranks = ops.random_ranks(np.full(3, 2.0), draws, np.array([0.99, 0.5, 0.9]))
    np.testing.assert_array_equal(ranks, [2, 1 + 1, 0 + 4])
    members = np.array([[2.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    uniforms = np.array([[0.3, 0.9], [0.0, 0.1], [0.2, 0.5]])
    np.testing.assert_array_equal(ops.ranks_of_all(members, uniforms), [[2, 2], [0, 1], [1, 0]])


def test_infinities_tie_with_themselves_alone_and_nan_has_no_rank(ops):
    draws = np.array([[-np.inf], [-np.inf], [0.0], [np.inf]])
    for tolerance in (0.0, 1e-6):
        for truth, rank in ((-np.inf, 2), (0.0, 3), (np.inf, 4)):
            found = ops.random_ranks(np.array([truth]), draws, np.array([0.99]), tolerance)
            assert found == [rank]
        ranks = ops.ranks_of_all(draws, np.array([[0.9], [0.1], [0.5], [0.0]]), tolerance)
        np.testing.assert_array_equal(ranks[:, 0], [1, 0, 2, 3])
    nan = np.array([np.nan])
    with pytest.raises(ValueError, match="`truth` holds 1 NaN"):
        ops.random_ranks(nan, draws, np.zeros(1))
    with pytest.raises(ValueError, match="`draws` holds 1 NaN"):
        ops.random_ranks(np.zeros(1), nan[None], np.zeros(1))
    with pytest.raises(ValueError, match="`values` holds 1 NaN"):
        ops.ranks_of_all(nan[None], np.zeros((1, 1)))


@given(
    members=npst.arrays(np.float64, (6, 3), elements=values),
    uniforms=npst.arrays(np.float64, 3, elements=st.sampled_from([0.0, 0.3, 0.7, 0.999])),
)
def test_rank_is_below_and_a_share_of_the_ties(ops, members, uniforms):
    truth, draws = members[0], members[1:]
    below, tied = (draws < truth).sum(0), (draws == truth).sum(0)
    found = ops.random_ranks(truth, draws, uniforms)
    np.testing.assert_array_equal(found, below + np.floor(uniforms * (tied + 1)))
    each = np.random.default_rng(0).random(members.shape)
    ranks = ops.ranks_of_all(members, each)
    np.testing.assert_array_equal(np.sort(ranks, 0), np.arange(6)[:, None].repeat(3, 1))
    assert ((ranks[0] >= below) & (ranks[0] <= below + tied)).all()


def test_rounding_is_a_tie(ops):
    truth, draws = np.array([-500.0]), np.array([[-500.00001], [-501.0], [-499.0]])
    ranks = [ops.random_ranks(truth, draws, np.array([u]), 1e-5) for u in (0.0, 0.6)]
    assert [int(rank[0]) for rank in ranks] == [1, 2]
    members = np.concatenate([truth[None], draws])
    for first, rank in ((0.1, 1), (0.9, 2)):
        uniforms = np.array([[first], [0.5], [0.5], [0.5]])
        assert ops.ranks_of_all(members, uniforms, 1e-5)[0, 0] == rank


def test_many_ranks_are_tested_by_chi_square(ops):
    counts = np.random.default_rng(0).integers(300, 400, size=(4, 8))
    found = ops.uniform_p_value(counts)
    np.testing.assert_allclose(found, stats.chisquare(counts, axis=-1).pvalue, rtol=1e-9)
    odd = counts[:, :7]
    np.testing.assert_allclose(
        ops.uniform_p_value(odd), stats.chisquare(odd, axis=-1).pvalue, rtol=1e-9
    )


def exact_p_values(num_ranks, num_bins):
    """Sum of squares -> P(at least that), from all tables."""
    tables = [t for t in np.ndindex(*(num_ranks + 1,) * (num_bins - 1)) if sum(t) <= num_ranks]
    tables = np.array([(*t, num_ranks - sum(t)) for t in tables])
    probs = stats.multinomial.pmf(tables, num_ranks, np.full(num_bins, 1 / num_bins))
    squares = (tables**2).sum(1)
    return {int(s): probs[squares >= s].sum() for s in np.unique(squares)}


def test_few_ranks_are_tested_exactly(ops):
    exact = exact_p_values(9, 4)
    counts = np.array([[9, 0, 0, 0], [3, 2, 2, 2], [6, 1, 1, 1], [0, 4, 5, 0]])
    expected = np.array([exact[int(s)] for s in (counts**2).sum(1)])
    found = ops.uniform_p_value(counts)
    spread = np.sqrt(expected * (1 - expected) / 1e5)
    assert (np.abs(found - expected) < 5 * spread + 2e-5).all()
    chi_square = stats.chisquare(counts, axis=-1).pvalue  # negative control
    assert (np.abs(chi_square - expected) > 5 * spread + 2e-5).any()
    assert ops.uniform_p_value(np.zeros((2, 4), int)).tolist() == [1.0, 1.0]


# Ranks that depend on each other: rows that share a truth and the draws of it


def shared_counts(rng, units, rows, shift=0.0):
    """Counts in 4 bins of the ranks of 8 members, whose rows have one value in common."""
    centre = rng.normal(size=(units, 8, 1))
    values = centre + 0.3 * rng.normal(size=(units, 8, rows))
    values[:, 0] += shift
    ranks = values.argsort(1).argsort(1)
    return np.stack([(ranks // 2 == b).sum(2) for b in range(4)], -1)


def p_values(ops, repeats=400, **options):
    rng = np.random.default_rng(1)
    tables = [shared_counts(rng, 10, 20, **options) for _ in range(repeats)]
    exchange = np.array([ops.exchange_p_value(table, rng) for table in tables])
    as_if_independent = ops.uniform_p_value(np.stack([table[:, 0].sum(0) for table in tables]))
    return exchange, as_if_independent


def test_members_that_are_exchangeable_are_rejected_at_the_stated_rate(ops):
    exchange, independent = p_values(ops)
    for level in (0.05, 0.2):
        assert stats.binomtest(int((exchange <= level).sum()), 400, level).pvalue > 1e-4
    assert (independent <= 0.05).mean() > 0.5  # negative control


def test_members_that_are_not_are_found(ops):
    assert np.median(p_values(ops, repeats=20, shift=2.0)[0]) < 1e-3


def test_each_latent_has_its_own_p_value(ops):
    rng = np.random.default_rng(2)
    table = np.stack([shared_counts(rng, 10, 20), shared_counts(rng, 10, 20, 2.0)], 2)
    found = ops.exchange_p_value(table, rng)
    assert found.shape == (2,)
    assert found[0] > 0.01 > found[1]
