"""Codes that are certain or uniform, without logits: as `Categorical` with their logits."""

import math

import numpy as np
import pytest

CODES, V = np.array([[2, 0], [1, 2], [2, 2]]), 3


def both(lab, kind):
    """One of them, and the same with logits."""
    distributions = lab.module("distributions")
    codes = lab.asarray(CODES)
    if kind == "certain":
        logits = np.log(np.where(np.arange(V) == CODES[..., None], 1.0, 1e-300))
        found = distributions.CertainCategorical(V, codes)
    else:
        logits = np.zeros((*CODES.shape, V))
        found = distributions.UniformCategorical(V, lab.asarray(np.zeros(CODES.shape)))
    return found, distributions.Categorical(logits=lab.asarray(logits))


@pytest.mark.parametrize("kind", ["certain", "uniform"])
def test_as_a_categorical(lab, kind):
    found, expected = both(lab, kind)
    assert tuple(found.batch_shape) == tuple(expected.batch_shape)
    support = np.asarray(found.enumerate_support(expand=False))
    np.testing.assert_array_equal(support.ravel(), np.arange(V))
    for value in (CODES, np.array([[0, 1]]), np.tile(support.reshape(V, 1, 1), (1, *CODES.shape))):
        own, other = (np.asarray(d.log_prob(lab.asarray(value))) for d in (found, expected))
        np.testing.assert_allclose(np.exp(own), np.exp(other), atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(found.entropy()), np.asarray(expected.entropy()), atol=1e-6
    )
    np.testing.assert_allclose(
        np.exp(np.asarray(found.logits)), np.asarray(expected.probs), atol=1e-6
    )
    wide = found.expand((4, *CODES.shape))
    assert tuple(wide.log_prob(lab.asarray(CODES)).shape) == (4, *CODES.shape)


def test_draws(lab):
    found, _ = both(lab, "certain")
    np.testing.assert_array_equal(lab.draw(found, (5,)), np.broadcast_to(CODES, (5, *CODES.shape)))
    uniform, _ = both(lab, "uniform")
    draws = np.asarray(lab.draw(uniform, (20_000,)))
    shares = np.stack([(draws == v).mean(0) for v in range(V)])
    assert (np.abs(shares - 1 / V) < 5 * math.sqrt(2 / 9 / 20_000)).all()
    many = lab.module("distributions").UniformCategorical(4**15, lab.asarray(np.zeros(2)))
    draws = np.asarray(lab.draw(many, (2000,))) / 4**15
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 / math.sqrt(12 * 4000)


def test_more_codes_than_integers_are_refused(lab):
    with pytest.raises(ValueError, match=r"`num_codes` is .* an integer holds no code beyond"):
        lab.module("distributions").UniformCategorical(2**64, lab.asarray(np.zeros(2)))
