"""Networks: what the causal transformer may see, its cache, its shared context; sizes."""

import numpy as np
import pytest
from oracles import log_prob_of_codes

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
L, V, D = 5, 6, 8
BUILT = {}


def normal(*shape, dtype="float64"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def draws(*shape, high=V):
    return np.random.default_rng(1).integers(high, size=shape)


def close(found, expected, atol=1e-12):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=atol)


def build(lab, name, *args, inputs, dtype="float64", **options):
    """A network with parameters, called with NumPy arrays and returning them."""
    key = (lab.name, name, repr(args), repr(options), dtype)
    if key not in BUILT:  # JAX compiles each but once
        net = getattr(lab.module("nets"), name)(*args, **options)
        BUILT[key] = lab.network(net, *(lab.asarray(i) for i in inputs), dtype=dtype)
    net = BUILT[key]
    return net, lambda *arrays: lab.numpy(net(*map(lab.asarray, arrays)))


def causal(lab, dtype="float64", **options):
    inputs = [draws(1, L)]
    if options.get("cross_attention", True):
        inputs.append(normal(1, 4, D))
    options = {"embed_dim": D, "num_heads": 2, **options}
    return build(lab, "CausalTransformer", L, V, inputs=inputs, dtype=dtype, **options)


def uncached(lab, forward, uniforms, *context):
    """The sampler without a cache: one full teacher-forced pass per code."""
    codes = np.zeros(uniforms.shape, int)
    sample_codes = lab.module("distributions").sample_codes
    for position in range(L):
        logits = forward(codes, *context)[..., position, :]
        drawn = sample_codes(lab.asarray(logits), lab.asarray(uniforms[None, ..., position]))
        codes[..., position] = lab.numpy(drawn)[0]
    return codes


@pytest.mark.thrifty
@pytest.mark.parametrize(("dtype", "with_context"), [("float32", True), ("float64", False)])
def test_the_cache_changes_no_code(lab, dtype, with_context):
    net, forward = causal(lab, dtype, cross_attention=with_context, num_layers=2)
    context = [normal(3, 4, D, dtype=dtype)] if with_context else []
    uniforms = np.random.default_rng(2).uniform(size=(50, 3, L)).astype(dtype)
    expected = uncached(lab, forward, uniforms, *context)
    for flipped in (False, True):  # the second is the negative control
        order = slice(None, None, -1) if flipped else slice(None)
        arrays = map(lab.asarray, (uniforms[order].copy(), *context))
        found = lab.numpy(net.invert_cdf(*arrays))
        assert np.array_equal(found, expected) is not flipped


@pytest.mark.thrifty
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_teacher_forced_log_q_is_the_samplers_own(lab, dtype, monkeypatch):
    distributions, steps = lab.module("distributions"), []
    net, _ = causal(lab, dtype)
    sampler = distributions.sample_codes

    def recording(logits, uniforms):
        codes = sampler(logits, uniforms)
        steps.append((logits, codes[0]))
        return codes

    monkeypatch.setattr(lab.module("nets.transformer"), "sample_codes", recording)
    context = lab.asarray(normal(4, 7, D, dtype=dtype))
    with lab.step_by_step():
        codes = lab.sample(net, context, sample_shape=(300,))
    assert len(steps) == L
    own = [log_prob_of_codes(*map(lab.numpy, step)) for step in steps]
    scored = log_prob_of_codes(lab.numpy(net(codes, context)), lab.numpy(codes))
    close(scored, np.stack(own, -1).reshape(scored.shape), TOLERANCE[dtype])
    assert (lab.numpy(codes) == 0).any(0).all()  # code 0 occurs at each position of each datum


def largest_leak(forward):
    """How far a changed code moves the logits at its own position or before it."""
    context, codes = normal(2, 4, D), draws(2, L)
    leak, before = 0.0, forward(codes, context)
    for position in range(L):
        changed = codes.copy()
        changed[:, position] = (codes[:, position] + 1) % V
        difference = np.abs(forward(changed, context) - before)
        leak = max(leak, difference[:, : position + 1].max())
        assert position == L - 1 or difference[:, position + 1 :].max() > 1e-3  # the past counts
    return leak


