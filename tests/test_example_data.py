"""What the examples read, what they find in a folder, and what they measure."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

import data as example_data
from backends import get_backend


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


ERRORS = np.array([0.01, 0.1])  # squared, of every pixel of the two images
CODES = np.array([[0, 0], [0, 1]])
RATE = 2 * np.log(2)  # codes that the guide is sure of, under a uniform prior


def images_of_codes():
    return np.abs(CODES - np.sqrt(ERRORS)[:, None]).astype(np.float32)


def known_pair(backend):
    """A guide that is sure of each image's codes, and a model whose means they are."""
    library = pytest.importorskip(backend)
    np_like = pytest.importorskip({"pyro": "torch", "numpyro": "jax.numpy"}[backend])
    dist = importlib.import_module(f"{backend}.distributions")

    def program(logits_of, *, observed):
        def run(x):
            with library.plate("data", len(x)):
                logits = np_like.stack([0.0 * x, logits_of(x)], -1)
                z = library.sample("z", dist.Categorical(logits=logits).to_event(1))
                if observed:
                    library.sample("x", dist.Normal(1.0 * z, 1.0).to_event(1), obs=x)

        return run

    model = program(lambda x: 0.0 * x, observed=True)
    return model, program(lambda x: 400.0 * (x - 0.5), observed=False)


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_metrics_by_hand(backend):
    """Means over images of what each one has: of the PSNR, 15 dB, not that of the mean error."""
    model, guide = known_pair(backend)
    found = get_backend(backend, "cpu").evaluate(
        model, guide, images_of_codes(), num_particles=3, beta=0.5
    )
    likelihood = -ERRORS.mean() - np.log(2 * np.pi)
    expected = {
        "elbo": likelihood - RATE,
        "beta_elbo": likelihood - 0.5 * RATE,
        "iwae": likelihood - RATE,
        "iwae_particles": 3,
        "rate_bits": 2.0,
        "mse": 0.055,
        "psnr": 15.0,
        "ess": 1.0,
        "code_usage": 0.75,
        "table_usage": 1.0,
        "table_perplexity": 4 / 27**0.25,  # of codes with shares of 3/4 and 1/4
        "beta": 0.5,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_codes_come_in_batches_in_the_order_of_the_images(backend, monkeypatch):
    _, guide = known_pair(backend)
    monkeypatch.setattr("backends._BATCH_VALUES", 6)  # three images at once
    images = np.tile(images_of_codes(), (4, 1))
    codes = get_backend(backend, "cpu").codes(guide, images)
    np.testing.assert_array_equal(codes, np.tile(CODES, (4, 1)))


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_binarized_pixels_have_their_gray_values_for_means(backend):
    x = np.linspace(0, 1, 5, dtype=np.float32)[:, None] * np.ones((5, 4000), np.float32)
    kit = get_backend(backend, "cpu")
    if backend == "numpyro":
        import jax

        draws = np.asarray(kit.binarized(jax.random.key(0), x))
    else:
        kit.seed(0)
        draws = kit.binarized(kit.array(x)).numpy()
    assert draws.dtype == x.dtype
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_allclose(draws.mean(1), x[:, 0], atol=5 * 0.5 / np.sqrt(4000))
    np.testing.assert_array_equal(draws[[0, 4]], x[[0, 4]])


def test_a_checkpoint_that_was_only_begun_is_none(tmp_path):
    pytest.importorskip("jax")
    backend = get_backend("numpyro")
    assert not backend.has_checkpoint(tmp_path)
    (tmp_path / "checkpoint" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not backend.has_checkpoint(tmp_path)
    (tmp_path / "checkpoint" / "4").mkdir()
    assert backend.has_checkpoint(tmp_path)


def write_pictures(root, *shapes):
    """Pictures of noise, every second one gray, in folders a class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    made = [(255 * rng.random(shape)).astype(np.uint8) for shape in shapes]
    for row, pixels in enumerate(made):
        folder = root / f"class{row % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row:02}.png")
    return made


def test_a_folder_of_pictures_is_read_whole(tmp_path):
    made = write_pictures(tmp_path, *[(6, 8, 3)] * 9, (6, 8))
    found = example_data.load(str(tmp_path))
    assert (found.x_train.shape, found.x_test.shape) == ((9, 6, 8, 3), (1, 6, 8, 3))
    colour = [np.broadcast_to(x[..., None], (6, 8, 3)) if x.ndim == 2 else x for x in made]
    everything = np.concatenate([found.x_train, found.x_test])
    expected = np.stack(colour) / 255
    for image in expected:
        assert np.abs(everything - image).max((1, 2, 3)).min() < 1e-6


def test_pictures_of_several_sizes_want_one(tmp_path):
    write_pictures(tmp_path, (6, 8, 3), (8, 6, 3), (5, 5))
    with pytest.raises(ValueError, match=r"several sizes.*--image-size"):
        example_data.load(str(tmp_path))
    assert example_data.load(str(tmp_path), size=4).x_train.shape[1:] == (4, 4, 3)


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds 0 pictures"):
        example_data.load(str(tmp_path))
    write_pictures(tmp_path, (6, 8, 3), (6, 8, 3))
    with pytest.raises(ValueError, match="GB in memory, more than the"):
        example_data.load(str(tmp_path), size=8, gigabytes=1.3e-6)
    (tmp_path / "class0" / "00.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"00\.png: cannot be read as an image"):
        example_data.load(str(tmp_path), size=4)
    with pytest.raises(ValueError, match=r"choose one of digits.*a folder of pictures"):
        example_data.load(str(tmp_path / "nowhere"))


def test_other_units_lead_back_to_pictures():
    """Standardised, and as bytes: the means of channels, one variance, and the way back."""
    x = images(shape=(4, 5, 3)) * np.array([0.2, 1.0, 0.5], np.float32)
    found = example_data.Dataset("mine", x, x[:7]).standardized()
    np.testing.assert_allclose(found.x_train.mean((0, 1, 2)), 0.0, atol=1e-5)
    spread = (x - x.mean((0, 1, 2))) / x.std()
    np.testing.assert_allclose(found.x_train, spread, atol=1e-4)
    np.testing.assert_allclose(found.to_unit(found.x_test), x[:7], atol=1e-5)
    gray = example_data.Dataset("gray", images(), images()[:7])
    raw = gray.in_bytes().with_channels()
    assert raw.x_train.shape == (80, 6, 5, 1)
    np.testing.assert_array_equal(raw.x_train[..., 0], np.round(255 * gray.x_train))
    np.testing.assert_allclose(raw.to_unit(raw.x_test), gray.x_test, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("name", "place"), [("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches")]
)
def test_data_that_cannot_be_downloaded_are_one_line(tmp_path, monkeypatch, name, place):
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(root, train, download):
        raise RuntimeError("Error downloading: no network")

    monkeypatch.setattr(datasets, {"mnist": "MNIST", "cifar10": "CIFAR10"}[name], offline)
    with pytest.raises(ValueError, match=rf"data {name} cannot be had .*no network.*{place}"):
        example_data.load(name, tmp_path)
