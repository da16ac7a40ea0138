"""Sets of states: packed and hashed without loss, cut to the S best as a Python set would be."""

import functools
import inspect
import itertools
import math

import numpy as np
import oracles
import pytest
from draws import as_codes, random_codes, seeded, z_scores
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

BINARY, MIXED = (2,) * 8, (3, 2, 1, 5, 4)
SPACES = [(2,) * 64, (2,) * 37, MIXED, (300, 2, 70_000, 2), (2**31, 2, 2**31), (1,)]


@functools.cache
def operation(backend, name):
    function = getattr(backend.module("ops.sets"), name)
    static = {"cardinalities", "num_states"} & set(inspect.signature(function).parameters)
    return backend.jit(function, static_argnames=tuple(static))


def call(backend, name, *arrays, **static):
    arrays = (backend.asarray(array) for array in arrays)
    return np.asarray(operation(backend, name)(*arrays, **static))


def table_of(backend, cardinalities):
    return np.asarray(backend.module("ops.sets").zobrist_table(cardinalities))


def draw_states(backend, seed, *arguments):
    return np.asarray(seeded(backend, backend.module("ops.sets").random_states, seed, *arguments))


SMALL, LONG = (3, 2, 1, 5), (2,) * 33  # of 2, 1, 0 and 3 bits; of one bit more than a word
WIDE = (2**31, 3)  # of 31 bits and 2, which do not fit into one word
PACKED = [  # codes and words: 2 + 1 * 4 + 4 * 8, 1 + 3 * 8
    (SMALL, [[2, 1, 0, 4], [1, 0, 0, 3]], [[38], [25]]),
    (LONG, [[1] * 33, [0] * 32 + [1], [1] + [0] * 32], [[2**32 - 1, 1], [0, 1], [1, 0]]),
    (WIDE, [[5, 2], [2**31 - 1, 1]], [[5, 2], [2**31 - 1, 1]]),
]


@pytest.mark.parametrize(("cardinalities", "codes", "expected"), PACKED)
def test_packing_by_hand(backend, cardinalities, codes, expected):
    sets = backend.module("ops.sets")
    words = call(backend, "pack", as_codes(codes, cardinalities), cardinalities=cardinalities)
    np.testing.assert_array_equal(words.astype(np.uint32), expected)
    found = call(backend, "unpack", words, cardinalities=cardinalities)
    np.testing.assert_array_equal(found, codes)
    assert sets.num_words(cardinalities) == len(expected[0])
    assert ("int32" in str(sets.code_dtype(cardinalities))) == (cardinalities is WIDE)


def test_where_the_bits_go_by_hand(backend):
    bit_plan = backend.module("ops.sets.packing").bit_plan
    assert bit_plan(SMALL) == ((2, 1, 0, 3), (0, 2, 3, 3), (slice(0, 4),))
    assert bit_plan(WIDE) == ((31, 2), (0, 0), (slice(0, 1), slice(1, 2)))


INTEGERS = np.array([[5, 7], [5, 8], [6, 7], [5, 9]])
HASHED = [  # the table of a hash may hold any numbers
    ("hash_states", [np.array([[1, 2, 3], [0, 0, 1]]), np.array([1, 10, 100])], [321, 100]),
    (
        "change_hash",
        [np.array([321, 100]), np.array([1, 10, 100]), np.array([1, 0])],
        [351, 102],  # 3 more of the tens, 2 more of the ones
    ),
    ("first_occurrences", [INTEGERS], [[True, True], [False, True], [True, False], [False, True]]),
    ("newcomers", [INTEGERS[:2], INTEGERS[2:]], [[True, False], [False, True]]),
    (
        "newcomers",
        [INTEGERS[:1], INTEGERS[[3, 3, 0]]],
        [[False, True], [False] * 2, [False] * 2],
    ),
]


@pytest.mark.parametrize(("name", "arrays", "expected"), HASHED)
def test_hashing_by_hand(backend, name, arrays, expected):
    arrays = [as_hashes(backend, array) for array in arrays]
    if name == "hash_states":
        arrays[0] = arrays[0].astype(np.uint8)
    if name == "change_hash":
        arrays[2] = arrays[2].astype(np.int64)
        arrays += [np.array([2, 0], np.uint8), np.array([5, 2], np.uint8)]
    np.testing.assert_array_equal(call(backend, name, *arrays), expected)