@pytest.mark.thrifty
def test_no_code_sees_itself_or_the_future(lab, monkeypatch):
    _, forward = causal(lab)
    assert largest_leak(forward) < 1e-14
    lab.see_the_future(monkeypatch)  # negative control
    monkeypatch.setitem(globals(), "BUILT", {})
    _, forward = causal(lab)
    assert largest_leak(forward) > 1e-3


def test_one_more_latent_changes_no_earlier_logit(lab):
    """Nothing is padded, so a prefix of codes has the logits of the whole."""
    (_, forward), codes = causal(lab, cross_attention=False), draws(20, L)
    begun = codes.copy()
    begun[:, 3:] = 0
    close(forward(begun)[:, :4], forward(codes)[:, :4], 1e-14)


@pytest.mark.thrifty
@pytest.mark.parametrize(("sample", "batch"), [((6,), (3,)), ((2, 3), ()), ((2,), (3, 4))])
def test_particles_share_the_context(lab, sample, batch):
    net, _ = causal(lab)
    context, codes = normal(*batch, 4, D), lab.asarray(draws(*sample, *batch, L))
    copied = np.broadcast_to(context, (*sample, *batch, 4, D)).copy()
    shared, apart = (lab.numpy(net(codes, lab.asarray(c))) for c in (context, copied))
    assert shared.shape == (*sample, *batch, L, V)
    close(shared, apart)
    weights = lab.asarray(np.random.default_rng(3).normal(size=shared.shape))
    gradients = [
        lab.gradient(lambda c: (weights * net(codes, c)).sum(), array)
        for array in (context, copied)
    ]
    close(gradients[0], gradients[1].reshape(-1, *context.shape).sum(0))


def test_codes_and_context_broadcast(lab):
    (_, forward), codes, column = causal(lab), draws(4, 3, L), normal(4, 1, 2, D)
    expected = forward(codes, np.broadcast_to(column, (4, 3, 2, D)).copy())
    close(forward(codes, column), expected)
    wide = np.broadcast_to(codes[:1], (4, 3, L)).copy()
    close(forward(codes[0], column), forward(wide, column))


def test_data_do_not_see_each_other(lab):
    (_, forward), context, codes = causal(lab), normal(3, 4, D), draws(7, 3, L)
    alone = [forward(codes[:, i], context[i]) for i in range(3)]
    close(forward(codes, context), np.stack(alone, 1))


def test_the_transformer_refuses_wrong_shapes(lab):
    (_, forward), codes = causal(lab), draws(2, L)
    with pytest.raises(ValueError, match="`codes` must end in 5"):
        forward(codes[:, 1:], normal(2, 4, D))
    with pytest.raises(ValueError, match="`context` must be given"):
        forward(codes)
    with pytest.raises(ValueError, match="`context` must be None"):
        causal(lab, cross_attention=False)[1](codes, normal(2, 4, D))
    with pytest.raises(ValueError, match="same `embed_dim`"):
        forward(codes, normal(2, 4, D + 1))
    with pytest.raises(ValueError, match="`num_heads` must divide"):
        causal(lab, embed_dim=10, num_heads=4)


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("shape", "num_patches", "grid", "patch"),
    [
        ((28, 28), 8, (2, 4), (14, 7)),
        ((8, 8), 4, (2, 2), (4, 4)),
        ((32, 32, 3), 64, (8, 8), (4, 4)),
        ((9, 10), 6, (3, 2), (3, 5)),
        ((5, 5), 4, (2, 2), (3, 3)),  # padded to 6 x 6
    ],
)
def test_patches_tile_the_image(lab, shape, num_patches, grid, patch):
    images, options = normal(3, *shape), {"embed_dim": 8, "num_heads": 2}
    net, forward = build(lab, "PatchEncoder", shape, num_patches, inputs=[images], **options)
    assert {net.grid, (net.grid[1], net.grid[0])} & {grid}
    assert sorted(net.patch_shape) == sorted(patch)
    patches = lab.numpy(net.patches(lab.asarray(images)))
    depth = shape[2] if len(shape) == 3 else 1
    assert patches.shape == (3, num_patches, patch[0] * patch[1] * depth)
    close(patches[:, 0], images[:, : net.patch_shape[0], : net.patch_shape[1]].reshape(3, -1))
    close(patches.sum(axis=(1, 2)), images.reshape(3, -1).sum(1))  # all, once
    assert forward(images).shape == (3, num_patches, 8)
    assert forward(np.stack([images] * 2)).shape == (2, 3, num_patches, 8)


