"""Residual codebooks, signs and entropies beside lucidrains' vector-quantize-pytorch."""

import numpy as np
import pytest
from codebook_lab import lab

B, L, D, V = 5, 4, 3, 6
RNG = np.random.default_rng(2)
INPUTS = RNG.normal(size=(B, L, D)).astype(np.float32)
TABLES = RNG.normal(size=(2, V, D)).astype(np.float32)
WEIGHTS = RNG.normal(size=(B, L, D)).astype(np.float32)
COUNT, DECAY = 0.1, 0.8


@pytest.fixture(scope="module")
def library():
    import vector_quantize_pytorch

    return vector_quantize_pytorch


@pytest.mark.thrifty
@pytest.mark.parametrize("gradient", ["straight_through_codes", "rotation_trick"])
def test_the_same_residuals_paths_and_averages(backend, library, gradient):
    import torch

    options = {"decay": DECAY, "rotation_trick": gradient == "rotation_trick"}
    theirs = library.ResidualVQ(dim=D, num_quantizers=2, codebook_size=V, **options)
    for layer, table in zip(theirs.layers, TABLES, strict=True):
        book = layer._codebook
        book.embed.data.copy_(torch.asarray(table)[None])
        book.cluster_size.fill_(COUNT)
        book.embed_avg.copy_(COUNT * book.embed.data)

    def make(nets):
        given = [backend.asarray(table.copy()) for table in TABLES]
        options = {"decay": DECAY, "min_count": COUNT}
        return nets.ResidualCodebook([nets.Codebook(V, D, table=t, **options) for t in given])

    ours = lab(backend, make)
    leaf = torch.tensor(INPUTS, requires_grad=True)
    vectors, codes, losses = theirs.train()(leaf)
    (torch.asarray(WEIGHTS) * vectors).sum().backward()
    route = getattr(backend.module("ops.codepaths"), gradient)
    grads = ours.gradient(WEIGHTS, INPUTS, route)
    np.testing.assert_allclose(grads, leaf.grad, rtol=1e-4, atol=1e-5)
    found = ours.quantize(INPUTS)
    np.testing.assert_array_equal(found.codes, np.concatenate(np.moveaxis(codes.numpy(), -1, 0), 1))
    joined = ours.call("join", found.vectors)
    np.testing.assert_allclose(joined, vectors.detach(), rtol=1e-4, atol=1e-5)
    squares = np.square(found.inputs - found.vectors).reshape(B, 2, L, D).mean((0, 2, 3))
    np.testing.assert_allclose(squares, losses.detach().reshape(-1), rtol=1e-4)
    # After the step, where no code is dead: theirs has no threshold here.
    everything = np.arange(V)[None].repeat(2, 0).reshape(1, -1)
    rows = ours.call("__call__", everything)[0].reshape(2, V, D)
    for stage, layer in enumerate(theirs.layers):
        chosen = np.isin(np.arange(V), codes[..., stage].numpy())
        expected = layer._codebook.embed.detach()[0].numpy()
        np.testing.assert_allclose(rows[stage][chosen], expected[chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.thrifty
@pytest.mark.parametrize("spherical", [False, True])
def test_the_same_signs_and_entropies(backend, library, spherical):
    """Their first channel is the highest bit, ours the lowest; their temperature is 2 s².

    The vectors are short, as theirs clamps the logarithm of a probability at that of 1e-5.
    """
    import torch

    sharpness, bits = 0.7, 4
    x = (0.3 * RNG.normal(size=(B, L, bits))).astype(np.float32)
    theirs = library.LFQ(dim=bits, codebook_size=2**bits, spherical=spherical).train()
    leaf = torch.tensor(x, requires_grad=True)
    (vectors, codes, _), parts = theirs(leaf, sharpness, return_loss_breakdown=True)
    (parts.per_sample_entropy - parts.batch_entropy).backward()
    ours = lab(backend, lambda nets: nets.BinaryCodes(bits, spherical=spherical))
    found = ours.quantize(x, learn=False)
    np.testing.assert_allclose(found.vectors, vectors.detach(), rtol=1e-5)
    reversed_bits = [int(f"{code:04b}"[::-1], 2) for code in codes.numpy().ravel()]
    np.testing.assert_array_equal(found.codes.ravel(), reversed_bits)
    signs, scale = backend.module("ops.signs"), np.sqrt(0.5 / sharpness)

    def penalty(x):
        inputs = signs.on_sphere(x) if spherical else x
        return ours.codebook.entropies(inputs, scale).mean()

    value = float(penalty(backend.asarray(x)))
    expected = (parts.per_sample_entropy - parts.batch_entropy).item()
    assert value == pytest.approx(expected, rel=1e-4)
    grads = np.asarray(backend.grad(penalty)(backend.asarray(x)))
    np.testing.assert_allclose(grads, leaf.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.thrifty
@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_entropies_of_bits_are_those_of_the_table_of_their_codes(backend, bits, masked):
    x = backend.asarray((0.5 * RNG.normal(size=(B, L, bits))).astype(np.float32))
    mask = backend.asarray(np.arange(B)[:, None] < 2) if masked else None
    book = lab(backend, lambda nets: nets.BinaryCodes(bits, scale=0.7)).codebook
    base = backend.module("nets").Quantizer

    def penalty(entropies):
        weights = backend.asarray(np.arange(1.0, B * L + 1, dtype=np.float32).reshape(B, L))
        return lambda x: (weights * entropies(book, x, 0.6, mask)).sum()

    ours, table = penalty(type(book).entropies), penalty(base.entropies)
    assert float(ours(x)) == pytest.approx(float(table(x)), rel=1e-5)
    grads = [np.asarray(backend.grad(each)(x)) for each in (ours, table)]
    np.testing.assert_allclose(*grads, rtol=1e-4, atol=1e-4)  # of numbers up to 15


def test_entropies_under_a_mask_are_those_of_what_is_left(backend):
    soft = backend.module("ops.assignments")
    logits = RNG.normal(size=(7, 5))
    mask = np.arange(7) < 4
    found = soft.mean_entropy(backend.asarray(logits), backend.asarray(mask))
    alone = soft.mean_entropy(backend.asarray(logits[:4]))
    assert float(found) == pytest.approx(float(alone), rel=1e-9)
    none = soft.mean_entropy(backend.asarray(logits), backend.asarray(mask & False))
    assert float(none) == 0.0