def test_where_it_fits_the_table_is_of_powers_of_two(backend):
    np.testing.assert_array_equal(table_of(backend, SMALL), [1, 4, 8, 8])


@pytest.mark.parametrize("path", ["states", "evolution"])
def test_the_first_import_paths_go_on(backend, path):
    old, sets = backend.module(f"ops.{path}"), backend.module("ops.sets")
    assert set(old.__all__) <= set(sets.__all__)
    assert all(getattr(old, name) is getattr(sets, name) for name in [*old.__all__])


# --- packed states ---


def packed_by_hand(codes, cardinalities):
    """Words as Python integers: the next latent's bits go on top, or into a new word."""
    words, used = [0], 0
    for code, cardinality in zip(codes, cardinalities, strict=True):
        bits = math.ceil(math.log2(cardinality))
        if used + bits > 32:
            words, used = [*words, 0], 0
        words[-1] += int(code) << used
        used += bits
    return words


@pytest.mark.parametrize("cardinalities", SPACES, ids=str)
def test_packing_loses_nothing(backend, cardinalities):
    states = backend.module("ops.sets")
    codes = random_codes(cardinalities, 5, 3)
    codes[0, 0] = np.array(cardinalities) - 1
    words = call(backend, "pack", codes, cardinalities=cardinalities)
    by_hand = [[packed_by_hand(z, cardinalities) for z in row] for row in codes]
    np.testing.assert_array_equal(words.astype(np.uint32), by_hand)
    assert words.itemsize == 4
    assert words.shape[-1] == states.num_words(cardinalities)
    unpacked = call(backend, "unpack", words, cardinalities=cardinalities)
    np.testing.assert_array_equal(unpacked, codes, strict=True)
    assert str(states.code_dtype(cardinalities)).endswith(codes.dtype.name) or (
        np.dtype(states.code_dtype(cardinalities)) == codes.dtype
    )


def test_sets_of_the_largest_published_experiment_fit_into_110_mb(backend):
    """House, σ = 25: 62001 patches, 200 states of 64 binary latents."""
    words = backend.module("ops.sets").num_words((2,) * 64)
    assert 62_001 * 200 * words * 4 <= 110e6


# --- hashes ---


@pytest.mark.parametrize("cardinalities", [BINARY, MIXED, (300, 7, 2)], ids=str)
def test_where_it_fits_the_hash_is_the_packed_state(backend, cardinalities):
    codes = as_codes(oracles.all_codes(cardinalities), cardinalities)
    hashes = call(backend, "hash_states", codes, table_of(backend, cardinalities))
    assert len(set(hashes.tolist())) == len(codes)
    np.testing.assert_array_equal(hashes, [packed_by_hand(z, cardinalities)[0] for z in codes])


def test_the_longest_exact_hash(backend):
    """Its top bit is the sign of a 64-bit integer in Torch."""
    size = 8 * table_of(backend, BINARY).itemsize
    cardinalities = (2,) * size
    codes = np.eye(size, dtype=np.uint8)
    hashes = call(backend, "hash_states", codes, table_of(backend, cardinalities))
    assert [int(h) % 2**size for h in hashes] == [2**h for h in range(size)]


@pytest.mark.parametrize("cardinalities", [(2,) * 256, (256,) * 100, (70_000,) * 9], ids=len)
def test_hashes_are_the_weighted_sums_and_differ_between_states(backend, cardinalities):
    codes, table = random_codes(cardinalities, 40, 25), table_of(backend, cardinalities)
    hashes = call(backend, "hash_states", codes, table)
    modulus = 2 ** (8 * table.itemsize)
    rows = zip(hashes.flatten(), codes.reshape(-1, len(cardinalities)), strict=True)
    for found, z in itertools.islice(rows, 10):
        assert (
            int(found) % modulus
            == sum(int(a) * int(b) for a, b in zip(z, table, strict=True)) % modulus
        )
    assert len(set(hashes.flatten().tolist())) == 1000
    assert (table % 2 == 1).all()
    again = table_of(backend, cardinalities)
    np.testing.assert_array_equal(again, table)


