"""Codes on a grid: convolutions around a codebook, channels first in Torch and last in flax."""

import numpy as np
import pytest

B, H, W, D, V = 3, 2, 3, 4, 5
L = H * W
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, 2 * H, 2 * W, 1)).astype(np.float32)  # channels last
TABLE = RNG.normal(size=(V, D)).astype(np.float32)
DOWN = RNG.normal(size=(2, 2, 1, D)).astype(np.float32)  # (height, width, in, out)
UP = RNG.normal(size=(D, 2, 2, 1)).astype(np.float32)


def is_torch(lab):
    return lab.__name__ == "pyro_lab"


def images(lab):
    return lab.asarray(np.moveaxis(IMAGES, -1, 1) if is_torch(lab) else IMAGES)


def down(lab):
    """Each patch of 2 x 2 pixels to a vector."""
    if is_torch(lab):
        import torch

        net = torch.nn.Conv2d(1, D, 2, stride=2, bias=False)
        net.weight.data = torch.asarray(DOWN).permute(3, 2, 0, 1).contiguous()
        return net
    from flax import linen as nn

    return nn.Conv(D, (2, 2), (2, 2), use_bias=False, kernel_init=lambda *_: lab.asarray(DOWN))


def up(lab):
    """Each vector to a patch."""
    if is_torch(lab):
        import torch

        net = torch.nn.ConvTranspose2d(D, 1, 2, stride=2, bias=False)
        net.weight.data = torch.asarray(UP).permute(0, 3, 1, 2).contiguous()
        return net
    from flax import linen as nn

    kernel = lab.asarray(UP.transpose(1, 2, 0, 3)[::-1, ::-1].copy())  # flax has it upside down
    return nn.ConvTranspose(1, (2, 2), (2, 2), use_bias=False, kernel_init=lambda *_: kernel)


def parts(lab, **codebook):
    nets, models, guides = map(lab.module, ("nets", "models", "guides"))
    grid = {"grid": (H, W), "channels_first": is_torch(lab)}
    book = nets.Codebook(V, D, table=lab.asarray(TABLE), **codebook)
    decoder = nets.CodebookDecoder(book, up(lab), **grid)
    likelihood = models.GaussianLikelihood(variance=1.0, learn=False)
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), likelihood)
    return model, guides.VectorQuantizedGuide(down(lab), book, **grid)


def vectors():
    patches = IMAGES.reshape(B, H, 2, W, 2).transpose(0, 1, 3, 2, 4).reshape(B, L, 4)
    return patches @ DOWN.reshape(4, D)


def decoded(codes):
    """Means of codes ``(..., L)``, channels last."""
    patches = (TABLE[codes] @ UP.reshape(D, 4)).reshape(*codes.shape[:-1], H, W, 2, 2)
    return np.moveaxis(patches, -2, -3).reshape(*codes.shape[:-1], 2 * H, 2 * W, 1)


def last(lab, array):
    return np.moveaxis(lab.numpy(array), -3, -1) if is_torch(lab) else lab.numpy(array)


def test_codes_and_means_of_a_grid(lab):
    model, guide = parts(lab)
    codes = ((vectors()[..., None, :] - TABLE) ** 2).sum(-1).argmin(-1)
    found = lab.sites(guide, images(lab))["z"].value
    np.testing.assert_array_equal(found, codes)
    for given in (codes, np.stack([codes, codes[::-1]]), codes.reshape(B, H, W)):
        z = lab.asarray(given)
        means = last(lab, lab.bind(model.reconstruct, z)(z))
        expected = (
            decoded(given.reshape(*given.shape[: given.ndim - 1], -1))
            if given.shape[-1] == L
            else decoded(codes)
        )
        np.testing.assert_allclose(means, expected, atol=1e-5)


def test_relaxed_codes_of_a_grid(lab):
    model, _ = parts(lab)
    codes = RNG.integers(V, size=(2, B, L))
    z = lab.asarray(np.eye(V, dtype=np.float32)[codes])
    np.testing.assert_allclose(
        last(lab, lab.bind(model.reconstruct, z)(z)), decoded(codes), atol=1e-5
    )


def test_particles_fold_away(lab):
    model, _ = parts(lab)
    sites = lab.sites(model, images(lab), particles=4)
    error = last(lab, images(lab)) - decoded(sites["z"].value)
    expected = -0.5 * (error**2).sum((-3, -2, -1)) - 0.5 * np.log(2 * np.pi) * 4 * L
    np.testing.assert_allclose(sites["x"].log_prob, expected, rtol=1e-4)


def test_logits_of_a_grid(lab):
    guide = lab.module("guides").IndependentGuide(
        down(lab), grid=(H, W), channels_first=is_torch(lab)
    )
    x = images(lab)
    posterior = lab.bind(guide.posterior, x)(x)
    assert tuple(posterior.batch_shape) == (B,)
    assert tuple(posterior.event_shape) == (L,)
    expected = vectors() - np.log(np.exp(vectors()).sum(-1, keepdims=True))
    codes = np.zeros((B, L), int)
    found = lab.numpy(posterior.log_prob(lab.asarray(codes)))
    np.testing.assert_allclose(found, expected[..., 0].sum(-1), rtol=1e-4)


