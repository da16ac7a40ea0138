"""Operators of evolution propose what they say, as often as they say."""

import functools
import itertools
import math

import numpy as np
import oracles
import pytest
from draws import random_codes, seeded, z_scores
from proposals import MIXED, flat_scores, propose


def test_draws_that_leave_no_choice(backend):
    """A binary latent has one other code, one of a single code none; two of two are both."""
    module, asarray = backend.module("ops.sets.states"), backend.asarray
    codes, latents = asarray(np.array([0, 1, 1], np.uint8)), asarray(np.array([0, 1, 0]))
    for cardinalities, expected in [((2, 2), [1, 0, 0]), ((1, 1), [0, 0, 0]), ((2, 1), [1, 0, 0])]:
        found = seeded(backend, module.other_codes, 0, codes, latents, cardinalities)
        np.testing.assert_array_equal(np.asarray(found), expected)
    device = [codes.device] if backend.name == "pyro" else []
    for count, expected in [(2, [1, 3]), (4, [1, 3, 1, 3])]:
        found = seeded(backend, module.distinct_latents, 0, count, [1, 3], (2, 5), *device)
        expected = np.array(expected)[:, None, None] + np.zeros((2, 5), int)
        np.testing.assert_array_equal(np.asarray(found), expected)
    scores = asarray(np.array([[0.5, math.nan], [-math.inf, 2.0]], np.float32))
    found = seeded(backend, module.perturb, 0, scores, 0.0)
    np.testing.assert_array_equal(np.asarray(found), [[0.5, -math.inf], [-math.inf, 2.0]])


# --- select ---

NUM_DRAWS = 20_000
SCORES = np.array([0.0, -1.0, 0.5, -3.0], np.float32)


def selected(backend, num_parents, temperature, scores=SCORES, num_data=NUM_DRAWS):
    """Places of the parents of many data with equal scores."""
    codes = np.broadcast_to(np.arange(len(scores), dtype=np.uint8)[:, None, None], (4, num_data, 1))
    scores = np.broadcast_to(scores[:, None], codes.shape[:2])
    make = make_select(num_parents, temperature)
    parents, found, hashes = propose(backend, make, codes.copy(), scores.copy(), (4,))
    np.testing.assert_array_equal(found, scores[parents[..., 0], 0])  # NaN equals NaN
    np.testing.assert_array_equal(hashes, parents[..., 0])
    return parents[..., 0]


@functools.cache
def make_select(num_parents, temperature):
    return lambda evolution: evolution.select(num_parents, temperature)


def pair_probs(scores, temperature):
    """Chances of ordered pairs drawn without replacement."""
    probs = oracles.softmax(scores / temperature)
    pairs = itertools.permutations(range(len(scores)), 2)
    return np.array([probs[i] * probs[j] / (1 - probs[i]) for i, j in pairs])


def pair_draws(parents):
    pairs = np.array(list(itertools.permutations(range(4), 2)))
    return (parents.T[:, None] == pairs).all(-1)


def test_parents_are_drawn_without_replacement_by_their_weights(backend):
    draws = pair_draws(selected(backend, 2, 0.7))
    assert z_scores(draws, pair_probs(SCORES, 0.7)).max() < 5
    assert z_scores(draws, pair_probs(SCORES, 1.0)).max() > 5  # negative control


def test_infinite_temperature_selects_all_alike(backend):
    scores = np.array([0.0, -math.inf, 100.0, math.nan], np.float32)
    draws = pair_draws(selected(backend, 2, math.inf, scores))
    assert z_scores(draws, np.full(12, 1 / 12)).max() < 5


def test_temperature_zero_selects_the_best(backend):
    assert (selected(backend, 2, 0.0, num_data=10).T == [2, 0]).all()


def test_impossible_states_are_parents_only_where_there_is_no_other(backend):
    scores = np.array([math.nan, -1.0, -math.inf, 3.0], np.float32)
    assert (np.sort(selected(backend, 2, 1.0, scores), axis=0).T == [1, 3]).all()
    assert (np.sort(selected(backend, 4, 1.0, scores, num_data=10), axis=0).T == range(4)).all()


def test_selection_of_one_datum_ignores_its_neighbours(backend):
    """Weights normalised over a batch would give all parents to one datum, or one state."""
    codes = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None], (4, NUM_DRAWS, 1)).copy()
    scores = np.broadcast_to(SCORES[:, None], codes.shape[:2]) + 50.0 * (np.arange(NUM_DRAWS) % 2)
    make = make_select(1, 1.0)
    parents, _, _ = propose(backend, make, codes, scores.astype(np.float32), (4,))
    for half in (parents[0, ::2], parents[0, 1::2]):
        assert z_scores(half == np.arange(4), oracles.softmax(SCORES)).max() < 5


# --- flip ---


@functools.cache
def make_flip(num_children):
    return lambda evolution: evolution.flip(num_children)


