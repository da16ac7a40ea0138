"""Codes on the sphere, and by fixed vectors, beside lucidrains' vector-quantize-pytorch."""

import numpy as np
import pytest
from codebook_lab import lab

B, L, D, V = 5, 4, 3, 6
RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(B, L, D)).astype(np.float32)
TABLE = RNG.normal(size=(V, D)).astype(np.float32)
TABLE /= np.linalg.norm(TABLE, axis=1, keepdims=True)
WEIGHTS = RNG.normal(size=(B, L, D)).astype(np.float32)
COUNT, DECAY = 0.1, 0.8
GRADIENTS = pytest.mark.parametrize("gradient", ["straight_through_codes", "rotation_trick"])


@pytest.fixture(scope="module")
def library():
    import vector_quantize_pytorch

    return vector_quantize_pytorch


def run(theirs):
    """Vectors, codes and losses of the library, and its gradient to the inputs."""
    import torch

    leaf = torch.tensor(INPUTS, requires_grad=True)
    vectors, codes, losses = theirs.train()(leaf)
    (torch.asarray(WEIGHTS) * vectors).sum().backward()
    return vectors.detach().numpy(), codes.numpy(), losses.detach(), leaf.grad.numpy()


@pytest.mark.thrifty
@GRADIENTS
def test_the_same_directions_and_averages(backend, library, gradient):
    import torch

    options = {"use_cosine_sim": True, "rotation_trick": gradient == "rotation_trick"}
    theirs = library.VectorQuantize(dim=D, codebook_size=V, decay=DECAY, **options)
    book = theirs._codebook
    book.embed.data.copy_(torch.asarray(TABLE)[None])
    book.cluster_size.fill_(COUNT)
    book.embed_avg.copy_(COUNT * book.embed.data)
    vectors, codes, _, expected = run(theirs)

    def make(nets):
        options = {"decay": DECAY, "min_count": COUNT, "cosine": True}
        return nets.Codebook(V, D, table=backend.asarray(TABLE.copy()), **options)

    ours = lab(backend, make)
    grads = ours.gradient(WEIGHTS, INPUTS, getattr(backend.module("ops.codepaths"), gradient))
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-5)
    found = ours.quantize(INPUTS)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.vectors, vectors, rtol=1e-4, atol=1e-5)
    chosen = np.isin(np.arange(V), codes)
    rows = ours.call("__call__", np.arange(V)[None])[0]
    assert 1 < chosen.sum()
    assert np.abs(rows[chosen] - TABLE[chosen]).max() > 0.05  # there was a step
    np.testing.assert_allclose(rows[chosen], book.embed[0][chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.thrifty
@GRADIENTS
def test_the_same_fixed_vectors_through_a_matrix(backend, library, gradient):
    import torch

    ours = lab(backend, lambda nets: nets.LinearCodebook(V, D))
    theirs = library.SimVQ(dim=D, codebook_size=V, rotation_trick=gradient == "rotation_trick")
    with torch.no_grad():
        theirs.frozen_codebook.copy_(torch.tensor(ours.rows()))
        theirs.code_transform.weight.copy_(torch.eye(D))
    vectors, codes, loss, expected = run(theirs)
    grads = ours.gradient(WEIGHTS, INPUTS, getattr(backend.module("ops.codepaths"), gradient))
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-5)
    found = ours.quantize(INPUTS, learn=False)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.vectors, vectors, rtol=1e-4, atol=1e-5)
    penalty = backend.module("infer.quantization").quantization_penalty
    held = penalty(*map(backend.asarray, (found.inputs, found.vectors)), 0.25)  # of theirs
    assert float(held.mean()) == pytest.approx(loss.item(), rel=1e-4)
