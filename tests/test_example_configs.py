"""The published configurations: their numbers of parameters, and that they train."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tools"))

from backends import get_backend
from configs import CONFIGS
from run_examples import output_of, result_of
from sequences import load_sequences

__all__ = ["output_of", "result_of"]  # fixtures


def counts(name, shape, **changes):
    """Parameters of the model and of the guide."""
    pytest.importorskip("torch")
    config = CONFIGS[name]._replace(**changes)
    images = np.zeros((2, *shape), np.float32)
    programs = get_backend("pyro", "cpu").make_vae(config, images)
    return tuple(sum(p.numel() for p in net.parameters()) for net in programs)


@pytest.mark.parametrize(
    ("name", "shape", "encoder", "decoder"),
    [("cifar10", (32, 32, 3), 1.06e6, 0.26e6), ("imagenet256", (256, 256, 3), 1.21e6, 0.33e6)],
)
def test_published_networks_have_their_numbers_of_parameters(name, shape, encoder, decoder):
    """Drolet et al., ICLR 2026, table of settings, to the digits that are given."""
    for count, expected in zip(counts(name, shape), (decoder, encoder), strict=True):
        assert round(count / 1e4) == round(expected / 1e4)


D, V, L = 128, 1024, 64  # width, codes and latents of the networks for motion capture
ATTENTION = 2 * D + 4 * D * D  # with the norm before it, without biases
FEED_FORWARD = 2 * D + 2 * 4 * D * D + 5 * D
DRAWN_BLOCK = 2 * ATTENTION + FEED_FORWARD  # of the transformer over codes
CHANNELS = 21


def test_networks_for_motion_have_the_published_layers():
    """By arithmetic over the layers that the authors' code lists: no total is published.

    Ours has a row more, of what comes before the first code, where theirs takes code 0.
    """
    blocks = 2 * (ATTENTION + FEED_FORWARD) + 2 * D
    transposed = 4 * CHANNELS * D + D  # 32 frames to 64 places: kernel 4, stride 2
    codes = V * D + 2 * DRAWN_BLOCK + 2 * D + D * V + V
    decoder = V * D + blocks + 4 * D * D + D + D * CHANNELS + CHANNELS
    expected = decoder, transposed + blocks + codes + D
    assert counts("motion", (32, CHANNELS)) == expected


W = 256


def test_networks_of_the_first_vq_vae_have_the_published_layers():
    """Van den Oord et al., 2017: two halvings and two residual blocks, all of 256 channels.

    Ours differ by a 3-convolution before the blocks on each side, and in that layers between the
    grids have half of the channels or a quarter; the heads are as wide as ten vectors, or two
    numbers for each colour.
    """

    def halving(before, after):
        return 16 * before * after + after

    vectors, table = 10 * 64, 512 * 64
    block = 9 * W * W + W + W * W + W
    published = halving(3, W) + halving(W, W) + 2 * block + W * vectors + vectors
    narrower = halving(3, 64) + halving(64, 128) - halving(3, W) - halving(W, W)
    encoder = published + narrower + 9 * 128 * W + W
    published = 2 * block + halving(W, W) + halving(W, 6)
    narrower = halving(W, 128) + halving(128, 6) - halving(W, W) - halving(W, 6)
    decoder = published + narrower + 9 * vectors * W + W
    shape, changes = (32, 32, 3), {"guide": "vq_gradient"}
    assert counts("vqvae_cifar10", shape, **changes) == (decoder + table, encoder + table)


def waves(count=9, length=48, channels=4):
    rng = np.random.default_rng(0)
    phases, t = rng.uniform(0, 6, (count, 1, channels)), np.arange(length)[None, :, None]
    return np.sin(0.3 * t + phases).astype(np.float32) + 2.0


def test_sequences_are_cut_standardised_and_kept_apart(tmp_path):
    x = np.concatenate([waves(), np.full((9, 48, 1), 3.0)], -1)  # a channel that does not change
    np.save(tmp_path / "walks.npy", x)
    found = load_sequences(tmp_path / "walks.npy", 32, seed=0, gigabytes=1.0)
    assert (found.x_train.shape, found.x_test.shape) == ((16, 32, 4), (2, 32, 4))
    np.testing.assert_allclose(found.x_train.mean((0, 1)), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.x_train.std((0, 1)), 1.0, atol=1e-5)
    np.testing.assert_array_equal(found.x_train[0, 16:], found.x_train[1, :16])
    np.savez(tmp_path / "walks.npz", x=x, x_test=x[:2])
    found = load_sequences(tmp_path / "walks.npz", 48, seed=0, gigabytes=1.0)
    assert (found.x_train.shape, found.x_test.shape) == ((9, 48, 4), (2, 48, 4))
    np.testing.assert_array_equal(found.x_train[:2], found.x_test)


@pytest.mark.parametrize(
    ("values", "frames", "words"),
    [
        (waves()[0], 32, r"must have shape \(N, T, C\)"),
        (waves(), 64, "has 48 frames, fewer than a window of 64"),
        (waves() * np.nan, 32, "that are NaN or infinite"),
        (waves(1), 32, "has one sequence"),
        (np.ones((3, 32, 2)), 32, "no channel changes"),
        (np.array([["a"]]), 32, r"shape \(N, T, C\)"),
        (np.array([None]), 32, "holds Python objects"),
    ],
)
def test_bad_sequences(tmp_path, values, frames, words):
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(ValueError, match=words) as error:
        load_sequences(tmp_path / "bad.npy", frames, seed=0, gigabytes=1.0)
    assert "bad" in str(error.value)
    with pytest.raises(ValueError, match=r"come from a \.npz or \.npy file"):
        load_sequences(tmp_path, frames, seed=0, gigabytes=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "name", "method"),
    [
        *(
            (backend, "motion", method)
            for backend in ("pyro", "numpyro")
            for method in ("daps", "vq", "fsq", "gumbel")
        ),
        ("pyro", "vqvae_cifar10", "vq"),  # in JAX without optimisations, half an hour
    ],
)
def test_published_configurations_train(result_of, tmp_path, backend, name, method):
    if name == "motion":
        np.save(tmp_path / "data.npy", waves(20))
        data = ("--data", tmp_path / "data.npy")
    else:
        x = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "data.npz", x=x)
        data = ("--data", tmp_path / "data.npz")
    guide = ("--guide", "independent") if method == "gumbel" else ()
    settings = ("--config", name, "--backend", backend, "--method", method, *data, *guide)
    result = result_of("train.py", "--smoke", "--out", tmp_path / "out", *settings)
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    losses = [line["mean_loss"] for line in map(json.loads, lines) if "mean_loss" in line]
    assert losses[-1] < losses[0]
    assert result["elbo"] <= result["iwae"] + 1e-3
    if name == "vqvae_cifar10":
        nats = -result["second_stage_iwae"] / (32 * 32 * 3)
        assert result["second_stage_bits_per_dim"] == pytest.approx(nats / np.log(2), rel=1e-4)
