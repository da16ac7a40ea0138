"""What an operator of `ops.sets.evolution` proposes, compiled once for each operator."""

import functools

import numpy as np
from draws import seeded

MIXED = (3, 2, 1, 5, 4)


@functools.cache
def compiled(backend, make, cardinalities):
    """From a seed and arrays to the fields of what an operator proposes."""
    evolution = backend.module("ops.sets")
    operator = make(evolution)

    def run(*arrays):
        key, (codes, scores, hashes) = arrays[:-3], arrays[-3:]
        population = evolution.Population(codes, scores, cardinalities, hashes)
        proposed = evolution.propose(*key, operator, population)
        return proposed.codes, proposed.scores, proposed.hashes

    return backend.jit(run)


def propose(backend, make, codes, scores, cardinalities, seed=0):
    codes, scores = backend.asarray(codes), backend.asarray(scores)
    states = backend.module("ops.sets")
    hashes = states.hash_states(codes, states.zobrist_table(cardinalities))
    found = seeded(backend, compiled(backend, make, cardinalities), seed, codes, scores, hashes)
    return [np.asarray(each) for each in found]


def flat_scores(codes):
    return np.zeros(codes.shape[:2], np.float32)