@pytest.mark.parametrize("num_codes", [None, 7])
def test_perceptrons_keep_leading_dims(lab, num_codes):
    x, z = normal(2, 9, 4, 5), draws(2, 9, 3, high=num_codes or 2)
    z = z if num_codes else z.astype(float)
    _, encode = build(lab, "MLPEncoder", (4, 5), 3, num_codes, hidden=(16,), inputs=[x])
    options = {"embed_dim": 6, "hidden": (8, 16)}
    _, decode = build(lab, "MLPDecoder", 3, num_codes, (4, 5), inputs=[z], **options)
    assert encode(x).shape == (2, 9, 3) if num_codes is None else (2, 9, 3, num_codes)
    close(decode(z)[1, 4], decode(z[1, 4]))
    assert decode(z).shape == (2, 9, 4, 5)


def test_a_decoder_starts_at_given_outputs(lab):
    z, start = draws(50, 3, high=7), 3.0 * normal(4, 5)
    options = {"embed_dim": 6, "hidden": (8, 16), "inputs": [z]}
    _, at_zero = build(lab, "MLPDecoder", 3, 7, (4, 5), **options)
    _, decode = build(lab, "MLPDecoder", 3, 7, (4, 5), start=lab.asarray(start), **options)
    close(at_zero(z), np.zeros((50, 4, 5)), atol=1.0)
    close(decode(z), np.broadcast_to(start, (50, 4, 5)), atol=1.0)
    assert np.abs(start).max() > 5.0
    with pytest.raises(ValueError, match=r"`start` must have the shape of the output, \(4, 5\)"):
        lab.module("nets").MLPDecoder(3, 7, (4, 5), start=lab.asarray(start[0]))


def test_networks_name_the_shape_they_want(lab):
    _, encode = build(lab, "MLPEncoder", (4, 5), 3, 7, inputs=[normal(2, 4, 5)])
    _, decode = build(lab, "MLPDecoder", 3, 7, (4, 5), inputs=[draws(2, 3)])
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*batch, 4, 5\); got \(2, 20\)"):
        encode(np.zeros((2, 20)))
    with pytest.raises(ValueError, match="Convert it first"):
        encode(np.zeros((2, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="`z` must end in 3"):
        decode(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, C\)"):
        lab.module("nets").PatchEncoder((20,), 4)


def test_networks_start_at_a_sane_scale(lab):
    codes, images = draws(4, 8, high=256), np.random.default_rng(2).uniform(size=(4, 28, 28))
    _, encode = build(lab, "PatchEncoder", (28, 28), 8, inputs=[images])
    context = encode(images)
    _, forward = build(lab, "CausalTransformer", 8, 256, inputs=[codes, context])
    logits = forward(codes, context)
    assert 0.1 < logits.std() < 3
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probs = weights / weights.sum(-1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(-1).mean()
    assert np.log(256) - 3 < entropy <= np.log(256)


@pytest.mark.parametrize(("hidden", "scale"), [((), 1.0), ((400,), 0.1), ((400, 300), 1.0)])
def test_perceptrons_keep_the_scale_of_their_input(lab, hidden, scale):
    """Hidden layers keep the mean square; outputs are uniform within scale / sqrt(width)."""
    x, options = np.random.default_rng(4).normal(size=(200, 500)), {"output_scale": scale}
    _, encode = build(lab, "MLPEncoder", (500,), 60, 10, hidden=hidden, inputs=[x], **options)
    assert np.mean(encode(x) ** 2) == pytest.approx(scale**2 / 3, rel=0.15)


@pytest.mark.thrifty
def test_a_positive_decoder_starts_without_dead_units(lab):
    """At 0 / 1 latents; each latent alone then moves every hidden unit."""
    codes = np.eye(6)
    build_one = {"inputs": [codes], "hidden": ()}  # the outputs are then the first layer's
    _, decode = build(lab, "MLPDecoder", 6, None, (40,), positive=True, **build_one)
    assert (decode(codes) > decode(0 * codes)).all()
    _, decode = build(lab, "MLPDecoder", 6, None, (40,), **build_one)
    assert (decode(codes) < decode(0 * codes)).any()