def changes(backend, codes, cardinalities, num_children):
    """Children ``(C, P, B, H)``, and where they differ from their parents."""
    make = make_flip(num_children)
    children, _, hashes = propose(backend, make, codes, flat_scores(codes), cardinalities)
    states = backend.module("ops.sets")
    table = states.zobrist_table(cardinalities)
    in_full = states.hash_states(backend.asarray(children), table)
    np.testing.assert_array_equal(hashes, np.asarray(in_full))
    children = children.reshape(num_children, *codes.shape)
    assert (children < np.array(cardinalities)).all()
    return children, children != codes


@pytest.mark.parametrize(
    ("cardinalities", "num_children"), [((2,) * 70, 9), ((3, 2, 1, 5, 300), 10)]
)
def test_each_child_changes_one_latent_and_siblings_others(backend, cardinalities, num_children):
    codes = random_codes(cardinalities, 3, 50)
    _, changed = changes(backend, codes, cardinalities, num_children)
    assert (changed.sum(-1) == 1).all()
    per_latent = changed.sum(0)[..., np.array(cardinalities) > 1]
    even = num_children / per_latent.shape[-1]  # over again once all are through
    assert per_latent.min() >= math.floor(even)
    assert per_latent.max() <= math.ceil(even)


def test_every_set_of_latents_and_every_other_code_is_equally_probable(backend):
    cardinalities = (2, 4, 1, 3, 2)
    codes = np.broadcast_to(np.array([1, 2, 0, 0, 0], np.uint8), (1, NUM_DRAWS, 5)).copy()
    children, changed = changes(backend, codes, cardinalities, 2)
    pairs = list(itertools.combinations([0, 1, 3, 4], 2))
    draws = np.stack([changed[:, 0, :, pair].any(1).all(0) for pair in map(list, pairs)], axis=-1)
    assert z_scores(draws, np.full(6, 1 / 6)).max() < 5
    moved = children[..., 1][changed[..., 1]]
    assert z_scores(moved[:, None] == np.arange(4), np.array([1, 1, 0, 1]) / 3).max() < 5


def test_latents_of_one_code_have_nowhere_to_go(backend):
    codes = np.zeros((2, 3, 2), np.uint8)
    children, _, _ = propose(backend, make_flip(3), codes, flat_scores(codes), (1, 1))
    assert children.shape == (6, 3, 2)
    assert not children.any()


# --- sparse flips ---


def sparse_probs(backend, active, num_latents, rate, num_active):
    flip_probs = backend.module("ops.sets").flip_probs
    found = flip_probs(backend.asarray(active), num_latents, rate, num_active)
    return [np.asarray(each, np.float64) for each in found]


@pytest.mark.parametrize(("rate", "num_active"), [(0.2, 4.0), (0.1, 2.5), (0.5, 10.0)])
def test_sparse_flips_meet_both_their_means(backend, rate, num_active):
    """E[flips] = H p and E[|child|] = c; if c is further than H p, H p towards it."""
    size, active = 20, np.arange(1, 20)
    up, down = sparse_probs(backend, active, size, rate, num_active)
    assert min(up.min(), down.min()) >= 0
    assert max(up.max(), down.max()) <= 1
    flips, child = (
        (size - active) * up + active * down,
        active + (size - active) * up - active * down,
    )
    possible = np.abs(num_active - active) <= size * rate
    assert possible.any()
    np.testing.assert_allclose(flips, size * rate, rtol=1e-5)
    np.testing.assert_allclose(child[possible], num_active, rtol=1e-5)
    step = np.sign(num_active - active) * size * rate
    np.testing.assert_allclose((child - active)[~possible], step[~possible], rtol=1e-5)


def test_sparse_flips_are_the_published_ones(backend):
    size, rate, target, active = 20, 0.2, 4.0, np.arange(1, 8)
    excess = size * rate - (target - active)
    ratio = (size - active) * excess / ((target - active + size * rate) * active)
    up = size * rate / (size + (ratio - 1) * active)
    found = sparse_probs(backend, active, size, rate, target)
    np.testing.assert_allclose(found, [up, ratio * up], rtol=1e-5)


def test_sparse_flips_by_hand(backend):
    """Of 4 latents a quarter flips, one; 1, 3 and 0 of them are on where 2 should be."""
    up, down = sparse_probs(backend, np.array([1, 3, 0]), 4, 0.25, 2.0)
    np.testing.assert_allclose(up, [2 / 6, 0.0, 2 / 8], rtol=1e-6)
    np.testing.assert_allclose(down, [0.0, 2 / 6, 0.0], rtol=1e-6)


def test_sparse_flips_have_something_to_do_at_the_ends(backend):
    """No latent on: half the flips it would have. More flips wanted than latents: all of them."""
    up, down = sparse_probs(backend, np.array([0, 20]), 20, 0.2, 4.0)
    np.testing.assert_allclose(up, [8 / 40, 0.0], rtol=1e-5)
    np.testing.assert_allclose(down, [0.0, 8 / 40], rtol=1e-5)
    up, down = sparse_probs(backend, np.array([1, 19]), 20, 1.0, 19.0)
    np.testing.assert_allclose([up[1], down[0]], 1.0)


