"""What the denoising example makes of the errors of a model."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import patches

NOISE = 0.25  # variance
SHAPE = (3, 3, 1)


def covariance(rng, rank=2):
    """Of few directions, as those of errors are."""
    directions = rng.normal(size=(int(np.prod(SHAPE)), rank))
    return directions @ directions.T


def draw(rng, covariance, num_patches):
    """Errors of such patches, and with noise."""
    size = len(covariance)
    clean = rng.multivariate_normal(np.zeros(size), covariance, num_patches)
    noisy = clean + np.sqrt(NOISE) * rng.normal(size=clean.shape)
    return clean.reshape(-1, *SHAPE), noisy.reshape(-1, *SHAPE)


def test_wiener_is_the_posterior_mean():
    signal = covariance(np.random.default_rng(0))
    moments = signal + NOISE * np.eye(len(signal))
    np.testing.assert_allclose(
        patches.wiener(moments, NOISE), signal @ np.linalg.inv(moments), atol=1e-9
    )


def test_wiener_sees_no_signal_below_the_noise():
    assert not patches.wiener(np.diag([0.0, 0.1, NOISE]), NOISE).any()


def test_filled_in_is_the_posterior_mean_given_what_is_seen(monkeypatch):
    rng = np.random.default_rng(1)
    signal = covariance(rng)
    _, noisy = draw(rng, signal, 5)
    noisy, seen = noisy.reshape(5, -1), rng.random((5, len(signal))) > 0.3
    gain = patches.wiener(signal + NOISE * np.eye(len(signal)), NOISE)
    exact = []
    for vector, kept in zip(noisy, seen, strict=True):
        observed = signal[np.ix_(kept, kept)] + NOISE * np.eye(kept.sum())
        exact.append(signal[:, kept] @ np.linalg.solve(observed, vector[kept]))
    monkeypatch.setattr(patches, "_ROUNDS", 1000)
    np.testing.assert_allclose(patches.filled_in(noisy * seen, seen, gain), exact, atol=1e-8)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_errors_of_each_latent_have_their_covariance(missing):
    rng = np.random.default_rng(2)
    pairs = [draw(rng, covariance(rng), 2000) for _ in range(2)]
    clean, noisy = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    masks = rng.random(noisy.shape) >= missing
    groups = np.kron(np.eye(2), np.ones((2000, 1)))

    def mean_error(uses):
        found = patches.model_errors(np.where(masks, noisy, 0.0), masks, uses, NOISE)
        return np.square(found - clean).mean()

    apart, together = mean_error(groups), mean_error(np.ones((4000, 1)))
    assert apart < 0.8 * together < 0.8 * np.square(clean).mean()
    if not missing:  # the posterior's variance is all that is left
        np.testing.assert_allclose(apart, bayes_error(2, 2000), rtol=0.05)


def bayes_error(seed, num_patches):
    """Mean variance of the errors' posteriors, of the covariances drawn with this seed."""
    rng, left = np.random.default_rng(seed), []
    for _ in range(2):
        signal = covariance(rng)
        draw(rng, signal, num_patches)
        gain = signal @ np.linalg.inv(signal + NOISE * np.eye(len(signal)))
        left.append(NOISE * np.trace(gain) / len(signal))
    return np.mean(left)


def test_a_patch_of_two_latents_takes_their_mean():
    rng = np.random.default_rng(3)
    _, noisy = draw(rng, covariance(rng), 50)
    masks = np.ones_like(noisy, bool)
    one, two = np.zeros((50, 2)), np.full((50, 2), 0.5)
    one[:, 0] = 1.0
    alone = patches.model_errors(noisy, masks, one, NOISE)
    # a group that has half of each patch has the covariance of all
    np.testing.assert_allclose(patches.model_errors(noisy, masks, two, NOISE), alone, atol=1e-9)
