"""Networks: what the causal transformer may see, its cache, its shared context; sizes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro_dvae import distributions  # noqa: E402
from pyro_dvae.nets import (  # noqa: E402
    CausalTransformer,
    MLPDecoder,
    MLPEncoder,
    PatchEncoder,
    transformer,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
L, V, D = 5, 6, 8


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


def causal(dtype=torch.float64, **options):
    return CausalTransformer(L, V, embed_dim=D, num_layers=2, num_heads=2, **options).to(dtype)


def uncached(net, uniforms, context=None):
    """The sampler without a cache: one full teacher-forced pass per code."""
    codes = torch.zeros(uniforms.shape, dtype=torch.long)
    for position in range(L):
        logits = net(codes, context)[..., position, :]
        drawn = distributions.sample_codes(logits, uniforms[None, ..., position])
        codes[..., position] = drawn[0]
    return codes


@dtypes
@pytest.mark.parametrize("with_context", [True, False])
def test_the_cache_changes_no_code(dtype, with_context):
    net = causal(dtype, cross_attention=with_context)
    context = torch.randn(3, 4, D, dtype=dtype) if with_context else None
    uniforms = torch.rand(50, 3, L, dtype=dtype)
    assert torch.equal(net.invert_cdf(uniforms, context), uncached(net, uniforms, context))
    control = net.invert_cdf(uniforms.flip(0), context)
    assert not torch.equal(control, uncached(net, uniforms, context))


@dtypes
def test_teacher_forced_log_q_is_the_samplers_own(dtype, monkeypatch):
    net, steps = causal(dtype), []

    def recording(logits, uniforms):
        codes = distributions.sample_codes(logits, uniforms)
        steps.append((logits, codes[0]))
        return codes

    monkeypatch.setattr(transformer, "sample_codes", recording)
    context = torch.randn(4, 7, D, dtype=dtype)
    codes = net.sample(context, sample_shape=(300,))
    own = torch.stack([distributions.log_prob_of_codes(*step) for step in steps], -1)
    scored = distributions.log_prob_of_codes(net(codes, context), codes)
    torch.testing.assert_close(scored, own.reshape(scored.shape), rtol=0, atol=TOLERANCE[dtype])
    assert (codes == 0).any(0).all()  # code 0 occurs at each position of each datum


def largest_leak(net):
    """How far a changed code moves the logits at its own position or before it."""
    context, codes = torch.randn(2, 4, D).double(), torch.randint(V, (2, L))
    leak = 0.0
    for position in range(L):
        changed = codes.clone()
        changed[:, position] = (codes[:, position] + 1) % V
        difference = (net(changed, context) - net(codes, context)).abs()
        leak = max(leak, difference[:, : position + 1].max().item())
        assert position == L - 1 or difference[:, position + 1 :].max() > 1e-3  # the past counts
    return leak


def test_no_code_sees_itself_or_the_future():
    net = causal()
    assert largest_leak(net) < 1e-14
    for block in net.blocks:  # negative control
        block.causal = False
    assert largest_leak(net) > 1e-3


def test_one_more_latent_changes_no_earlier_logit():
    """Nothing is padded, so a prefix of codes has the logits of the whole."""
    net, codes = causal(cross_attention=False), torch.randint(V, (20, L))
    begun = codes.clone()
    begun[:, 3:] = 0
    torch.testing.assert_close(net(begun)[:, :4], net(codes)[:, :4], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("sample", "batch"), [((), (3,)), ((6,), (3,)), ((2, 6), (3,)), ((4,), ()), ((2,), (3, 4))]
)
def test_particles_share_the_context(sample, batch):
    net = causal()
    context = torch.randn(*batch, 4, D, dtype=torch.float64, requires_grad=True)
    codes = torch.randint(V, (*sample, *batch, L))
    copied = context.expand(*sample, *batch, 4, D).contiguous()
    shared, apart = net(codes, context), net(codes, copied)
    assert shared.shape == (*sample, *batch, L, V)
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-12)
    weights = torch.randn_like(shared)
    gradients = [torch.autograd.grad((weights * y).sum(), context)[0] for y in (shared, apart)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_codes_and_context_broadcast():
    net, codes = causal(), torch.randint(V, (4, 3, L))
    column = torch.randn(4, 1, 2, D).double()
    torch.testing.assert_close(net(codes, column), net(codes, column.expand(4, 3, 2, D)))
    torch.testing.assert_close(net(codes[0], column), net(codes[:1].expand(4, 3, L), column))


def test_data_do_not_see_each_other():
    net, context = causal(), torch.randn(3, 4, D).double()
    codes = torch.randint(V, (7, 3, L))
    alone = torch.stack([net(codes[:, i], context[i]) for i in range(3)], 1)
    torch.testing.assert_close(net(codes, context), alone, rtol=0, atol=1e-12)


def test_the_transformer_refuses_wrong_shapes():
    net, codes = causal(), torch.zeros(2, L, dtype=torch.long)
    with pytest.raises(ValueError, match="`codes` must end in 5"):
        net(codes[:, 1:], torch.zeros(2, 4, D).double())
    with pytest.raises(ValueError, match="`context` must be given"):
        net(codes)
    with pytest.raises(ValueError, match="`context` must be None"):
        causal(cross_attention=False)(codes, torch.zeros(2, 4, D).double())
    with pytest.raises(ValueError, match="same `embed_dim`"):
        net(codes, torch.zeros(2, 4, D + 1).double())
    with pytest.raises(ValueError, match="`num_heads` must divide"):
        CausalTransformer(L, V, embed_dim=10, num_heads=4)


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
def test_patches_tile_the_image(shape, num_patches, grid, patch):
    net = PatchEncoder(shape, num_patches, embed_dim=8, num_heads=2)
    assert {net.grid, (net.grid[1], net.grid[0])} & {grid}
    assert sorted(net.patch_shape) == sorted(patch)
    images = torch.randn(3, *shape)
    patches = net.patches(images)
    assert patches.shape == (3, num_patches, net.dense.in_features)
    first = images[:, : net.patch_shape[0], : net.patch_shape[1]].reshape(3, -1)
    torch.testing.assert_close(patches[:, 0], first)
    torch.testing.assert_close(patches.sum(dim=(1, 2)), images.flatten(1).sum(1))  # all, once
    assert net(images).shape == (3, num_patches, 8)
    assert net(images.expand(2, 3, *shape)).shape == (2, 3, num_patches, 8)


@pytest.mark.parametrize("num_codes", [None, 7])
def test_perceptrons_keep_leading_dims(num_codes):
    encoder = MLPEncoder((4, 5), 3, num_codes, hidden=(16,))
    decoder = MLPDecoder(3, num_codes, (4, 5), embed_dim=6, hidden=(8, 16))
    x = torch.randn(2, 9, 4, 5)
    logits = encoder(x)
    assert logits.shape == (2, 9, 3) if num_codes is None else (2, 9, 3, num_codes)
    z = torch.rand(2, 9, 3).round() if num_codes is None else torch.randint(7, (2, 9, 3))
    torch.testing.assert_close(decoder(z)[1, 4], decoder(z[1, 4]))
    assert decoder(z).shape == (2, 9, 4, 5)


def test_networks_name_the_shape_they_want():
    encoder, decoder = MLPEncoder((4, 5), 3, 7), MLPDecoder(3, 7, (4, 5))
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*batch, 4, 5\); got \(2, 20\)"):
        encoder(torch.zeros(2, 20))
    with pytest.raises(ValueError, match="Convert it first"):
        encoder(torch.zeros(2, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`z` must end in 3"):
        decoder(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, C\)"):
        PatchEncoder((20,), 4)


def test_networks_start_at_a_sane_scale():
    encoder, net = PatchEncoder((28, 28), 8), CausalTransformer(8, 256)
    with torch.no_grad():
        logits = net(torch.randint(256, (4, 8)), encoder(torch.rand(4, 28, 28)))
    assert 0.1 < logits.std() < 3
    assert (
        np.log(256) - 3 < distributions.Categorical(logits=logits).entropy().mean() <= np.log(256)
    )