def test_a_context_of_a_grid(lab, monkeypatch):
    seen = []

    def noted(transformer, context):
        seen.append(context)
        return distribution(transformer, context)

    module = lab.module("guides.autoregressive")
    distribution = module.AutoregressiveCategorical
    monkeypatch.setattr(module, "AutoregressiveCategorical", noted)
    transformer = lab.module("nets").CausalTransformer(2, V, embed_dim=D, num_heads=1)
    grid = {"grid": (H, W), "channels_first": is_torch(lab)}
    guide = module.AutoregressiveGuide(down(lab), transformer, **grid)
    x = images(lab)
    posterior = lab.bind(guide.posterior, x)(x)
    assert (tuple(posterior.batch_shape), tuple(posterior.event_shape)) == ((B,), (2,))
    np.testing.assert_allclose(lab.numpy(seen[-1]), vectors(), rtol=1e-4, atol=1e-5)


def test_wrong_grids_and_images_are_named(lab):
    guides, x = lab.module("guides"), images(lab)
    wrong_grid = guides.IndependentGuide(down(lab), grid=(H, W + 1), channels_first=is_torch(lab))
    with pytest.raises(ValueError, match=r"channels_first=.*on the other side"):
        lab.sites(wrong_grid, x)
    with pytest.raises(ValueError, match=r"`grid` must be sizes of at least 1"):
        guides.IndependentGuide(down(lab), grid=(0, 2))
    with pytest.raises(ValueError, match="`channels_first` is of a grid"):
        guides.IndependentGuide(down(lab), channels_first=True)
    right = guides.IndependentGuide(down(lab), grid=(H, W), channels_first=is_torch(lab))
    with pytest.raises(ValueError, match=r"the channels of an image|on the other side"):
        lab.sites(right, lab.asarray(np.moveaxis(lab.numpy(x), 1, -1).copy()))
    with pytest.raises(ValueError, match=r"`encoder` failed on data of shape .*uint8"):
        lab.sites(right, lab.asarray(lab.numpy(x).astype(np.uint8)))
    wide = lab.module("nets").Codebook(V, D + 1)
    head = lab.module("nets").CodebookEncoder(down(lab), wide)
    for without in (guides.VectorQuantizedGuide(down(lab), wide), guides.IndependentGuide(head)):
        with pytest.raises(ValueError, match=r"as wide as the codebook's.*, 5\).*`grid`"):
            lab.sites(without, x)
    model, _ = parts(lab)
    z = lab.asarray(np.zeros((2, L + 1), int))
    with pytest.raises(ValueError, match=r"has 6 places, but a datum has 7 latents"):
        lab.bind(model.reconstruct, z)(z)


def in_turn(lab, *layers):
    if is_torch(lab):
        import torch

        return torch.nn.Sequential(*layers)
    from flax import linen as nn

    return nn.Sequential(layers)


def elementwise(lab):
    if is_torch(lab):
        import torch

        return [torch.nn.ReLU(), torch.nn.Tanh()]
    from flax import linen as nn

    return [nn.relu, nn.tanh]


def test_the_side_of_channels_is_that_of_convolutions(lab):
    """Where the width is that of the grid's sides, no size tells that it is on the wrong one."""
    nets, guides = map(lab.module, ("nets", "guides"))
    book, side = nets.Codebook(V, D), {"grid": (D, D), "channels_first": not is_torch(lab)}
    ends = in_turn(lab, in_turn(lab, down(lab)), *elementwise(lab))
    begins = in_turn(lab, *elementwise(lab), up(lab))
    made = [
        lambda **o: guides.VectorQuantizedGuide(ends, book, **o),
        lambda **o: guides.IndependentGuide(ends, **o),
        lambda **o: nets.CodebookEncoder(ends, book, **o),
        lambda **o: nets.CodebookDecoder(book, begins, **o),
    ]
    says = f"have channels {'before' if is_torch(lab) else 'behind'} the grid. Pass channels_first"
    for make in made:
        with pytest.raises(ValueError, match=says):
            make(**side)
        make(**side | {"channels_first": is_torch(lab)})
    moves = nets.MLPEncoder((D, D), D, D, hidden=(3,))  # a layer of another kind tells nothing
    guides.IndependentGuide(in_turn(lab, down(lab), moves), **side)
    nets.CodebookDecoder(book, in_turn(lab, moves, up(lab)), **side)


@pytest.mark.slow  # to import nnx
def test_the_side_of_channels_is_that_of_nnx_and_of_ours():
    nets, nnx = pytest.importorskip("numpyro_dvae.nets"), pytest.importorskip("flax.nnx")
    layer = nnx.Conv(1, D, (2, 2), 2, rngs=nnx.Rngs(0))
    ends, book = nnx.Sequential(nnx.Sequential(layer), nnx.relu), nets.Codebook(V, D)
    guides = pytest.importorskip("numpyro_dvae.guides")
    with pytest.raises(ValueError, match="network's Conv have channels behind the grid"):
        guides.VectorQuantizedGuide(ends, book, grid=(D, D), channels_first=True)
    with pytest.raises(ValueError, match="network's Upsampling have channels behind the grid"):
        nets.CodebookDecoder(book, nets.Upsampling(1), grid=(D, D), channels_first=True)
    guides.VectorQuantizedGuide(ends, book, grid=(D, D))
