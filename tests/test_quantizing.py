"""`ops.quantizing`: nearest codes, moving averages, scalar levels; both backends, against NumPy."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STATIC = {
    "code_counts": ("num_codes",),
    "code_sums": ("num_codes",),
    "restart_codes": ("min_count",),
    "update_codebook": ("decay", "smoothing"),
    "quantize_levels": ("levels",),
    "levels_to_codes": ("levels",),
    "codes_to_levels": ("levels",),
}


@functools.cache
def compiled(backend, name):
    function = getattr(backend.module("ops.quantizing"), name)
    return backend.jit(function, static_argnames=STATIC.get(name))


def call(backend, name, *arrays, **options):
    """With NumPy arrays in and out; a tuple is a codebook's state."""
    state_class = backend.module("ops.quantizing").CodebookState
    given = [
        state_class(*map(backend.asarray, a)) if isinstance(a, tuple) else backend.asarray(a)
        for a in arrays
    ]
    arrays = {k: backend.asarray(v) for k, v in options.items() if isinstance(v, np.ndarray)}
    found = compiled(backend, name)(*given, **options | arrays)
    return tuple(map(np.asarray, found)) if isinstance(found, tuple) else np.asarray(found)


CORNERS = np.array([[0.0, 0], [3, 0], [0, 4]])
STATE = (np.array([[1.0, 1], [2, 2]]), np.array([2.0, 0]), np.array([[2.0, 2], [0, 0]]))
BATCH = np.array([2.0, 0]), np.array([[6.0, 10], [0, 0]])
PLACES = np.array([[0, 0], [1, 0], [0, 1], [2, 4]])
BY_HAND = {
    "distances": (
        "squared_distances",
        [np.array([[0.0, 0], [3, 4]]), CORNERS],
        {},
        [[0, 9, 16], [25, 16, 9]],
    ),
    "nearest": ("nearest_codes", [np.array([[1.0, 1], [2, 1], [3, 4]]), CORNERS], {}, [0, 1, 2]),
    "counts": ("code_counts", [np.array([2, 0, 2, 2])], {"num_codes": 4}, [1, 0, 3, 0]),
    "sums": (
        "code_sums",
        [np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]), np.array([2, 0, 2, 2])],
        {"num_codes": 4},
        [[3, 4], [0, 0], [13, 16], [0, 0]],
    ),
    "half the past, half the batch": (
        "update_codebook",
        [STATE, *BATCH],
        {"decay": 0.5, "smoothing": 0.0},
        ([[2, 3], [2, 2]], [2, 0], [[4, 6], [0, 0]]),
    ),
    "one more for each code": (  # 3 of 2 + 2 inputs, of which there are 2: a count of 1.5
        "update_codebook",
        [STATE, *BATCH],
        {"decay": 0.5, "smoothing": 1.0},
        ([[8 / 3, 4], [2, 2]], [2, 0], [[4, 6], [0, 0]]),
    ),
    "the second is dead": (
        "restart_codes",
        [STATE, np.array([[7.0, 7], [8, 9]])],
        {"min_count": 1.5},
        ([[1, 1], [8, 9]], [2, 1.5], [[2, 2], [12, 13.5]]),
    ),
    "averages of a quarter of a batch": (  # so a quarter of 1.5
        "restart_codes",
        [STATE, np.array([[7.0, 7], [8, 9]])],
        {"min_count": 1.5, "num_inputs": np.array(8.0)},
        ([[1, 1], [8, 9]], [2, 0.375], [[2, 2], [3, 3.375]]),
    ),
    "averages of all of a batch": (
        "restart_codes",
        [STATE, np.array([[7.0, 7], [8, 9]])],
        {"min_count": 1.5, "num_inputs": np.array(1.0)},
        ([[1, 1], [8, 9]], [2, 1.5], [[2, 2], [12, 13.5]]),
    ),
    "far apart": (  # the second input, then the third: 0.95 of squared distances 1, 0, 4
        "spread_codes",
        [np.array([[0.0], [1], [3]]), np.array([0.4, 0.95])],
        {},
        [[1], [3]],
    ),
    "near": ("spread_codes", [np.array([[0.0], [1], [3]]), np.array([0.4, 0.1])], {}, [[1], [0]]),
    "odd numbers of levels": (
        "quantize_levels",
        [np.array([[0.0, 0], [100, -100], [-100, 100]])],
        {"levels": (3, 5)},
        ([[0, 0], [1, -1], [-1, 1]], [1 + 3 * 2, 2 + 3 * 0, 0 + 3 * 4]),
    ),
    "an even one": (
        "quantize_levels",
        [np.array([[-100.0], [0], [100]])],
        {"levels": (4,)},
        ([[-1], [0], [0.5]], [0, 2, 3]),
    ),
    "codes": ("levels_to_codes", [PLACES], {"levels": (3, 5)}, [0, 1, 3, 14]),
    "levels": ("codes_to_levels", [np.array([0, 1, 3, 14])], {"levels": (3, 5)}, PLACES),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(backend, name):
    function, arrays, options, expected = BY_HAND[name]
    found = call(backend, function, *arrays, **options)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for ours, by_hand in pairs:
        np.testing.assert_allclose(ours, by_hand, rtol=1e-12)


