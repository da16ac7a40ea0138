"""Residual convolutions, against loops over taps in NumPy, from the same parameters."""

import itertools
import math

import numpy as np
import pytest

WIDTH, BLOCKS, GROUPS = 8, 1, 4
RNG = np.random.default_rng(0)


def convolve(x, kernel, bias, stride, pad):
    """``x (N, *sides, in)`` by a kernel ``(*taps, in, out)``."""
    dims, taps = x.ndim - 2, kernel.shape[0]
    x = np.pad(x, [(0, 0), *[(pad, pad)] * dims, (0, 0)])
    sides = [(n - taps) // stride + 1 for n in x.shape[1:-1]]
    total = np.zeros((len(x), *sides, kernel.shape[-1]))
    for tap in itertools.product(range(taps), repeat=dims):
        rows = tuple(
            slice(t, t + stride * (n - 1) + 1, stride) for t, n in zip(tap, sides, strict=True)
        )
        total += x[(slice(None), *rows)] @ kernel[tap]
    return total + bias


def double(x, kernel, bias):
    """The transpose of a convolution of kernel 4, stride 2: each place adds to 4^n outputs."""
    dims, sides = x.ndim - 2, x.shape[1:-1]
    total = np.zeros((len(x), *(2 * n + 2 for n in sides), kernel.shape[-1]))
    for tap in itertools.product(range(4), repeat=dims):
        rows = tuple(slice(t, t + 2 * n - 1, 2) for t, n in zip(tap, sides, strict=True))
        total[(slice(None), *rows)] += x @ kernel[tap]
    return total[(slice(None), *[slice(1, -1)] * dims)] + bias


def normalise(x, scale, bias):
    groups = math.gcd(GROUPS, x.shape[-1])
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias


def relu(x):
    return np.maximum(x, 0.0)


def blocks(x, take):
    for _ in range(BLOCKS):
        hidden = x
        for pad in (1, 0):
            hidden = normalise(convolve(relu(hidden), *take("conv"), 1, pad), *take("norm"))
        x = x + hidden
    return relu(x)


def encode(x, take, halvings):
    for _ in range(halvings):
        x = relu(normalise(convolve(x, *take("conv"), 2, 1), *take("norm")))
    return convolve(blocks(convolve(x, *take("conv"), 1, 1), take), *take("conv"), 1, 0)


def decode(x, take, doublings):
    x = blocks(convolve(x, *take("conv"), 1, 1), take)
    for _ in range(doublings - 1):
        x = relu(normalise(double(x, *take("double")), *take("norm")))
    return double(x, *take("double")) if doublings else convolve(x, *take("conv"), 1, 0)


def pyro_parts(net):
    """Kernel or scale, and bias, of each layer in order; kernels as ``(*taps, in, out)``."""
    import torch

    for layer in net.modules():
        kernel = getattr(layer, "weight", None)
        if kernel is None or isinstance(layer, torch.nn.Embedding):
            continue
        kernel, bias = kernel.detach().numpy(), layer.bias.detach().numpy()
        if isinstance(layer, torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d):
            yield np.moveaxis(kernel, (0, 1), (-2, -1)), bias
        elif kernel.ndim > 1:
            yield np.moveaxis(kernel, (1, 0), (-2, -1)), bias
        else:
            yield kernel, bias


def numpyro_parts(net, order, dims):
    """The same, from flax's tree, whose names say in which order layers are made."""
    tree = {name: value for name, value in net.params.items()}
    counts = dict.fromkeys(("Conv", "GroupNorm", "_Halving", "_Residual", "Upsampling"), 0)

    def next_of(kind, within=tree, counters=counts):
        found = within[f"{kind}_{counters[kind]}"]
        counters[kind] += 1
        return found

    for step in order:
        if step == "halve":
            conv = next_of("_Halving")["Conv_0"]
            yield conv["kernel"], conv["bias"]
        elif step == "double":
            layer = next_of("Upsampling")
            turned = np.flip(np.asarray(layer["kernel"]), range(dims))  # JAX's lies the other way
            yield turned, layer["bias"]
        elif step == "norm":
            norm = next_of("GroupNorm")
            yield norm["scale"], norm["bias"]
        elif step == "block":
            block = next_of("_Residual")
            for k in (0, 1):
                yield block[f"Conv_{k}"]["kernel"], block[f"Conv_{k}"]["bias"]
                yield block[f"GroupNorm_{k}"]["scale"], block[f"GroupNorm_{k}"]["bias"]
        else:
            conv = next_of("Conv")
            yield conv["kernel"], conv["bias"]


def parts_of(lab, net, order, dims):
    found = pyro_parts(net) if lab.name == "pyro" else numpyro_parts(net, order, dims)
    found = iter([tuple(np.asarray(part, float) for part in pair) for pair in found])
    return lambda kind: next(found)


def made(lab, kind, *args, inputs, spatial_dims=2, **options):
    """A network in float64, whose norms have scales of their own."""
    net = getattr(lab.module("nets"), kind)(
        *args,
        width=WIDTH,
        num_blocks=BLOCKS,
        num_groups=GROUPS,
        spatial_dims=spatial_dims,
        **options,
    )
    return lab.network(net, lab.asarray(inputs))


SHAPES = {
    "image": ((8, 4, 3), 2, (2, 1), 2),
    "gray": ((6, 4), 6, (3, 2), 1),
    "sequence": ((12, 5), 3, (3,), 2),
    "flat": ((4, 2), 4, (4,), 0),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("case", list(SHAPES))
def test_the_encoder_is_the_loop_over_taps(lab, case):
    shape, num_latents, grid, halvings = SHAPES[case]
    spatial_dims = len(grid)
    x = RNG.normal(size=(2, 3, *shape))
    net = made(lab, "ConvEncoder", shape, num_latents, 5, inputs=x, spatial_dims=spatial_dims)
    assert tuple(net.grid) == grid
    order = ["halve", "norm"] * halvings + ["conv"] + ["block"] * BLOCKS + ["conv"]
    take = parts_of(lab, net, order, spatial_dims)
    flat = x.reshape(6, *shape[:spatial_dims], -1)
    expected = encode(flat, take, halvings).reshape(2, 3, num_latents, 5)
    np.testing.assert_allclose(lab.numpy(net(lab.asarray(x))), expected, atol=1e-12)


@pytest.mark.thrifty
@pytest.mark.parametrize("case", list(SHAPES))
def test_the_decoder_is_the_loop_over_taps(lab, case):
    shape, num_latents, grid, doublings = SHAPES[case]
    spatial_dims = len(grid)
    vectors = RNG.normal(size=(2, 3, num_latents * 3))
    options = {"embed_dim": 3, "spatial_dims": spatial_dims, "start": lab.asarray(np.ones(shape))}
    net = made(lab, "ConvDecoder", num_latents, None, shape, inputs=vectors, **options)
    order = ["conv"] + ["block"] * BLOCKS
    order += ["double", "norm"] * (doublings - 1) + (["double"] if doublings else ["conv"])
    take = parts_of(lab, net, order, spatial_dims)
    flat = vectors.reshape(6, *grid, 3)
    expected = decode(flat, take, doublings).reshape(2, 3, *shape) + 1.0
    np.testing.assert_allclose(lab.numpy(net(lab.asarray(vectors))), expected, atol=1e-12)


def test_relaxed_codes_are_mixtures_of_codes_and_data_are_apart(lab):
    codes = RNG.integers(5, size=(4, 2))
    net = made(lab, "ConvDecoder", 2, 5, (8, 4), inputs=codes)
    outputs = lab.numpy(net(lab.asarray(codes)))
    one_hot = lab.asarray(np.eye(5)[codes])
    np.testing.assert_allclose(lab.numpy(net(one_hot)), outputs, atol=1e-12)
    changed = codes.copy()
    changed[0] = (changed[0] + 1) % 5
    after = lab.numpy(net(lab.asarray(changed)))
    assert np.abs(after[0] - outputs[0]).max() > 1e-3
    np.testing.assert_array_equal(after[1:], outputs[1:])


def test_bernoulli_latents_have_one_number_each(lab):
    x = RNG.normal(size=(2, 8, 8))
    net = made(lab, "ConvEncoder", (8, 8), 16, inputs=x)
    assert lab.numpy(net(lab.asarray(x))).shape == (2, 16)


BAD = {
    "places": ("ConvEncoder", ((8, 8), 5, 4), {}, "`num_latents`.*64 on \\(8, 8\\), 16 on"),
    "odd": ("ConvEncoder", ((6, 6), 1, 4), {}, "36 on \\(6, 6\\), 9 on \\(3, 3\\); got 1"),
    "dims": ("ConvEncoder", ((8,), 4, 4), {}, "`input_shape` must be \\(H, W\\)"),
    "sequence": ("ConvDecoder", (4, 4, (8, 8, 8)), {"spatial_dims": 1}, "must be \\(T,\\)"),
    "spatial": ("ConvDecoder", (4, 4, (8, 8)), {"spatial_dims": 3}, "`spatial_dims`.*got 3"),
    "groups": ("ConvEncoder", ((8, 8), 16, 4), {"num_groups": 0}, "`num_groups`"),
    "blocks": ("ConvEncoder", ((8, 8), 16, 4), {"num_blocks": -1}, "`num_blocks`"),
    "start": ("ConvDecoder", (16, 4, (8, 8)), {"start": np.zeros(3)}, "`start`"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_is_refused_by_name(lab, case):
    kind, args, options, message = BAD[case]
    options = {k: lab.asarray(v) if k == "start" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        getattr(lab.module("nets"), kind)(*args, **options)


def test_data_of_the_wrong_side_or_kind_are_refused(lab):
    x = RNG.normal(size=(2, 8, 8, 3))
    net = made(lab, "ConvEncoder", (8, 8, 3), 16, 4, inputs=x)
    with pytest.raises(ValueError, match="`x` must have shape"):
        net(lab.asarray(x.transpose(0, 3, 1, 2)))
    with pytest.raises(ValueError, match="floating-point"):
        net(lab.asarray(np.zeros((2, 8, 8, 3), np.uint8)))
