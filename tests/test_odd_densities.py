"""Distributions in wrappers, and of families that are met rarely: values by formula."""

from types import SimpleNamespace

import numpy as np
import pytest

P = np.array([0.0, 0.3, 1.0])
H = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))


@pytest.fixture
def impossible(lab):
    return lab.module("programs.readers.impossible")


def expanded(lab, fn, shape):
    """In a wrapper of its own, which a family's `expand` would not leave."""
    return lab.stock.ExpandedDistribution(fn, shape)


def bernoulli(lab, probs=P):
    return lab.stock.Bernoulli(probs=lab.asarray(probs))


def test_a_uniform_guide_leaves_nothing_out(lab, impossible):
    made = lab.module("distributions")
    uniform = made.UniformCategorical(3, lab.asarray(np.zeros(2)))
    one = made.UniformCategorical(1, lab.asarray(np.zeros(2)))
    certain = made.CertainCategorical(3, lab.asarray(np.array([0, 2])))
    table = lab.stock.Categorical(probs=lab.asarray(np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])))
    first = made.CertainCategorical(1, lab.asarray(np.array([0, 0])))
    cases = [
        (uniform, certain, [False, False]),
        (certain, uniform, [True, True]),
        (first, one, [False, False]),
        (table, lab.stock.Categorical(probs=lab.asarray(np.full((2, 3), 1 / 3))), [True, False]),
    ]
    for guide, model, expected in cases:
        assert lab.numpy(impossible.leaves_out(guide, model)).tolist() == expected
        both = [fn.to_event(1) for fn in (guide, model)]
        assert bool(impossible.leaves_out(*both)) is any(expected)
    assert impossible.leaves_out(lab.stock.Poisson(lab.asarray(P + 1)), table) is None


def test_states_are_counted(lab, impossible):
    count = impossible._log_num_values
    binomial = lab.stock.Binomial(lab.asarray(np.array(4.0)), probs=lab.asarray(P))
    np.testing.assert_allclose(lab.numpy(count(binomial)), [0, np.log(5), 0], rtol=1e-6)
    event = binomial.to_event(1)
    np.testing.assert_allclose(lab.numpy(count(event)), [0, np.log(5), 0], rtol=1e-6)
    total = impossible._sum_of_cells(count(event), event)
    np.testing.assert_allclose(lab.numpy(total), np.log(5), rtol=1e-6)
    certain = lab.module("distributions").CertainCategorical(3, lab.asarray(np.array([0, 2])))
    np.testing.assert_array_equal(lab.numpy(count(certain)), [0, 0])
    np.testing.assert_array_equal(lab.numpy(count(lab.stock.Poisson(lab.asarray(P + 1)))), np.inf)


def test_a_network_leaves_nothing_out(lab, impossible):
    fn = SimpleNamespace(conditional_log_prob=None, event_dim=1)
    value = lab.asarray(np.zeros((4, 2, 3)))
    np.testing.assert_array_equal(lab.numpy(impossible.excludes(fn, value)), np.zeros((4, 2), bool))


def test_left_out_values_of_one_hot_codes(lab, impossible):
    """The guide draws the first of three codes alone."""
    family = lab.stock.OneHotCategorical if lab.name == "pyro" else impossible.OneHotCategorical
    logits = lab.asarray(np.array([[0.0, -1e5, -1e5]] * 4))
    guide, model = family(logits=logits), family(logits=lab.asarray(np.zeros((4, 3))))
    value = lab.asarray(np.broadcast_to(np.eye(3)[0], (50, 4, 3)).copy())
    given = ()
    if lab.name == "numpyro":
        given = (pytest.importorskip("jax").random.key(0),)
    for num_dims in (0, 1):
        pair = [fn.to_event(num_dims) for fn in (guide, model)]
        found, is_left_out = map(lab.numpy, impossible.left_out_values(*given, *pair, value))
        moved = found[..., 0] == 0
        np.testing.assert_array_equal(found.sum(-1), np.ones((50, 4)))
        np.testing.assert_array_equal(is_left_out, moved.any(-1) if num_dims else moved)
        assert moved.any()
        assert not moved.all()


def test_zeros_show_through_wrappers(lab, impossible):
    value, fn = lab.asarray(np.array([1.0, 1.0, 0.0])), bernoulli(lab)
    zeros = np.array([True, False, True])
    for wrapped in (fn, expanded(lab, fn, (2, 3))):
        found = lab.numpy(impossible.has_zeros(wrapped, value))
        np.testing.assert_array_equal(
            np.broadcast_to(found, (2, 3)), np.broadcast_to(zeros, (2, 3))
        )
    mask = lab.asarray(np.array([False, True, True]))
    found = lab.numpy(impossible.has_zeros(fn.mask(mask), value))
    np.testing.assert_array_equal(found, [False, False, True])
    assert bool(impossible.has_zeros(fn.to_event(1), value))
    assert not lab.numpy(impossible.has_zeros(lab.stock.Poisson(lab.asarray(P + 1)), value)).any()
    excluded = impossible.excludes(expanded(lab, fn, (2, 3)), value)
    np.testing.assert_array_equal(
        np.broadcast_to(lab.numpy(excluded), (2, 3)), np.broadcast_to(zeros, (2, 3))
    )


