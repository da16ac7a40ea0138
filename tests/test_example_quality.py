"""SSIM against scikit-image, the Fréchet distance against SciPy, and what cannot be had."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

pytest.importorskip("matplotlib")

import quality as example_quality
from cli import CommandError
from quality import frechet_distance, load_extractor, structural_similarity
from run_examples import output_of, result_of

__all__ = ["output_of", "result_of"]  # fixtures
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 14, 17), (2, 11, 30, 3)])
def test_structural_similarity_is_that_of_scikit_image(shape):
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    first = RNG.random(shape).astype(np.float32)
    second = (0.7 * first + 0.3 * RNG.random(shape)).astype(np.float32)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    axis = -1 if len(shape) == 4 else None
    expected = [
        reference(x.astype(float), y.astype(float), data_range=1.0, channel_axis=axis, **options)
        for x, y in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(structural_similarity(first, second), expected, atol=1e-7)
    np.testing.assert_allclose(structural_similarity(first, first), 1.0)
    with pytest.raises(ValueError, match="smaller than 11 x 11"):
        structural_similarity(first[:, :9], second[:, :9])


def test_frechet_distance_is_that_of_the_paper():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = RNG.normal(size=(60, 5)), 1.5 * RNG.normal(size=(40, 5)) + 0.3
    covariances = np.cov(first.T), np.cov(second.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(first[:3], second) > 0.0  # fewer images than features
    with pytest.raises(ValueError, match=r"features must be \(N, D\)"):
        frechet_distance(first, second[:, :4])


def columns(images):
    """Features of the tests: means of the columns."""
    return images.mean((1, 3))[:, :4]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:features", "No module named 'nowhere'"),
        ("test_example_quality:nothing", "has no attribute 'nothing'"),
        ("inception_v9", "no network of torchvision's"),
        ("inception_v3", r"its weights cannot be had \(offline\): put https"),
    ],
)
def test_extractors_that_cannot_be_had_are_one_line(monkeypatch, name, words):
    torchvision = pytest.importorskip("torchvision")

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(CommandError, match=words) as error:
        load_extractor(name)
    assert f"--fid-features {name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_of_torchvision_gives_the_features_before_its_head(monkeypatch):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    make = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: make(name))
    torch.manual_seed(0)
    found = load_extractor("resnet18")(RNG.random((2, 16, 16, 3)).astype(np.float32))
    assert found.shape == (2, 512)
    assert np.isfinite(found).all()


def test_train_reports_quality_and_usage(result_of, tmp_path, monkeypatch):
    x = RNG.integers(0, 256, (60, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", x=x)
    settings = ("--data", tmp_path / "mine.npz", "--method", "fsq", "--smoke", "--num-codes", "8")
    features = ("--fid-features", "test_example_quality:columns")
    result = result_of("train.py", *settings, *features, "--out", tmp_path / "out")
    assert -1.0 < result["ssim"] < 1.0
    assert result["fid"] > 0.0
    assert result["fid_images"] == 6
    assert 1.0 <= result["epoch_perplexity"] <= 8 * result["epoch_usage"] <= 8.0
    assert example_quality._SIDE <= 16
