"""Truncated posteriors: exact where the sets are all states, a bound that only rises elsewhere."""

import numpy as np
import pytest
from oracles import all_codes, log_evidence, posterior
from truncated_zoo import (
    CAUSES,
    CAUSES_DATA,
    CAUSES_PROGRAM,
    NESTED_PROGRAM,
    NUM_DATA,
    REST_PROGRAM,
    SITES_PROGRAM,
    as_index,
    log_sum_exp,
    members_log_joint,
    rest_log_joint,
    rest_shared,
    some,
    table,
    truncated,
)
from zoo import gradient, normal

NUM_STATES = 2 ** len(CAUSES)
EXACT = {"causes": CAUSES_PROGRAM, "sites": SITES_PROGRAM}


def operators(shim):
    return shim.module("ops.evolution")


def assert_same(found, expected, **tolerance):
    np.testing.assert_allclose(found[0], expected[0], **tolerance)
    for name in expected[1]:
        np.testing.assert_allclose(found[1][name], expected[1][name], err_msg=name, **tolerance)


# All states: exact


@pytest.mark.parametrize("name", EXACT)
def test_sets_of_all_states_give_the_log_likelihood_and_its_gradient(shim, name):
    program = EXACT[name]
    sets = shim.Sets(program, int(np.prod(program.cardinalities)))

    def loss(p):
        return -log_sum_exp(program.log_joint(p, program.data)).sum()

    expected = loss(program.params), gradient(loss, program.params)
    assert_same(sets.step(truncated(shim)), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sets.loss(truncated(shim)), expected[0], rtol=1e-9)


def test_every_other_loss_is_exact_at_any_draw_of_an_exact_guide(shim):
    """log p(x, z) - log q(z) does not depend on z."""
    elbo = shim.module("infer.daps").DAPS_ELBO(3)
    sets = shim.Sets(CAUSES_PROGRAM, NUM_STATES)
    np.testing.assert_allclose(sets.loss(elbo), -log_evidence(table()).sum(), rtol=1e-9)


@pytest.mark.thrifty
def test_continuous_sites_beside_the_states_are_sampled_by_the_rest(shim):
    def loss(p):
        return -log_sum_exp(rest_log_joint(p, REST_PROGRAM.data)).sum() - rest_shared(p)

    expected = loss(REST_PROGRAM.params), gradient(loss, REST_PROGRAM.params)
    sets = shim.Sets(REST_PROGRAM, 2)
    assert_same(sets.step(truncated(shim)), expected, rtol=1e-9, atol=1e-12)
    drawn = sets.sites()
    assert drawn.keys() == {"shift", "c", "a"}
    q = posterior(rest_log_joint(REST_PROGRAM.params, REST_PROGRAM.data))
    chosen = np.take_along_axis(q, drawn["a"][0].astype(int)[None], 0)[0]
    np.testing.assert_allclose(np.exp(drawn["a"][1]), chosen, rtol=1e-9)


@pytest.mark.thrifty
def test_masked_latents_of_a_datum_count_as_one_state(shim):
    """They lie in a plate within the datum; and the guide's draws stay exact there."""
    p, data = NESTED_PROGRAM.params, NESTED_PROGRAM.data
    scores = NESTED_PROGRAM.log_joint(p, data)
    slack = normal(data["slack"], p["slope"][2])
    sets = shim.Sets(NESTED_PROGRAM, 4)
    expected = -log_evidence(scores).sum() - slack
    np.testing.assert_allclose(sets.step(truncated(shim))[0], expected, rtol=1e-9)
    ((words, log_density),) = (sets.sites()[name] for name in ["z"])
    index = as_index(words, (2, 2))
    q = np.take_along_axis(posterior(scores), index[None], 0)[0]
    np.testing.assert_allclose(log_density.sum(-1), np.log(q), rtol=1e-9)


