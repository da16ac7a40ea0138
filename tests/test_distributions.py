"""Distributions over codes: exact probabilities, exact draws at the edges, cheap particles."""

import itertools

import numpy as np
import pytest
from oracles import log_prob_of_codes


def functions(backend):
    return backend.module("distributions")


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exceeds_chi_square(counts, probs):
    """Whether counts are too far from probs, by Wilson and Hilferty's normal quantile."""
    expected = counts.sum() * probs
    statistic, dof = ((counts - expected) ** 2 / expected).sum(), len(probs) - 1
    cube = (statistic / dof) ** (1 / 3)
    z_score = (cube - (1 - 2 / (9 * dof))) / np.sqrt(2 / (9 * dof))
    return z_score > 4.75  # the normal tail of 1e-6


def test_uniforms_inside_each_step_give_its_code(backend):
    logits = np.random.default_rng(0).normal(size=(5, 3, 7))
    upper = softmax(logits).cumsum(-1)
    middles = upper - softmax(logits) / 2
    uniforms = np.moveaxis(middles, -1, 0)
    drawn = functions(backend).sample_codes(backend.asarray(logits), backend.asarray(uniforms))
    np.testing.assert_array_equal(np.asarray(drawn), np.arange(7)[:, None, None] + np.zeros((5, 3)))


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_impossible_codes_are_never_drawn(backend, uniform):
    logits = np.random.default_rng(1).normal(size=(2000, 300)).astype(np.float32)
    logits[:, :5] = logits[:, -5:] = logits[:, 100:110] = -np.inf
    uniforms = np.full((1, 2000), uniform, np.float32)
    drawn = functions(backend).sample_codes(backend.asarray(logits), backend.asarray(uniforms))
    drawn = np.asarray(drawn)[0]
    assert np.all((drawn == 5) if uniform == 0 else (drawn >= 250) & (drawn < 295))
    # Negative control: the textbook rule, first step at or above u, takes code 0 at u = 0,
    # and finds none where rounding leaves the last step below u.
    naive = (softmax(logits).cumsum(-1) >= uniform).argmax(-1)
    assert np.any(np.isneginf(logits[np.arange(2000), naive]))


def test_nan_logits_give_a_valid_index(backend):
    logits = backend.asarray(np.full((2, 4), np.nan))
    drawn = functions(backend).sample_codes(logits, backend.asarray(np.full((1, 2), 0.5)))
    assert np.all((np.asarray(drawn) >= 0) & (np.asarray(drawn) < 4))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_categorical_scores_particles_on_the_left(lab, lead):
    rng = np.random.default_rng(2)
    logits, codes = rng.normal(size=(4, 3, 5)), rng.integers(5, size=(*lead, 4, 3))
    found = lab.module("distributions").Categorical(logits=lab.asarray(logits))
    expected = log_prob_of_codes(logits, codes)
    np.testing.assert_allclose(lab.numpy(found.log_prob(lab.asarray(codes))), expected, rtol=1e-12)


def test_codes_of_another_batch_are_refused(lab):
    logits, codes = lab.asarray(np.zeros((4, 3, 5))), lab.asarray(np.zeros((3, 4), int))
    with pytest.raises(ValueError, match=r"(?i)broadcast"):
        lab.module("distributions").Categorical(logits=logits).log_prob(codes)


def stock_and_ours(lab, **arguments):
    """NumPyro or Pyro's own categorical and this package's."""
    arguments = {key: lab.asarray(value) for key, value in arguments.items()}
    classes = lab.stock.Categorical, lab.module("distributions").Categorical
    return [family(**arguments) for family in classes]


