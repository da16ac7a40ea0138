"""What the examples read, what they find in a folder, and what they measure."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import data as example_data
from backends import get_backend
from metrics import Draws, summarize


def images(seed=0, num_images=80, shape=(6, 5)):
    return np.random.default_rng(seed).random((num_images, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": images()}, "has no array `x`, only y"),
        ({"x": images()[0]}, r"must have shape \(N, H, W\)"),
        ({"x": images()[:0]}, "at least two images"),
        ({"x": images() * 2}, r"must lie in \[0, 1\], got values from 0"),
        ({"x": np.full((3, 2, 2), np.nan)}, "holds 12 values that are NaN"),
        ({"x": np.zeros((3, 2, 2), int)}, "must be uint8, or float"),
        ({"x": np.array([None])}, "cannot be read"),
        ({"x": images(), "x_test": images(shape=(4, 4))}, "must have one shape"),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=words) as error:
        example_data.load(str(tmp_path / "bad.npz"))
    assert str(tmp_path / "bad.npz") in str(error.value)


def test_a_truncated_npz(tmp_path):
    np.savez(tmp_path / "bad.npz", x=images())
    whole = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        example_data.load(str(tmp_path / "bad.npz"))


def test_npz_and_digits_are_images_in_the_unit_interval(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.full((20, 3, 4, 3), 255, np.uint8))
    mine = example_data.load(str(tmp_path / "mine.npz"))
    assert mine.x_train.shape == (18, 3, 4, 3)
    assert mine.x_test.max() == 1.0
    digits = example_data.load("digits", seed=1)
    assert (len(digits.x_train), len(digits.x_test)) == (1497, 300)
    assert not np.array_equal(digits.x_test, example_data.load("digits", seed=2).x_test)
    assert digits.binarized().binary
    assert not digits.binary


def test_metrics_by_hand():
    likelihood = np.log([[0.5, 0.1], [0.25, 0.1]])
    zeros, codes = np.zeros((2, 2)), np.array([[0, 0], [0, 1]])
    draws = [
        Draws(likelihood[:, :1], zeros[:, :1], zeros[:, :1], codes[:1], np.array([0.01])),
        Draws(likelihood[:, 1:], zeros[:, 1:], zeros[:, 1:], codes[1:], np.array([0.1])),
    ]
    found = summarize(draws, beta=0.5, num_codes=2)
    np.testing.assert_allclose(found["elbo"], likelihood.mean())
    np.testing.assert_allclose(found["iwae"], np.log([0.375, 0.1]).mean())
    np.testing.assert_allclose(found["ess"], (0.75**2 / (0.25 + 0.0625) / 2 + 1) / 2)
    np.testing.assert_allclose(found["psnr"], 15.0)
    np.testing.assert_allclose(found["code_usage"], 0.75)


def test_a_checkpoint_that_was_only_begun_is_none(tmp_path):
    pytest.importorskip("jax")
    backend = get_backend("numpyro")
    assert not backend.has_checkpoint(tmp_path)
    (tmp_path / "checkpoint" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not backend.has_checkpoint(tmp_path)
    (tmp_path / "checkpoint" / "4").mkdir()
    assert backend.has_checkpoint(tmp_path)