def test_a_loop_over_states_gives_the_same(shim):
    sets = shim.Sets(CAUSES_PROGRAM, NUM_STATES, vectorize_particles=False)
    expected = shim.Sets(CAUSES_PROGRAM, NUM_STATES).step(truncated(shim))
    assert_same(sets.step(truncated(shim, sweeps=0)), expected, rtol=1e-9, atol=1e-12)


# Truncated: the renormalised posterior, a rising bound


def test_weights_are_the_posterior_renormalised_and_the_gap_its_missing_mass(shim):
    sets = shim.Sets(CAUSES_PROGRAM, np.int64(5))  # a count of NumPy's is a count
    values, weights, bound = sets.posterior()
    codes = np.moveaxis(sets.codes(), 0, 1)
    np.testing.assert_array_equal(values["z"], codes)
    scores = members_log_joint(sets)
    np.testing.assert_allclose(weights, posterior(scores), rtol=1e-9)
    mass = np.take_along_axis(posterior(table()), as_index(codes), 0).sum(0)
    np.testing.assert_allclose(log_evidence(table()) - bound, -np.log(mass), rtol=1e-9)
    np.testing.assert_allclose(sets.loss(truncated(shim)), -bound.sum(), rtol=1e-9)


EVOLVE = {
    "select-flip": lambda ops: ops.chain(ops.select(2), ops.flip(2)),
    "best-flip": lambda ops: ops.chain(ops.select(2, temperature=0.0), ops.flip(2)),
    "cross and flip": lambda ops: ops.union(ops.chain(ops.select(2), ops.cross()), ops.flip(1)),
}


@pytest.mark.parametrize("name", EVOLVE)
def test_the_bound_never_falls_and_states_stay_distinct(shim, name):
    elbo = truncated(shim, evolve=EVOLVE[name](operators(shim)), generations=2)
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    before = -sets.loss(elbo)
    old = as_index(sets.codes())
    for seed in range(5):
        loss, _ = sets.step(elbo, seed=seed)
        assert -loss >= before - 1e-9
        before = -loss
        index = as_index(sets.codes())
        assert all(len(set(row)) == 5 for row in index)
        shares = [len(set(new) - set(last)) / 5 for new, last in zip(index, old, strict=True)]
        np.testing.assert_allclose(elbo.info.replaced, np.mean(shares), rtol=1e-6)
        old = index
        np.testing.assert_allclose(-loss, log_evidence(members_log_joint(sets)).sum(), rtol=1e-9)


def test_evolution_finds_the_best_states(shim):
    """Flips of every latent of every member reach all states: the best remain."""
    evolve = operators(shim).flip(len(CAUSES))
    elbo = truncated(shim, evolve=evolve, sweeps=4)
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    sets.step(elbo)
    best = np.sort(table(), 0)[-5:]
    np.testing.assert_allclose(np.sort(members_log_joint(sets), 0), best, rtol=1e-9)


def test_neither_neighbours_nor_the_cut_into_minibatches_matter(shim):
    """At fixed proposals; and rows that are not in a minibatch keep their states."""
    elbo = truncated(shim, evolve=shim.flip_in_turn)
    whole, cut = shim.Sets(CAUSES_PROGRAM, 5), shim.Sets(CAUSES_PROGRAM, 5)
    whole.loss(elbo)
    cut.loss(elbo)
    start = whole.codes()
    cut.set_codes(start)
    loss, _ = whole.step(elbo)
    total = 0.0
    for rows in ([3, 0], [5, 1], [2, 4]):
        before = cut.codes()
        part, _ = cut.step(elbo, some(rows))
        total += part / 3  # a third of the data stand for all
        kept = np.setdiff1d(np.arange(NUM_DATA), rows)
        np.testing.assert_array_equal(cut.codes()[kept], before[kept])
    np.testing.assert_array_equal(cut.codes(), whole.codes())
    np.testing.assert_allclose(total, loss, rtol=1e-9)
    assert (whole.codes() != start).any()