def close(lab, found, expected, rtol=1e-12):
    np.testing.assert_allclose(lab.numpy(found), lab.numpy(expected), rtol=rtol, atol=1e-12)


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("batch", "expanded", "value"),
    [
        ((4, 3), (4, 3), (4, 3)),
        ((4, 3), (4, 3), (6, 4, 3)),
        ((4, 3), (5, 4, 3), (5, 4, 3)),
        ((1, 3), (4, 3), (4, 3)),
        ((3,), (2, 4, 3), (7, 2, 4, 3)),
        ((4, 1), (5, 4, 3), (5, 4, 3)),
        ((), (3,), (2, 3)),
        ((4, 3), (4, 3), (1, 3)),
        ((4, 3), (4, 3), ()),
        ((4, 3), (4, 3), (6, 1, 1)),
    ],
)
def test_categorical_scores_as_stock(lab, batch, expanded, value):
    rng = np.random.default_rng(0)
    array, codes = rng.normal(size=(*batch, 5)), lab.asarray(np.array(rng.integers(5, size=value)))
    theirs, ours = (d.expand(expanded) for d in stock_and_ours(lab, logits=array))
    close(lab, ours.log_prob(codes), theirs.log_prob(codes))
    close(lab, ours.entropy(), theirs.entropy())
    assert lab.draw(ours, (2,)).shape == (2, *expanded)
    weights = lab.asarray(rng.normal(size=ours.log_prob(codes).shape))

    def weighted(family):
        return lambda logits: (
            weights * family(logits=logits).expand(expanded).log_prob(codes)
        ).sum()

    families = lab.module("distributions").Categorical, lab.stock.Categorical
    found, wanted = (lab.gradient(weighted(family), array) for family in families)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_categorical_from_probs_and_its_support(lab):
    theirs, ours = stock_and_ours(lab, probs=np.array([[0.2, 0.8], [0.5, 0.5]]))
    for expand in (True, False):
        codes, wanted = (d.enumerate_support(expand=expand) for d in (ours, theirs))
        close(lab, ours.log_prob(codes), theirs.log_prob(wanted))
    with lab.refused("support"):
        ours.log_prob(lab.asarray(np.array([0, 2])))


def test_logits_of_minus_infinity_rule_codes_out(lab):
    logits = np.array([[0.0, -np.inf, 1.0], [-np.inf, -np.inf, 2.0]])
    ours = lab.module("distributions").Categorical(logits=lab.asarray(logits))
    draws = lab.numpy(lab.draw(ours, (1000,)))
    assert set(draws[:, 0]) == {0, 2}
    assert set(draws[:, 1]) == {2}


def test_categorical_draws_are_independent_across_all_expanded_dims(lab):
    probs = np.array([0.05, 0.25, 0.3, 0.4])
    one = lab.module("distributions").Categorical(probs=lab.asarray(probs)).expand((1,))
    draws = lab.numpy(lab.draw(one.expand((200, 300)), (1,))).reshape(-1)
    pairs = np.bincount(4 * draws[:-1] + draws[1:], minlength=16)
    assert not exceeds_chi_square(pairs, np.outer(probs, probs).ravel())
    wrong = np.array([0.05, 0.25, 0.28, 0.42])  # negative control
    assert exceeds_chi_square(pairs, np.outer(wrong, wrong).ravel())


def autoregressive(lab, num_latents=3, num_codes=4, batch=(2,)):
    key = lab.name, num_latents, num_codes
    context = lab.asarray(np.random.default_rng(3).normal(size=(*batch, 5, 8)))
    if key not in NETWORKS:  # JAX compiles each but once
        net = lab.module("nets").CausalTransformer(
            num_latents, num_codes, embed_dim=8, num_heads=2, num_layers=1
        )
        codes = lab.asarray(np.zeros((1, num_latents), int))
        NETWORKS[key] = lab.network(net, codes, lab.asarray(np.zeros((1, 5, 8))))
    return lab.module("distributions").AutoregressiveCategorical(NETWORKS[key], context)


NETWORKS = {}
ALL_CODES = np.array(list(itertools.product(range(4), repeat=3)))


@pytest.mark.thrifty
def test_joint_probabilities_sum_to_one(lab):
    q = autoregressive(lab)
    support = q.enumerate_support()
    assert np.array_equal(lab.numpy(support)[:, 0], ALL_CODES)
    assert q.enumerate_support(expand=False).shape == (64, 1, 3)
    total = np.exp(lab.numpy(q.log_prob(support))).sum(0)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    close(lab, q.log_prob(q.enumerate_support(expand=False)), q.log_prob(support))