def make_sparse(evolution):
    return evolution.sparse_flip(2, 0.2, 4.0)


def test_sparse_flips_are_drawn_at_their_probabilities(backend):
    parents = np.zeros((2, NUM_DRAWS, 20), np.uint8)
    parents[0, :, :3], parents[1, :, :6] = 1, 1
    children, _, _ = propose(backend, make_sparse, parents, flat_scores(parents), (2,) * 20)
    flips = children.reshape(2, *parents.shape) != parents
    up, down = sparse_probs(backend, np.array([3, 6]), 20, 0.2, 4.0)
    probs = np.where(parents[:, 0] == 1, down[:, None], up[:, None])
    for draws in flips.swapaxes(1, 2):  # of one child
        assert z_scores(draws, probs).max() < 5
        assert z_scores(draws, probs[::-1]).max() > 5  # negative control


# --- crossover ---


def make_cross(evolution):
    return evolution.cross()


def test_crossover_swaps_the_tails_of_every_pair(backend):
    codes = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 300, 5), np.uint8)
    children, _, _ = propose(backend, make_cross, codes, flat_scores(codes), (3,) * 5)
    ours, theirs = children.reshape(2, 3, 300, 5)
    pairs = np.array(list(itertools.combinations(range(3), 2)))[:, None]
    np.testing.assert_array_equal(
        ours.astype(int) + theirs, pairs.sum(-1, keepdims=True) + 0 * ours
    )
    cuts = (ours == pairs[..., :1]).sum(-1)
    expected = np.where(np.arange(5) < cuts[..., None], pairs[..., :1], pairs[..., 1:])
    np.testing.assert_array_equal(ours, expected)
    assert set(cuts.flatten().tolist()) == {1, 2, 3, 4}  # a child takes from both parents
    draws = cuts.flatten()[:, None] == np.arange(1, 5)
    assert z_scores(draws, np.full(4, 1 / 4)).max() < 5


# --- composition ---


def test_children_pass_through_a_chain_without_scores(backend):
    seen = []

    def spy(*key_and_population):
        population = key_and_population[-1]
        seen.append((tuple(population.codes.shape), population.cardinalities))  # no tracers
        return population.codes

    def make(evolution):
        return evolution.chain(spy, evolution.select(4), evolution.flip(2), spy)

    codes = random_codes(MIXED, 6, 3)
    _, scores, _ = propose(backend, make, codes, flat_scores(codes), MIXED)
    assert seen == [((6, 3, 5), MIXED), ((8, 3, 5), MIXED)]
    assert np.isnan(scores).all()


def test_a_union_is_its_parts_in_a_row(backend):
    def make(evolution):
        return evolution.union(evolution.select(2, 0.0), lambda *a: a[-1].codes, evolution.flip(1))

    codes = random_codes(MIXED, 6, 3)
    scores = np.broadcast_to(np.arange(6.0)[:, None], (6, 3)).copy()
    found, _, _ = propose(backend, make, codes, scores, MIXED)
    assert found.shape == (14, 3, 5)
    np.testing.assert_array_equal(found[:8], np.concatenate([codes[[5, 4]], codes]))
    assert ((found[8:] != codes).sum(-1) == 1).all()


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: e.select(0), "`num_parents` must be 1 or more; got 0"),
        (lambda e: e.select(3, -1.0), "`temperature` must be from 0 to inf; got -1.0"),
        (lambda e: e.select(3, math.nan), "`temperature` must be from 0 to inf; got nan"),
        (lambda e: e.flip(0), "`num_children` must be 1 or more"),
        (lambda e: e.sparse_flip(0, 0.1, 3.0), "`num_children` must be 1 or more"),
        (lambda e: e.sparse_flip(2, 0.0, 3.0), "`rate` is a share of the latents"),
        (lambda e: e.chain(), "`operators` must be one or more"),
        (lambda e: e.union(), "`operators` must be one or more"),
    ],
)
def test_bad_settings_are_named_at_once(backend, make, message):
    with pytest.raises(ValueError, match=message):
        make(backend.module("ops.sets"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: e.select(3), "`num_parents` must be at most the number of states, 2; got 3"),
        (
            lambda e: e.sparse_flip(2, 0.1, 1.0),
            r"`sparse_flip` needs latents of 2 codes .* flip\(\)",
        ),
        (lambda e: e.chain(e.select(1), e.cross()), "`cross` needs 2 parents or more; got 1"),
        (lambda e: lambda *a: a[-1].codes[:, :1], r"\(children, 3 data, 5 latents\); got"),
        (lambda e: lambda *a: a[-1].codes / 2, "an operator must return integer codes"),
    ],
)
def test_operators_that_do_not_fit_the_population_are_named(backend, make, message):
    codes = random_codes(MIXED, 2, 3)
    with pytest.raises(ValueError, match=message):
        propose(backend, make, codes, flat_scores(codes), MIXED)
