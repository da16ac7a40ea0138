"""Operators that ask the model: by the slope of the log joint, at the activity of the prior."""

import numpy as np
import pytest
from draws import random_codes, seeded
from hypothesis import given
from hypothesis import strategies as st
from proposals import flat_scores
from truncated_zoo import (
    CAUSES,
    CAUSES_DATA,
    CAUSES_PROGRAM,
    NUM_DATA,
    SITES_PROGRAM,
    members_log_joint,
    table,
    truncated,
)


def informed_flip(shim, num_children):
    return shim.module("infer").informed_flip(num_children)


@pytest.mark.thrifty
def test_informed_flips_take_the_steepest_way(shim):
    """A log joint that is linear in the codes: its slopes are exact, and far apart."""
    logits = np.array([500.0, -300.0, 400.0, -200.0])
    params = {"prior": logits, "weight": 0.0 * CAUSES_PROGRAM.params["weight"]}
    program = CAUSES_PROGRAM._replace(params=CAUSES_PROGRAM.params | params)
    sets = shim.Sets(program, 1, probs=0.5)
    elbo = truncated(shim, evolve=informed_flip(shim, 1))
    sets.loss(elbo)  # makes the sets
    for seed in range(len(CAUSES)):
        codes = sets.codes()[:, 0].astype(int)
        gains = np.where(codes == (logits > 0), 0.0, abs(logits))
        steepest = (gains == gains.max(-1, keepdims=True)) & (gains > 0)
        sets.step(elbo, seed=seed)
        np.testing.assert_array_equal(sets.codes()[:, 0], codes ^ steepest)
    np.testing.assert_array_equal(sets.codes(), np.broadcast_to(logits > 0, (NUM_DATA, 1, 4)))


def test_informed_flips_find_the_best_states(thrifty_shim):
    """With every latent of every member among the children, whatever their order."""
    shim = thrifty_shim
    elbo = truncated(shim, evolve=informed_flip(shim, 2 * len(CAUSES)), sweeps=4)
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    sets.step(elbo)
    best = np.sort(table(), 0)[-5:]
    np.testing.assert_allclose(np.sort(members_log_joint(sets), 0), best, rtol=1e-9)


def test_prior_flips_aim_at_the_activity_of_the_prior(shim):
    """A prior of no latents on, or of all: flips go that way alone, whatever the data call for."""
    evolve = shim.module("infer").prior_flip(2, 1 / len(CAUSES))
    elbo, data = truncated(shim, evolve=evolve), CAUSES_DATA | {"x": 1e3 * CAUSES_DATA["x"]}
    for logit in (-40.0, 40.0):
        prior = np.full(len(CAUSES), logit)
        params = {"prior": prior, "weight": 1e3 * CAUSES_PROGRAM.params["weight"]}
        program = CAUSES_PROGRAM._replace(params=CAUSES_PROGRAM.params | params)
        sets = shim.Sets(program, 1, probs=0.5)
        sets.loss(elbo, data)  # makes the sets
        has_moved = False
        for seed in range(6):
            before = sets.codes()[:, 0].astype(int)
            sets.step(elbo, data, seed=seed)
            change = np.sign(logit) * (sets.codes()[:, 0].astype(int) - before)
            possible = (before != (logit > 0)).any(-1)
            assert (change[possible] >= 0).all()
            has_moved = has_moved or change[possible].any()
        assert has_moved
    with pytest.raises(ValueError, match="`rate` is a share of the latents"):
        shim.module("infer").prior_flip(1, 0.0)


def test_informed_flips_say_what_they_need(thrifty_shim):
    shim = thrifty_shim
    with pytest.raises(ValueError, match="`num_children` must be 1 or more; got 0"):
        informed_flip(shim, 0)
    sets = shim.Sets(SITES_PROGRAM, 5)
    with pytest.raises(ValueError, match="`informed_flip` needs latents of the codes 0 and 1"):
        sets.step(truncated(shim, evolve=informed_flip(shim, 1)))


# --- how they find it: by the population's context


def bare(evolution):
    """A user's operator, whose populations know of no context."""

    def operator(*arguments):
        codes, scores, cardinalities = (
            getattr(arguments[-1], name) for name in ("codes", "scores", "cardinalities")
        )
        return evolution.Population(codes, scores, cardinalities)

    return operator


LEAVES = {
    "select": lambda e: e.select(2),
    "flip": lambda e: e.flip(1),
    "sparse_flip": lambda e: e.sparse_flip(1, 0.5, 1.0),
    "cross": lambda e: e.cross(),
    "codes": lambda e: lambda *arguments: arguments[-1].codes,
    "bare": bare,
}


def composed(inner):
    return st.tuples(st.sampled_from(["chain", "union"]), st.lists(inner, min_size=1, max_size=3))


def build(evolution, tree, seen):
    """An operator that notes the context of each population that a part of it is given."""
    if isinstance(tree, str):
        operator = LEAVES[tree](evolution)
    else:
        parts = [build(evolution, part, seen) for part in tree[1]]
        operator = getattr(evolution, tree[0])(*parts)

    def watched(*arguments):
        seen.append(arguments[-1].context)
        return operator(*arguments)

    return watched


def contexts(backend, tree, context):
    """Those of all populations on the way through an operator, alone and by `propose`."""
    evolution, seen = backend.module("ops.evolution"), []
    operator = build(evolution, tree, seen)

    def run(*arguments):
        *key, codes, scores = arguments
        population = evolution.Population(codes, scores, (2,) * 4, context=context)
        for found in (operator(*key, population), evolution.propose(*key, operator, population)):
            seen.append(getattr(found, "context", context))  # of codes the next one makes it
        return found.codes

    codes = random_codes((2,) * 4, 2, 3)
    arrays = backend.asarray(codes), backend.asarray(flat_scores(codes))
    if backend.name == "pyro":
        run(*arrays)
    else:
        import jax

        jax.eval_shape(run, jax.random.key(0), *arrays)
    return seen


@given(tree=st.recursive(st.sampled_from(sorted(LEAVES)), composed, max_leaves=5))
def test_every_composition_passes_the_context_on(backend, tree):
    context = object()
    found = contexts(backend, tree, context)
    if tree == "bare":  # called alone it has nobody to pass it on
        assert [each is context for each in found] == [True, True, False, True]
    else:
        assert all(each is context for each in found)
    assert contexts(backend, tree, None) == [None] * len(found)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("informed_flip", [1]), ("prior_flip", [1, 0.5]), ("draws_of", [int, 1])],
)
def test_what_asks_the_model_says_that_it_needs_an_e_step(backend, name, arguments):
    operator = getattr(backend.module("infer"), name)(*arguments)
    codes = random_codes((2,) * 4, 2, 3)
    arrays = backend.asarray(codes), backend.asarray(flat_scores(codes))
    population = backend.module("ops.evolution").Population(*arrays, (2,) * 4)
    with pytest.raises(ValueError, match=rf"{name}\(\.\.\.\) proposes inside of an E-step"):
        seeded(backend, operator, 0, population)