@given(latent=st.integers(0, 99), new=st.integers(0, 255), seed=st.integers(0, 5))
def test_a_changed_code_changes_the_hash_as_hashing_anew_does(backend, latent, new, seed):
    cardinalities = (256,) * 100
    codes, table = random_codes(cardinalities, 4, seed=seed), table_of(backend, cardinalities)
    changed = codes.copy()
    changed[:, latent] = new
    latents = np.full(4, latent)
    before = call(backend, "hash_states", codes, table)
    found = call(
        backend, "change_hash", before, table, latents, codes[:, latent], changed[:, latent]
    )
    np.testing.assert_array_equal(found, call(backend, "hash_states", changed, table))


few_hashes = npst.arrays(np.int64, (9, 4), elements=st.integers(0, 7))


def as_hashes(backend, values):
    return values.astype(table_of(backend, BINARY).dtype)


@given(hashes=few_hashes)
def test_first_occurrences_are_those_of_a_python_set(backend, hashes):
    hashes = as_hashes(backend, hashes * 2**29 - 5)  # beyond 31 bits, and of both signs
    found = call(backend, "first_occurrences", hashes)
    for column, expected in zip(found.T, hashes.T, strict=True):
        seen = set()
        fresh = [h not in seen and not seen.add(h) for h in expected.tolist()]
        assert column.tolist() == fresh


@given(hashes=few_hashes, num_members=st.integers(1, 8))
def test_newcomers_are_neither_members_nor_there_already(backend, hashes, num_members):
    hashes = as_hashes(backend, hashes)
    found = call(backend, "newcomers", hashes[:num_members], hashes[num_members:])
    expected = call(backend, "first_occurrences", hashes)[num_members:]
    np.testing.assert_array_equal(found, expected)


# --- the S best ---

