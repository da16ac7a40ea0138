"""Sets evolve as Python sets do: members stay distinct and the bound never falls."""

import functools
import math

import numpy as np
import oracles
from draws import as_codes, seeded
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from proposals import MIXED, flat_scores, propose


def halve(evolution):
    """A user's operator: a plain function from a population to codes."""
    return lambda *arguments: arguments[-1].codes // 2


# Made once for each backend, since JAX compiles each.
OPERATORS = {
    "greedy flips": lambda e: e.chain(e.select(3, temperature=0.5), e.flip(2)),
    "crossed": lambda e: e.chain(e.select(3), e.cross()),
    "union": lambda e: e.union(e.chain(e.select(2), e.cross(), e.flip(2)), e.flip(1)),
    "a user's": halve,
}


class Evolution(RuleBasedStateMachine):
    """Three data with tables of log joints: ties, impossible states and NaNs among them."""

    backend = None
    num_states, num_data = 6, 3

    @initialize(seed=st.integers(0, 50))
    def start(self, seed):
        rng = np.random.default_rng(seed)
        values = [-math.inf, math.nan, *(np.arange(20) / 4)]
        spaces = (np.prod(MIXED), self.num_data)
        self.table = rng.choice(values, size=spaces, p=[0.1, 0.05] + [0.85 / 20] * 20)
        random_states = self.backend.module("ops.sets").random_states
        drawn = seeded(self.backend, random_states, seed, self.num_states, self.num_data, MIXED)
        self.codes = np.asarray(drawn)
        self.scores = self.score(self.codes)

    def score(self, codes):
        index = np.ravel_multi_index(np.moveaxis(codes.astype(int), -1, 0), MIXED)
        return np.take_along_axis(self.table, index, axis=0)

    @rule(name=st.sampled_from(sorted(OPERATORS)), seed=st.integers(0, 10_000))
    def evolve(self, name, seed):
        asarray, states = self.backend.asarray, self.backend.module("ops.sets")
        codes, _, hashes = propose(
            self.backend, OPERATORS[name], self.codes, self.scores, MIXED, seed
        )
        table = states.zobrist_table(MIXED)
        both = asarray(np.concatenate([self.codes, codes]))
        in_full = np.asarray(states.hash_states(both, table))
        np.testing.assert_array_equal(hashes, in_full[self.num_states :])
        first = np.asarray(states.first_occurrences(asarray(in_full)))
        scores = np.where(first[self.num_states :], self.score(codes), -math.inf)
        arrays = map(asarray, (self.codes, self.scores, codes, scores))
        merged = merge_best(self.backend)(*arrays)
        survivors = [np.asarray(each) for each in merged]
        self.check(codes, *survivors)
        self.codes, self.scores = survivors[:2]

    def check(self, children, codes, scores, origins):
        np.testing.assert_array_equal(scores, self.score(codes))
        # In order, since sums of the same numbers in another order differ in their last bits.
        before, after = (np.sort(ranked(each), axis=0) for each in (self.scores, scores))
        assert (after >= before).all()
        assert (oracles.log_sum_exp(after) >= oracles.log_sum_exp(before)).all()
        for datum in range(self.num_data):
            old, new, offered = (as_set(each[:, datum]) for each in (self.codes, codes, children))
            assert len(new) == self.num_states
            assert new <= old | offered
            rank = {z: self.rank(z, datum) for z in old | offered}
            best = sorted(rank.values(), reverse=True)[: self.num_states]
            assert sorted((rank[z] for z in new), reverse=True) == best
            gained, lost = ([rank[z] for z in each] for each in (new - old, old - new))
            assert all(up > down for up in gained for down in lost)  # ties keep the older
            newcomers = origins[:, datum] >= self.num_states
            assert as_set(codes[newcomers, datum]) == new - old
            assert np.isfinite(scores[newcomers, datum]).all()

    def rank(self, z, datum):
        return ranked(self.table[np.ravel_multi_index(z, MIXED), datum])


def ranked(scores):
    return np.where(np.isnan(scores), -math.inf, scores)


def as_set(codes):
    return {tuple(z) for z in codes.tolist()}


@functools.cache
def merge_best(backend):
    return backend.jit(backend.module("ops.sets").merge_best)


def test_ranking_by_hand(backend):
    """Ties go to the first, and NaN comes last."""
    sets, asarray = backend.module("ops.sets"), backend.asarray
    scores = np.array([[1.0, 0.0], [3.0, math.nan], [math.nan, 2.0], [3.0, -1.0]])
    states = np.arange(8, dtype=np.uint8).reshape(4, 2, 1)
    index = np.array([[1, 2], [3, 0], [0, 3]])
    kept = sets.keep_best(asarray(states), asarray(scores), 3)
    np.testing.assert_array_equal(np.asarray(kept.origins), index)
    np.testing.assert_array_equal(np.asarray(kept.states)[..., 0], [[2, 5], [6, 1], [0, 7]])
    np.testing.assert_array_equal(np.asarray(kept.scores), [[3, 2], [3, 0], [1, -1]])
    taken = np.asarray(sets.take_states(asarray(states), asarray(index)))
    np.testing.assert_array_equal(taken, np.asarray(kept.states))
    merged = merge_best(backend)(
        *map(asarray, (states[:2], scores[:2], states[2:], np.array([[-math.inf, 2], [3, 0]])))
    )
    np.testing.assert_array_equal(np.asarray(merged.origins), [[1, 2], [3, 0]])
    np.testing.assert_array_equal(np.asarray(merged.states)[..., 0], [[2, 5], [6, 1]])
    np.testing.assert_array_equal(np.asarray(merged.scores), [[3, 2], [3, 0]])
    found = backend.module("ops.sets.ranking").without_nan(asarray(scores[:, 0]))
    np.testing.assert_array_equal(np.asarray(found), [1, 3, -math.inf, 3])


def test_sets_evolve_as_python_sets_do(backend):
    machine = type("Machine", (Evolution,), {"backend": backend})
    # Shrinking would take minutes; a red run is red again, and its first failure small enough.
    few = settings(max_examples=10, stateful_step_count=8, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=few)


def test_a_full_set_meets_nothing_new(backend):
    codes = as_codes(oracles.all_codes(MIXED), MIXED)[:, None]
    children, _, _ = propose(backend, OPERATORS["union"], codes, flat_scores(codes), MIXED)
    states = backend.module("ops.sets")
    both = backend.asarray(np.concatenate([codes, children]))
    first = states.first_occurrences(states.hash_states(both, states.zobrist_table(MIXED)))
    assert np.asarray(first)[:, 0].tolist() == [True] * len(codes) + [False] * len(children)
