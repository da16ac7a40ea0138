"""Pictures read as they are needed, images turned and moved at random, and memory that ends."""

import importlib
import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from backends import get_backend
from cli import CommandError
from configs import Config
from out_of_memory import memory_explained
from run_examples import output_of, result_of
from streams import PictureBatches, load_stream
from test_example_data import write_pictures

__all__ = ["output_of", "result_of"]  # fixtures
BACKENDS = pytest.mark.parametrize("name", ["pyro", "numpyro"])


def changed(name, x, **changes):
    """Images after a transform of the backend."""
    pytest.importorskip("torch" if name == "pyro" else "jax")
    backend = get_backend(name, "cpu")
    settings = {"flip": False, "crop": None, "binarize": False} | changes
    transform = backend.transform(**settings)
    if transform is None:
        return None
    if name == "numpyro":
        import jax

        return np.asarray(transform(jax.random.key(0), jax.numpy.asarray(x)))
    backend.seed(0)
    return transform(backend.array(x)).numpy()


@BACKENDS
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_images_are_turned_and_moved_at_random(name, shape):
    x = np.random.default_rng(0).random((400, *shape)).astype(np.float32)
    turned = changed(name, x, flip=True)
    is_turned = (turned == x[:, :, ::-1]).all((1, 2, *range(3, x.ndim)))
    is_same = (turned == x).all((1, 2, *range(3, x.ndim)))
    assert (is_turned ^ is_same).all()
    assert abs(is_turned.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
    moved = changed(name, x, crop=1)
    pad = [(0, 0), (1, 1), (1, 1), *[(0, 0)] * (x.ndim - 3)]
    wide, counts = np.pad(x, pad, mode="edge"), np.zeros(400, int)
    for down, right in itertools.product(range(3), repeat=2):
        part = wide[:, down : down + shape[0], right : right + shape[1]]
        found = (moved == part).all(tuple(range(1, x.ndim)))
        counts += found
        assert abs(found.mean() - 1 / 9) < 5 * np.sqrt(8 / 81 / 400)
    np.testing.assert_array_equal(counts, 1)
    assert changed(name, x) is None
    both = changed(name, x, flip=True, crop=1, binarize=True)
    assert set(np.unique(both)) == {0.0, 1.0}
    assert both.dtype == np.float32


def made_stream(tmp_path, count=11, **settings):
    write_pictures(tmp_path, *[(6, 8, 3)] * count)
    paths = sorted(tmp_path.rglob("*.png"))
    settings = {"workers": 2, "gigabytes": 1.0} | settings
    return PictureBatches(paths, 4, 3, **settings)


def test_an_epoch_has_every_picture_once_in_an_order_that_repeats(tmp_path):
    stream = made_stream(tmp_path, units=lambda x: 2 * x, prepare=lambda x: x.copy())
    random.seed(3)
    epochs = [list(stream), list(stream)]
    random.seed(3)
    again = [list(stream), list(stream)]
    assert len(stream) == 3
    for first, second in zip(epochs, again, strict=True):
        assert [x.shape for x in first] == [(3, 4, 4, 3)] * 3
        np.testing.assert_array_equal(first, second)
        assert len({image.tobytes() for batch in first for image in batch}) == 9
        assert 1.0 < np.max(first) <= 2.0
    assert not np.array_equal(*epochs)
    next(iter(stream))  # threads end with an iterator that is left


def test_a_sample_and_the_rest_are_apart(tmp_path):
    made_stream(tmp_path, 20)
    data, paths = load_stream(tmp_path, 4, seed=0, gigabytes=1.0)
    assert (data.x_train.shape, data.x_test.shape) == ((18, 4, 4, 3), (2, 4, 4, 3))
    assert len(set(paths)) == 18
    read = {x.tobytes() for x in data.x_train}
    assert not read & {x.tobytes() for x in data.x_test}


def test_a_picture_that_is_broken_is_named(tmp_path):
    stream = made_stream(tmp_path)
    stream.batch_size = 1  # none is left out
    stream.paths[4].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"08\.png: cannot be read as an image"):
        list(stream)


def test_train_reads_pictures_as_they_are_needed(result_of, output_of, tmp_path):
    made_stream(tmp_path, 24)
    settings = ("--data", tmp_path, "--image-size", "16", "--workers", "2", "--flip", "--crop", "1")
    more = ("--method", "fsq", "--num-codes", "8", "--smoke", "--out", tmp_path / "out")
    result = result_of("train.py", *settings, *more)
    assert np.isfinite(result["elbo"])
    assert result["steps"] == 12


@BACKENDS
def test_a_run_goes_on_within_an_epoch(tmp_path, name):
    pytest.importorskip("torch" if name == "pyro" else "jax")
    kind = importlib.import_module(f"{name}_dvae.fit.batches").IterableBatches
    stream = made_stream(tmp_path)
    batches = kind(stream)
    for _ in range(5):  # two within the second epoch
        batches.next()
    state = batches.state()
    after = [np.asarray(batches.next().args[0]) for _ in range(3)]
    random.seed(9)
    again = kind(stream)
    again.restore(state)
    found = [np.asarray(again.next().args[0]) for _ in range(3)]
    np.testing.assert_array_equal(found, after)
    assert not np.array_equal(after[0], after[1])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_takes_it(error):
    words = r"--batch-size 32 and K = 5 .*--accumulate.*--recompute.*--half"
    with (
        pytest.raises(CommandError, match=words) as found,
        memory_explained(Config(batch_size=32), 5),
    ):
        raise error
    assert "\n" not in str(found.value)
    with (
        pytest.raises(CommandError) as found,
        memory_explained(Config(recompute=True, half=True), 5),
    ):
        raise error
    assert "--recompute" not in str(found.value)
    truncated = Config(batch_size=32, guide="truncated", num_states=70)
    words = "--batch-size 32 and --num-states 70: memory grows with each"
    with pytest.raises(CommandError, match=words), memory_explained(truncated, 5):
        raise error
    words = "networks of --num-latents 8 and --num-codes 64: they grow with their product"
    with pytest.raises(CommandError, match=words), memory_explained(Config(), None):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(Config(), 5):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--workers", "2"), "--workers is an option of a folder of pictures"),
        (("--image-size", "5"), "--image-size is an option of a folder of pictures"),
        (("--half",), "--half is an option of transformers and convolutions"),
        (("--recompute",), "--recompute is an option of transformers and convolutions"),
        (("--seed", "-1"), "--seed must lie between 0 and 4294967295, got -1"),
        (("--num-codes", "4294967296"), "argument --num-codes: .* below 2147483648"),
        (("--data", ".", "--workers", "2"), "--workers needs --image-size"),
        (("--config", "motion", "--flip"), "--workers, --flip and --crop are options of images"),
        (("--frames", "4"), "--frames is an option of sequences"),
    ],
)
def test_options_that_do_not_go_together(more, words):
    import train
    from setups import make_setup

    with pytest.raises(CommandError, match=words):
        make_setup(train.make_parser().parse_args(list(more)))
