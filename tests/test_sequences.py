"""Transformers of sequences: their resampling against loops over frames, and what they refuse."""

import itertools
import re

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def arrays_of(net):
    """A layer's two parameters: the matrix as ``(in, out)``, and the bias."""
    if hasattr(net, "params"):
        return np.asarray(net.params["Dense_0"]["kernel"]), np.asarray(net.params["bias"])
    return net.dense.weight.detach().numpy().T, net.bias.detach().numpy()


def resampling_of(lab, channels, width, length, places):
    kind = lab.module("nets.sequences")._Resampling
    if lab.name == "numpyro":
        return lab.network(kind(width, places), lab.asarray(np.zeros((1, length, channels))))
    return lab.network(kind(channels, width, length, places))


def looped(x, matrix, bias, places):
    """A convolution of stride s and kernel 2 s, tap by tap, or its transpose."""
    length, width = x.shape[1], len(bias)
    total = np.zeros((len(x), places, width))
    if places >= length:
        stride = places // length
        kernel = matrix.reshape(x.shape[2], -1, width)
        for t, tap in itertools.product(range(length), range(kernel.shape[1])):
            if 0 <= (place := stride * t + tap - stride // 2 * (stride > 1)) < places:
                total[:, place] += x[:, t] @ kernel[:, tap]
    else:
        stride = length // places
        kernel = matrix.reshape(-1, x.shape[2], width)
        for place, tap in itertools.product(range(places), range(len(kernel))):
            if 0 <= (t := stride * place + tap - stride // 2) < length:
                total[:, place] += x[:, t] @ kernel[tap]
    return total + bias


@pytest.mark.parametrize(("length", "places"), [(4, 8), (8, 4), (3, 9), (9, 3), (4, 4)])
def test_resampling_is_the_loop_over_taps(lab, length, places):
    x = RNG.normal(size=(2, length, 3))
    net = resampling_of(lab, 3, 5, length, places)
    expected = looped(x, *arrays_of(net), places)
    np.testing.assert_allclose(lab.numpy(net(lab.asarray(x))), expected, atol=1e-12)
    assert np.abs(expected - looped(x[:, ::-1], *arrays_of(net), places)).max() > 1e-2


def test_shapes_relaxed_codes_and_data_apart(lab):
    nets, x = lab.module("nets"), RNG.normal(size=(2, 3, 4, 6))
    sizes = {"num_heads": 2, "mlp_ratio": 2}
    encoder = lab.network(nets.SequenceEncoder((4, 6), 8, 5, embed_dim=8, **sizes), lab.asarray(x))
    logits = lab.numpy(encoder(lab.asarray(x)))
    assert logits.shape == (2, 3, 8, 5)
    x[0, 0] += 1.0
    changed = np.abs(lab.numpy(encoder(lab.asarray(x))) - logits).max((-1, -2)) > 1e-3
    np.testing.assert_array_equal(changed, [[True, False, False], [False, False, False]])
    codes, start = RNG.integers(5, size=(7, 8)), lab.asarray(np.full((4, 6), 2.0))
    options = {"embed_dim": 6, "width": 8, "start": start, **sizes}
    decoder = lab.network(nets.SequenceDecoder(8, 5, (4, 6), **options), lab.asarray(codes))
    outputs = lab.numpy(decoder(lab.asarray(codes)))
    assert outputs.shape == (7, 4, 6)
    assert 0.0 < np.abs(outputs - 2.0).max() < 1.0
    relaxed = lab.numpy(decoder(lab.asarray(np.eye(5)[codes])))
    np.testing.assert_allclose(relaxed, outputs, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("SequenceEncoder", ((6, 2), 4), "`num_latents` must divide the frames.*6 and 4"),
        ("SequenceDecoder", (4, 3, (6, 2)), "`num_latents` must divide the frames.*4 and 6"),
        ("SequenceEncoder", ((6, 2, 2), 6), "`input_shape` must be (T,) or (T, C)"),
        ("SequenceDecoder", (6, 0, (6, 2)), "`num_codes`"),
    ],
)
def test_what_does_not_fit_is_named(lab, name, args, words):
    pattern = words if ".*" in words else re.escape(words)
    with pytest.raises(ValueError, match=pattern):
        getattr(lab.module("nets"), name)(*args)


@pytest.mark.thrifty
def test_latents_of_a_place_lie_side_by_side(lab):
    """The ten numbers of a place, as those of two latents of five; and back."""
    nets, x = lab.module("nets"), RNG.normal(size=(2, 8, 8))
    options = {"width": 8, "num_blocks": 1}
    encoder = lab.network(nets.ConvEncoder((8, 8), 32, 5, per_place=2, **options), lab.asarray(x))
    other = nets.ConvEncoder((8, 8), 16, 10, **options)
    if lab.name == "numpyro":
        outputs = other.apply({"params": encoder.params}, lab.asarray(x))
    else:
        outputs = lab.network(other)
        outputs.load_state_dict(encoder.state_dict())
        outputs = outputs(lab.asarray(x))
    assert lab.numpy(encoder(lab.asarray(x))).shape == (2, 32, 5)
    expected = lab.numpy(outputs).reshape(2, 32, 5)
    np.testing.assert_allclose(lab.numpy(encoder(lab.asarray(x))), expected, atol=1e-12)
    codes = RNG.integers(3, size=(4, 32))
    made = nets.ConvDecoder(32, 3, (8, 8), per_place=2, embed_dim=4, **options)
    decoder = lab.network(made, lab.asarray(codes))
    before = lab.numpy(decoder(lab.asarray(codes)))
    assert before.shape == (4, 8, 8)
    codes[1, 3] = (codes[1, 3] + 1) % 3
    moved = np.abs(lab.numpy(decoder(lab.asarray(codes))) - before).max((1, 2)) > 1e-6
    assert moved.tolist() == [False, True, False, False]