scores_with_ties = npst.arrays(
    np.float64, (9, 4), elements=st.sampled_from([-math.inf, math.nan, -2.0, -0.0, 0.0, 1.5, 3e38])
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(scores=scores_with_ties)
def test_the_best_are_those_of_a_stable_sort(backend, dtype, scores):
    scores = scores.astype(dtype)
    codes = random_codes(MIXED, 9, 4)
    found = operation(backend, "keep_best")(
        backend.asarray(codes), backend.asarray(scores), num_states=5
    )
    kept, best, index = (np.asarray(each) for each in found)
    for datum in range(4):  # neighbours do not matter
        ranks = [-math.inf if math.isnan(s) else s for s in scores[:, datum].tolist()]
        expected = sorted(range(9), key=lambda place: -ranks[place])[:5]
        assert index[:, datum].tolist() == expected
        np.testing.assert_array_equal(kept[:, datum], codes[expected, datum])
        np.testing.assert_array_equal(best[:, datum], scores[expected, datum])
    assert best.dtype == dtype


def test_no_masked_child_gets_past_members_in_front(backend):
    """Members that are impossible (-inf) tie with masked duplicates and with NaN children."""
    scores = np.array([[-math.inf], [-math.inf], [0.0], [-math.inf], [math.nan]])
    codes = np.arange(5, dtype=np.uint8)[:, None, None]
    kept = operation(backend, "keep_best")(
        backend.asarray(codes), backend.asarray(scores), num_states=3
    )
    assert sorted(np.asarray(kept.states).flatten().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("num_states", [0, 4])
def test_there_must_be_enough_candidates(backend, num_states):
    keep_best = backend.module("ops.sets").keep_best
    codes, scores = np.zeros((3, 1, 2), np.uint8), np.zeros((3, 1))
    with pytest.raises(ValueError, match=r"`num_states` must be from 1 to .* 3; got"):
        keep_best(backend.asarray(codes), backend.asarray(scores), num_states)


# --- random states ---


def assert_distinct(codes, cardinalities):
    assert (codes < np.array(cardinalities)).all()
    for datum in range(codes.shape[1]):
        assert len({tuple(z) for z in codes[:, datum].tolist()}) == len(codes)


@pytest.mark.parametrize(
    ("num_states", "cardinalities"),
    [(256, BINARY), (70, MIXED), (60, MIXED), (30, (2,) * 100), (1, (1, 1))],
    ids=str,
)
def test_random_states_are_distinct(backend, num_states, cardinalities):
    """All of the space, more than half of it (drawn without replacement), less (by rejection)."""
    codes = draw_states(backend, 0, num_states, 7, cardinalities)
    assert codes.shape == (num_states, 7, len(cardinalities))
    assert codes.dtype == as_codes(0, cardinalities).dtype
    assert_distinct(codes, cardinalities)
    again = draw_states(backend, 0, num_states, 7, cardinalities)
    np.testing.assert_array_equal(codes, again)
    if math.prod(cardinalities) > 1:
        sets = {codes[:, datum].tobytes() for datum in range(7)}
        assert len(sets) == 7  # data start from different states, or in different order


def test_states_are_drawn_from_the_marginals(backend):
    probs = np.zeros((5, 5))
    probs[0, :3], probs[1, :2], probs[2, :1] = [0.5, 0.2, 0.3], [0.05, 0.95], [1.0]
    probs[3, :5], probs[4, :4] = [0.2, 0.0, 0.4, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4]
    codes = draw_states(backend, 1, 1, 20_000, MIXED, backend.asarray(probs))[0]
    draws = codes[..., None] == np.arange(5)
    assert z_scores(draws, probs).max() < 5
    uniform = draw_states(backend, 2, 1, 20_000, MIXED)[0][..., None] == np.arange(5)
    sizes = np.array(MIXED)[:, None]
    assert z_scores(uniform, (np.arange(5) < sizes) / sizes).max() < 5
    assert z_scores(uniform, probs).max() > 5  # negative control


def test_small_spaces_are_drawn_without_replacement_from_the_marginals(backend):
    """The first of more than half of all states is a plain draw from the product."""
    probs = np.array([[0.8, 0.2, 0.0], [0.3, 0.6, 0.1]])
    codes = draw_states(backend, 0, 4, 20_000, (2, 3), backend.asarray(probs))
    first = codes[0][:, 0] * 3 + codes[0][:, 1]
    draws = first[:, None] == np.arange(6)
    assert z_scores(draws, np.outer(probs[0, :2], probs[1]).flatten()).max() < 5
    assert_distinct(codes[:, :50], (2, 3))


def test_sparse_marginals_leave_the_rest_near_by(backend):
    """A prior that draws the same state nearly always still gives S states, few bits away."""
    probs = np.tile([0.999, 0.001], (12, 1))
    codes = draw_states(backend, 0, 64, 20, (2,) * 12, backend.asarray(probs))
    assert_distinct(codes, (2,) * 12)
    assert codes.sum(-1).mean() < 4  # uniform states have 6 of 12 bits on


@pytest.mark.parametrize("num_states", [0, 9])
def test_there_must_be_enough_states(backend, num_states):
    with pytest.raises(ValueError, match=r"`num_states` must be from 1 to .* 8; got"):
        draw_states(backend, 0, num_states, 2, (2, 2, 2))


def test_bad_shapes_are_named(backend):
    states = backend.module("ops.sets")
    with pytest.raises(ValueError, match=r"`probs` must have shape \(3, 2\)"):
        draw_states(backend, 0, 2, 2, (2, 2, 2), backend.asarray(np.ones(3)[:, None]))
    with pytest.raises(ValueError, match="`codes` must have a last axis of 3 latents"):
        states.pack(backend.asarray(np.zeros((4, 2), np.uint8)), (2, 2, 2))
    words = states.pack(backend.asarray(np.zeros((4, 3), np.uint8)), (2, 2, 2))
    with pytest.raises(ValueError, match="`words` must have 2 words a state"):
        states.unpack(words, (2,) * 33)
    for cardinalities in [(), (2, 0), (2**31 + 1,)]:
        with pytest.raises(ValueError, match="`cardinalities` must hold one number of codes"):
            states.num_words(cardinalities)


def test_scores_may_carry_a_gradient():
    """`keep_best` of Pyro hands them to NumPy, which takes none that do."""
    torch = pytest.importorskip("torch")
    from pyro_dvae.ops.sets import keep_best

    scores = torch.tensor([[0.5], [2.0], [1.0]], requires_grad=True)
    kept = keep_best(torch.eye(3, dtype=torch.uint8)[:, None], scores, 2)
    assert kept.scores.flatten().tolist() == [2.0, 1.0]
    assert kept.scores.requires_grad