def test_the_vectors_of_all_codes_by_hand(backend):
    found = np.asarray(backend.module("ops.quantizing").level_vectors((3, 2)))
    np.testing.assert_array_equal(found, [[-1, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0]])


def cloud(seed, num_inputs=40, num_codes=6, width=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_inputs, width)), rng.normal(size=(num_codes, width))


def brute_force(inputs, table):
    return ((inputs[..., None, :] - table) ** 2).sum(-1)


seeds = st.integers(0, 10**6)


@given(seed=seeds)
def test_nearest_codes_by_brute_force(backend, seed):
    inputs, table = cloud(seed)
    found = call(backend, "squared_distances", inputs, table)
    np.testing.assert_allclose(found, brute_force(inputs, table), rtol=1e-9, atol=1e-12)
    codes = call(backend, "nearest_codes", inputs.reshape(5, 8, 3), table)
    np.testing.assert_array_equal(codes.reshape(-1), brute_force(inputs, table).argmin(-1))


def test_a_distance_is_never_negative_and_ties_go_to_the_first(backend):
    row = np.full((1, 3), 1000.1, np.float32)
    table = np.concatenate([row, row + np.float32(1e-4), row])
    assert (call(backend, "squared_distances", row, table) >= 0).all()
    same = np.ones((4, 3))
    assert (call(backend, "nearest_codes", same, same) == 0).all()


def sums_of(backend, inputs, codes, num_codes=6):
    counts = call(backend, "code_counts", codes, num_codes=num_codes)
    return counts, call(backend, "code_sums", inputs, codes, num_codes=num_codes)


@given(seed=seeds)
def test_without_memory_an_update_is_one_of_k_means(backend, seed):
    inputs, table = cloud(seed)
    table[0] += 100.0  # nobody's nearest
    codes = brute_force(inputs, table).argmin(-1)
    counts, sums = sums_of(backend, inputs, codes)
    fresh = (table, np.zeros(6), np.zeros((6, 3)))
    new, *_ = call(backend, "update_codebook", fresh, counts, sums, decay=0.0, smoothing=0.0)
    for code, row in enumerate(new):
        own = inputs[codes == code]
        np.testing.assert_allclose(row, own.mean(0) if len(own) else table[code], rtol=1e-6)


def test_repeated_updates_converge_to_k_means_and_smoothing_moves_them(backend):
    """In the limit of many batches, alike, the moving average is the batch's k-means step."""
    inputs, table = cloud(1)
    codes = brute_force(inputs, table).argmin(-1)
    counts, sums = sums_of(backend, inputs, codes)
    state = (table, np.zeros(6), np.zeros((6, 3)))
    for _ in range(60):
        state = call(backend, "update_codebook", state, counts, sums, decay=0.5, smoothing=0.0)
    used = counts > 0
    means = sums[used] / counts[used, None]
    np.testing.assert_allclose(state[0][used], means, rtol=1e-6)
    smooth, *_ = call(backend, "update_codebook", state, counts, sums, decay=0.5, smoothing=1.0)
    total = counts.sum()
    smoothed = (counts + 1.0) * total / (total + len(counts))
    np.testing.assert_allclose(smooth[used], (sums / smoothed[:, None])[used], rtol=1e-6)
    assert not np.allclose(smooth[used], means, rtol=1e-3)  # negative control


def test_halves_of_a_batch_add_up(backend):
    inputs, table = cloud(2)
    codes = brute_force(inputs, table).argmin(-1)
    parts = [sums_of(backend, inputs[half], codes[half]) for half in (slice(20), slice(20, 40))]
    for whole, first, second in zip(sums_of(backend, inputs, codes), *parts, strict=True):
        np.testing.assert_allclose(whole, first + second, rtol=1e-9)


def test_dead_codes_restart_where_they_are_told(backend):
    _, table = cloud(3)
    candidates = cloud(4)[1]
    counts = np.array([0.0, 5.0, 0.4, 1.0, 2.0, 0.0])
    state = (table, counts, table * counts[:, None])
    new = call(backend, "restart_codes", state, candidates, min_count=1.0)
    dead = counts < 1.0
    np.testing.assert_array_equal(new[0], np.where(dead[:, None], candidates, table))
    np.testing.assert_array_equal(new[1], np.where(dead, 1.0, counts))
    np.testing.assert_allclose(new[2], new[0] * new[1][:, None])