def test_entropies_and_masks_in_wrappers(lab):
    densities = lab.module("programs.densities")
    mask = np.array([True, False, True])
    fn = bernoulli(lab, np.full(3, 0.3))
    masked = expanded(lab, fn.mask(lab.asarray(mask)), (2, 3))
    value = lab.asarray(np.ones((2, 3)))
    expected = np.broadcast_to(H * mask, (2, 3))
    np.testing.assert_allclose(lab.numpy(densities.entropy_of(masked, value)), expected, rtol=1e-6)
    found = densities.entropy_of(masked.to_event(1), value)
    np.testing.assert_allclose(lab.numpy(found), expected.sum(-1), rtol=1e-6)
    bare = densities.without_mask(masked)
    assert tuple(bare.batch_shape) == (2, 3)
    np.testing.assert_allclose(lab.numpy(bare.log_prob(value)), np.full((2, 3), np.log(0.3)))
    counts = (
        lab.stock.NegativeBinomialProbs if lab.name == "numpyro" else lab.stock.NegativeBinomial
    )
    counts = counts(lab.asarray(np.full(3, 2.0)), lab.asarray(np.full(3, 0.3)))
    assert densities.entropy_of(counts.mask(lab.asarray(mask)), value[0]) is None


def test_an_entropy_given_the_earlier_codes(lab):
    fn = SimpleNamespace(conditional_entropy=lambda value: 2 * value)
    assert lab.module("programs.densities").entropy_of(fn, 3) == 6


def test_other_values_of_a_site(lab):
    moved = lab.module("programs.draw").moved
    cases = [
        (lab.stock.Poisson(lab.asarray(np.ones(3))), [0.0, 2.0, 5.0], [2.0, 4.0, 7.0]),
        (lab.stock.Poisson(lab.asarray(np.ones(3))).to_event(1), [0.0, 2.0, 5.0], [2.0, 4.0, 7.0]),
        (lab.stock.Categorical(logits=lab.asarray(np.zeros((3, 3)))), [0, 1, 2], [2, 0, 1]),
        (bernoulli(lab, np.full(3, 0.5)), [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]),
    ]
    for fn, value, expected in cases:
        site = SimpleNamespace(fn=fn, base=fn)
        found = moved(site, lab.asarray(np.array(value)), 2)
        np.testing.assert_array_equal(lab.numpy(found), expected)
    fn = lab.stock.Normal(0.0, 1.0)
    assert moved(SimpleNamespace(fn=fn, base=fn), lab.asarray(np.zeros(3)), 1) is None


@pytest.mark.parametrize("lab", ["pyro"], indirect=True)
def test_a_negative_binomial_of_no_successes(lab, impossible):
    probs, value = lab.asarray(np.array([0.0, 0.0, 0.5])), lab.asarray(np.array([1.0, 0.0, 1.0]))
    fn = lab.stock.NegativeBinomial(lab.asarray(np.full(3, 2.0)), probs=probs)
    found = lab.numpy(impossible.has_zeros(fn, value))
    np.testing.assert_array_equal(found, [True, False, False])


@pytest.mark.parametrize("lab", ["pyro"], indirect=True)
def test_expanded_distributions_are_made_again(lab):
    draw, relaxing = lab.module("programs.draw"), lab.module("programs.handlers.relaxing")
    counts = lab.stock.Binomial(lab.asarray(np.array([1.0, 3.0, 5.0])), probs=lab.asarray(P / 2))
    fn = draw._at_any_value(expanded(lab, counts, (2, 3)))
    assert tuple(fn.batch_shape) == (2, 3)
    value = lab.asarray(np.full((2, 3), 2.0))
    expected = np.array([-np.inf, np.log(3 * 0.15**2 * 0.85), np.log(10 / 32)])
    np.testing.assert_allclose(lab.numpy(fn.log_prob(value)), np.stack([expected] * 2), rtol=1e-6)
    options = {"method": "straight_through", "num_gumbels": 1, "temperature": 1.0}
    logits = lab.asarray(np.array([-1.0, 0.0, 2.0]))
    found = relaxing.relaxed(expanded(lab, lab.stock.Bernoulli(logits=logits), (2, 3)), options)
    assert tuple(found.batch_shape) == (2, 3)
    expected = -np.log1p(np.exp(-lab.numpy(logits)))
    found = found.log_prob(lab.asarray(np.ones((2, 3))))
    np.testing.assert_allclose(lab.numpy(found), np.stack([expected] * 2), rtol=1e-6)
    assert relaxing.relaxed(expanded(lab, lab.stock.Normal(0.0, 1.0), (3,)), options) is None