def test_evaluation_and_no_sweeps_leave_the_sets(shim):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    sets.loss(truncated(shim))
    start = sets.codes()
    sets.loss(truncated(shim, sweeps=4))
    np.testing.assert_array_equal(sets.codes(), start)
    elbo = truncated(shim, sweeps=lambda step: step % 2 == 1)  # two M-steps per E-step
    sets.step(elbo)
    np.testing.assert_array_equal(sets.codes(), start)
    assert elbo.info.replaced == 0
    sets.posterior()
    sets.sites()
    np.testing.assert_array_equal(sets.codes(), start)
    sets.step(elbo)
    assert (sets.codes() != start).any()


def test_missing_pixels_leave_the_likelihood(shim):
    seen = np.random.default_rng(1).random((NUM_DATA, 3)) < 0.6
    data = CAUSES_DATA | {"seen": seen}
    changed = data | {"x": np.where(seen, data["x"], 7.0)}
    sets = shim.Sets(CAUSES_PROGRAM, NUM_STATES)
    expected = -log_evidence(table(data)).sum()
    np.testing.assert_allclose(sets.step(truncated(shim), data)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(sets.step(truncated(shim), changed)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_beta_weighs_the_rate(shim, beta):
    """q ∝ p(x|z)^(1/beta) p(z); the loss stays minus the ELBO, the gradient is the beta-ELBO's."""
    params = CAUSES_PROGRAM.params
    sets, elbo = shim.Sets(CAUSES_PROGRAM, NUM_STATES), truncated(shim, beta=beta)

    def scores(p):
        codes = all_codes(CAUSES)
        prior = (codes * p["prior"] - np.log1p(np.exp(p["prior"]))).sum(-1)[:, None]
        return (table(params=p) - prior) / beta + prior

    def beta_loss(p):
        return -beta * log_sum_exp(scores(p)).sum()

    loss, grads = sets.step(elbo)
    q = posterior(scores(params))
    elbo_of_q = (q * (table() - np.log(q))).sum()
    np.testing.assert_allclose(loss, -elbo_of_q, rtol=1e-9)
    assert_same((0.0, grads), (0.0, gradient(beta_loss, params)), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(elbo.info.ess, (1 / (q**2).sum(0)).mean(), rtol=1e-6)
    np.testing.assert_allclose(elbo.info.beta_elbo, -beta_loss(params) / NUM_DATA, rtol=1e-6)


# The guide as a program


@pytest.mark.thrifty
@pytest.mark.parametrize("name", EXACT)
def test_the_guide_samples_members_with_their_exact_log_density(shim, name):
    """Several sites are drawn jointly: their log-densities sum to log q."""
    program = EXACT[name]
    sets = shim.Sets(program, 5)
    _, weights, _ = sets.posterior()
    members = np.moveaxis(sets.codes(), 0, 1)
    weights = weights.reshape(5, -1)
    drawn = sets.sites(seed=1)
    values = [value for value, _ in drawn.values()]
    codes = np.concatenate([v.reshape(members.shape[1], -1) for v in values], -1)
    log_q = sum(log_density.reshape(-1) for _, log_density in drawn.values())
    same = (members == codes).all(-1)
    assert same.any(0).all()
    np.testing.assert_allclose(log_q, np.log((weights * same).sum(0)), rtol=1e-9, atol=1e-12)


def test_draws_follow_the_weights(shim):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    _, weights, _ = sets.posterior()
    draws = sets.predict(400)["z"].reshape(400, NUM_DATA, len(CAUSES))
    members = np.moveaxis(sets.codes(), 0, 1)
    counts = (draws[:, None] == members).all(-1).sum(0)
    assert (counts.sum(0) == 400).all()
    spread = np.sqrt(400 * weights * (1 - weights)) + 1
    assert (abs(counts - 400 * weights) < 5 * spread).all()
    assert (abs(counts - 400 / 5) > 5 * spread).any()  # and not any weights


@pytest.mark.thrifty
@pytest.mark.parametrize("batch_size", [None, 4])
def test_new_data_start_from_these_sets(shim, batch_size):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    start = sets.loss(truncated(shim))
    data = some([4, 0, 1, 3, 2, 5]) | {"rows": np.arange(NUM_DATA)}
    options = {} if batch_size is None else {"batch_size": batch_size}
    other = sets.for_data(data, num_sweeps=6, **options)
    best = np.sort(table(data), 0)[-5:]
    np.testing.assert_allclose(other.posterior()[2], log_evidence(best), rtol=1e-9)
    np.testing.assert_allclose(sets.loss(truncated(shim)), start)


def amortised(ppl, data):
    with ppl.plate("data", NUM_DATA, subsample=data["rows"]):
        logits = data["x"] @ ppl.param("weight", data).T
        ppl.sample("z", ppl.dist.Bernoulli(logits=99.0 * logits).to_event(1))


@pytest.mark.thrifty
def test_an_amortised_guide_proposes(shim):
    """Its draws are nearly sure here: they become members if they are good."""
    sets = shim.Sets(CAUSES_PROGRAM, 2)
    elbo = truncated(shim, evolve=sets.draws_of(amortised, 3))
    sets.loss(elbo)
    sure = (CAUSES_DATA["x"] @ CAUSES_PROGRAM.params["weight"].T > 0).astype(int)
    scores = np.take_along_axis(table(), as_index(sure)[None], 0)[0]
    worst = members_log_joint(sets).min(0)
    sets.step(elbo)
    found = (sets.codes() == sure[:, None]).all(-1).any(1)
    assert found[scores > worst + 1e-9].all()
    with_proposals = sets.for_data(CAUSES_DATA, proposals=amortised, num_sweeps=3)
    assert with_proposals.posterior()[2].shape == (NUM_DATA,)


# Bad input


def bad_model(kind):
    def model(ppl, data):
        with ppl.plate("data", len(data["x"])):
            if kind == "count":
                z = ppl.sample("z", ppl.dist.Poisson(1.0))
            else:
                z = ppl.sample("z", ppl.dist.Normal(0.0, 1.0))
            ppl.sample("x", ppl.dist.Normal(z[..., None], 1.0).to_event(1), obs=data["x"])

    return model


def global_model(ppl, data):
    z = ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.param("prior", data)).to_event(1))
    with ppl.plate("data", len(data["x"])):
        loc = z.sum(-1)[..., None, None]
        ppl.sample("x", ppl.dist.Normal(loc, 1.0).to_event(1), obs=data["x"])


BAD = {
    "too many states": ({"num_states": 17}, None, CAUSES_DATA, "`num_states`"),
    "no states": ({"num_states": 0}, None, CAUSES_DATA, "`num_states`"),
    "infinite support": ({}, bad_model("count"), CAUSES_DATA, "'z'.*no finite support"),
    "continuous": ({}, bad_model("normal"), CAUSES_DATA, "'z'.*`rest`"),
    "global": ({}, global_model, CAUSES_DATA, "'z'.*under the data plate"),
    "rows out of range": ({}, None, some([0, 1]) | {"rows": np.array([0, 6])}, "'data'.*from 0 to"),
    "another N": ({"num_data": 7}, None, CAUSES_DATA, "7 data.*size 6.*subsample"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(shim, name):
    options, model, data, message = BAD[name]

    def run():
        sets = shim.Sets(CAUSES_PROGRAM, **{"num_states": 5} | options, model=model)
        sets.loss(truncated(shim), data)

    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(
    "options", [{"generations": 0}, {"sweeps": -1}, {"beta": 0.0}, {"target_rate": -1.0}]
)
def test_bad_settings_are_named(shim, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        truncated(shim, **options)


def test_operators_of_the_wrong_shape_are_named(shim):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    with pytest.raises(ValueError, match="operator must return integer codes"):
        sets.step(truncated(shim, evolve=lambda *given: given[-1].codes[:, :1]))


def test_a_guide_without_sets_is_refused(shim):
    sets = shim.Sets(CAUSES_PROGRAM, 5)
    sets.guide = sets.model
    with pytest.raises(ValueError, match="TruncatedGuide"):
        sets.loss(truncated(shim))
