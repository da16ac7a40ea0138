"""The mixture of patches of the denoising tool, beside densities and posterior means by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import patch_classes
from patches import psnr
from scipy import sparse
from scipy.stats import multivariate_normal

NOISE, SIZE = 0.25, 6  # variance; entries


def draw(rng, num_vectors):
    """Two classes of two directions each: means, covariances, and noisy vectors, half of each."""
    means, directions = 2.0 * rng.normal(size=(2, SIZE)), rng.normal(size=(2, SIZE, 2))
    covariances = directions @ directions.transpose(0, 2, 1)
    clean = [
        rng.multivariate_normal(mean, covariance, num_vectors // 2)
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    noisy = np.concatenate(clean) + np.sqrt(NOISE) * rng.normal(size=(num_vectors, SIZE))
    return means, covariances, noisy


def classes_of(means, covariances):
    """As the mixture keeps them, the second thrice as large."""
    pairs = [np.linalg.eigh(covariance) for covariance in covariances]
    return [
        patch_classes._Class(mean, axes[:, -2:], variances[-2:], number)
        for mean, (variances, axes), number in zip(means, pairs, (1.0, 3.0), strict=True)
    ]


def test_classes_are_summed_out_exactly(monkeypatch):
    monkeypatch.setattr(patch_classes, "_LEAST_SHARE", 0.0)
    monkeypatch.setattr(patch_classes, "_AT_ONCE", 4)
    means, covariances, noisy = draw(np.random.default_rng(0), 10)
    joint, given, freedom = [], [], []
    for mean, covariance, share in zip(means, covariances, (0.25, 0.75), strict=True):
        total = covariance + NOISE * np.eye(SIZE)
        gain = covariance @ np.linalg.inv(total)
        joint.append(share * multivariate_normal(mean, total).pdf(noisy))
        given.append(mean + (noisy - mean) @ gain.T)
        freedom.append(np.trace(gain))
    posterior = np.array(joint) / np.sum(joint, 0)
    classes = classes_of(means, covariances)
    shares = patch_classes._posterior(noisy, classes, NOISE)
    np.testing.assert_allclose(shares.toarray(), posterior.T, atol=1e-9)
    found, weights = patch_classes._posterior_means(noisy, classes, shares, NOISE)
    np.testing.assert_allclose(found, np.einsum("kn,kni->ni", posterior, given), atol=1e-9)
    np.testing.assert_allclose(weights, 1 / (1 + freedom @ posterior))


def test_classes_are_what_patches_are_but_for_noise():
    means, covariances, noisy = draw(np.random.default_rng(1), 40_000)
    shares = sparse.csc_matrix(np.kron(np.eye(2), np.ones((20_000, 1))))
    for found, mean, covariance in zip(
        patch_classes._classes(noisy, shares, NOISE), means, covariances, strict=True
    ):
        assert found.axes.shape == (SIZE, 2)  # noise alone is no direction
        np.testing.assert_allclose(found.mean, mean, atol=0.05)
        clean = found.axes * found.variances @ found.axes.T
        np.testing.assert_allclose(clean, covariance, atol=0.03 * np.abs(covariance).max())


def test_pure_noise_has_no_directions():
    noisy = np.sqrt(NOISE) * np.random.default_rng(2).normal(size=(100, 25))
    (found,) = patch_classes._classes(noisy, sparse.csc_matrix(np.ones((100, 1))), NOISE)
    assert found.axes.shape == (25, 0)


@pytest.mark.parametrize(("channels", "sigma"), [(1, 25.0), (3, 25.0), (1, 50.0)])
def test_a_mixture_takes_off_more_than_its_pilot(channels, sigma):
    """Stripes of two directions; the pilot is a mean of neighbours."""
    rows, columns = np.indices((40, 40))
    stripes = np.where(columns < 20, np.sin(rows), np.sin(columns + rows / 2))
    clean = 128 + 60 * stripes[..., None] * np.linspace(1.0, 0.5, channels)
    given = clean + sigma * np.random.default_rng(3).standard_normal(clean.shape)
    pilot = sum(np.roll(given, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1)) / 6
    found = patch_classes.refine(given, pilot, sigma, size=6)
    assert psnr(found, clean) > max(psnr(given, clean), psnr(pilot, clean)) + 4.0


def test_without_noise_an_image_stays():
    image = 255 * np.random.default_rng(4).random((12, 13, 1))
    np.testing.assert_allclose(patch_classes.refine(image, image, 0.0, size=4), image, atol=0.1)
    flat = np.full((12, 13, 1), 7.0)
    np.testing.assert_allclose(patch_classes.refine(flat, flat, 0.0, size=4), flat, atol=1e-3)