@pytest.mark.thrifty
def test_conditional_entropy_averages_to_the_joint_entropy(lab):
    q = autoregressive(lab)
    support = q.enumerate_support()
    log_prob, steps = lab.numpy(q.log_prob(support)), lab.numpy(q.conditional_entropy(support))
    exact = -(np.exp(log_prob) * log_prob).sum(0)
    np.testing.assert_allclose((np.exp(log_prob) * steps).sum(0), exact, rtol=1e-12)
    sampled = -(log_prob - exact)  # negative control: pointwise, -log q is something else
    assert np.abs(steps - sampled).max() > 0.1


def test_conditional_log_probs_add_up_to_the_joint(lab):
    joint = autoregressive(lab)
    codes = lab.asarray(np.broadcast_to(ALL_CODES[:, None], (64, 2, 3)).copy())
    found = lab.numpy(joint.conditional_log_prob(codes))
    np.testing.assert_allclose(found.sum(-1), lab.numpy(joint.log_prob(codes)), rtol=1e-10)
    first = np.exp(found[::16, :, 0])  # one for each value of the first code
    np.testing.assert_allclose(first.sum(0), 1.0, rtol=1e-10)


@pytest.mark.thrifty
def test_samples_follow_the_enumerated_probabilities(lab):
    q = autoregressive(lab, batch=())
    probs = np.exp(lab.numpy(q.log_prob(q.enumerate_support())))
    draws = lab.numpy(lab.draw(q, (40_000,))) @ np.array([16, 4, 1])
    counts = np.bincount(draws, minlength=64)
    assert not exceeds_chi_square(counts, probs)
    reverse = ALL_CODES[:, ::-1] @ np.array([16, 4, 1])  # negative control: reversed order
    assert exceeds_chi_square(counts, probs[reverse])


@pytest.mark.thrifty
@pytest.mark.parametrize("expanded", [(2,), (4, 6, 2)])
def test_expanding_the_joint_copies_nothing(lab, expanded):
    q = autoregressive(lab)
    wide = q.expand(expanded)
    codes = lab.draw(wide, (3,))
    assert codes.shape == (3, *expanded, 3)
    assert wide.context is q.context
    close(lab, wide.log_prob(codes), q.log_prob(codes))
    with pytest.raises(ValueError, match="broadcasts"):
        q.expand((5,))


def test_joint_of_one_context_expanded_to_a_batch(lab):
    q = autoregressive(lab, batch=(1,))
    codes = lab.draw(q.expand((4, 5)), (2,))
    assert codes.shape == (2, 4, 5, 3)
    expected = type(q)(q.transformer, q.context[0]).log_prob(codes)
    close(lab, q.expand((4, 5)).log_prob(codes), expected)


def counting(q, monkeypatch):
    """The passes of the network from here on."""
    passes, run = [], type(q)._log_conditionals
    count = lambda self, value: (passes.append(1), run(self, value))[1]  # noqa: E731
    monkeypatch.setattr(type(q), "_log_conditionals", count)
    return passes


def test_entropy_takes_over_the_pass_of_log_prob(lab, monkeypatch):
    q = autoregressive(lab)
    codes = lab.draw(q, (3,))
    expected, passes = q.conditional_entropy(codes), counting(q, monkeypatch)
    q.log_prob(codes)
    np.testing.assert_array_equal(lab.numpy(q.conditional_entropy(codes)), lab.numpy(expected))
    assert len(passes) == 1
    q.conditional_entropy(codes)  # nothing is kept from the last but one
    assert len(passes) == 2


def test_joint_under_a_plate_and_a_particle_plate(lab):
    q = autoregressive(lab)
    site = lab.sites(lambda: lab.plated_sample("z", q, 2), particles=7)["z"]
    assert site.value.shape == (7, 2, 3)
    assert site.log_prob.shape == (7, 2)


def test_joint_refuses_what_it_cannot_do(lab):
    q = autoregressive(lab)
    with lab.refused("support"):
        q.log_prob(lab.asarray(np.full((2, 3), 4)))
    with pytest.raises(ValueError, match=r"8 \*\* 7.*Sample instead"):
        autoregressive(lab, num_latents=7, num_codes=8).enumerate_support()
    with pytest.raises(ValueError, match="`context` must have shape"):
        type(q)(q.transformer, lab.asarray(np.zeros(8)))