@given(seed=seeds)
def test_a_spread_start_takes_different_inputs(backend, seed):
    rng = np.random.default_rng(seed)
    centres = 100.0 * np.stack([np.arange(4), np.zeros(4)], 1)
    inputs = centres[rng.permutation(np.arange(40) % 4)] + rng.normal(size=(40, 2)) * 1e-3
    rows = call(backend, "spread_codes", inputs, rng.uniform(size=4))
    assert (rows[:, None] == inputs).all(-1).any(1).all()
    assert len(set(np.round(rows[:, 0] / 100))) == 4  # one of each cluster
    equal = call(backend, "spread_codes", np.ones((40, 2)), rng.uniform(size=4))
    np.testing.assert_array_equal(equal, np.ones((4, 2)))


level_lists = st.lists(st.integers(2, 7), min_size=1, max_size=4).map(tuple)


def places_of(codes, levels):
    """One channel after the other, the first fastest."""
    strides = np.cumprod((1, *levels[:-1]))
    return codes[..., None] // strides % np.array(levels)


@pytest.mark.thrifty
@settings(max_examples=12)  # JAX compiles for each
@given(levels=level_lists)
def test_codes_and_levels_round_trip(backend, levels):
    codes = np.arange(math.prod(levels))
    places = call(backend, "codes_to_levels", codes, levels=levels)
    np.testing.assert_array_equal(places, places_of(codes, levels))
    np.testing.assert_array_equal(call(backend, "levels_to_codes", places, levels=levels), codes)
    table = np.asarray(backend.module("ops.quantizing").level_vectors(levels))
    assert np.unique(table, axis=0).shape == (len(codes), len(levels))
    assert np.abs(table).max() <= 1


@pytest.mark.thrifty
@settings(max_examples=8)
@given(levels=level_lists, seed=seeds)
def test_quantised_scalars_are_those_of_their_codes(backend, levels, seed):
    inputs = np.random.default_rng(seed).normal(size=(200, len(levels))) * 5
    vectors, codes = call(backend, "quantize_levels", inputs, levels=levels)
    table = np.asarray(backend.module("ops.quantizing").level_vectors(levels))
    np.testing.assert_allclose(vectors, table[codes], atol=1e-6)
    extreme = np.stack([np.full(len(levels), -1e3), np.full(len(levels), 1e3)])
    _, codes = call(backend, "quantize_levels", extreme, levels=levels)
    np.testing.assert_array_equal(codes, [0, math.prod(levels) - 1])


def test_scalars_by_the_published_formula(backend):
    """tanh, a half-range 0.1% too large and, for even numbers, a shift by half a level."""
    inputs, levels = np.linspace(-3, 3, 61)[:, None].repeat(2, 1), (8, 5)
    half = 1.001 * (np.array(levels) - 1) / 2
    shift = np.array([0.5, 0.0])
    bounded = np.tanh(inputs + np.arctanh(shift / half)) * half - shift
    vectors, _ = call(backend, "quantize_levels", inputs, levels=levels)
    np.testing.assert_allclose(vectors, np.round(bounded) / np.array([4, 2]), atol=1e-12)

    def total(x):
        return backend.module("ops.quantizing").quantize_levels(x, levels)[0].sum()

    slope = np.asarray(backend.grad(total)(backend.asarray(inputs)))
    steps = (1 - np.tanh(inputs + np.arctanh(shift / half)) ** 2) * half / np.array([4, 2])
    np.testing.assert_allclose(slope, steps, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "arrays", "options", "message"),
    [
        ("squared_distances", [(4, 3), (1, 3)], {}, "at least 2 vectors"),
        ("nearest_codes", [(4, 3), (5, 2)], {}, r"\(V, 3\); got \(5, 2\)"),
        ("spread_codes", [(3, 2), (4,)], {}, "at least as many as the codes, 4; got 3"),
        ("quantize_levels", [(4, 2)], {"levels": (1, 5)}, "at least 2 .* each of 2 channels"),
        ("quantize_levels", [(4, 2)], {"levels": (5,)}, "each of 2 channels"),
    ],
)
def test_bad_input_is_named(backend, name, arrays, options, message):
    with pytest.raises(ValueError, match=message):
        call(backend, name, *map(np.zeros, arrays), **options)


@pytest.mark.parametrize(("option", "value"), [("decay", 1.0), ("smoothing", -1.0)])
def test_bad_rates_are_named(backend, option, value):
    state = (np.zeros((3, 2)), np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=f"`{option}`"):
        call(backend, "update_codebook", state, np.zeros(3), np.zeros((3, 2)), **{option: value})
