"""Single codebooks: how they start, restart, lie on the sphere, or need no table."""

import numpy as np
import pytest
from codebook_lab import lab

N, D, V = 40, 3, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
KINDS = [{"decay": None}, {"decay": 0.9}]


def among(rows, inputs):
    """Which rows are inputs."""
    return (np.abs(rows[:, None] - inputs) < 1e-6).all(-1).any(1)


def nearest(inputs, rows):
    return ((inputs[:, None] - rows) ** 2).sum(-1).argmin(1)


@pytest.mark.thrifty
@pytest.mark.parametrize("options", KINDS)
def test_dead_codes_restart_at_inputs(backend, options):
    table = X[:V] + np.array([[0.0], [0.0], [0.0], [90.0], [91.0], [92.0]], np.float32)
    given, often = backend.asarray(table), {"min_count": 2.0 if options["decay"] is None else 0.1}
    book = lab(backend, lambda nets: nets.Codebook(V, D, table=given, **options, **often))
    book.quantize(X)
    moved = among(book.rows(), X)
    np.testing.assert_array_equal(moved[3:], True)
    if options["decay"] is None:  # the others wait for a gradient
        np.testing.assert_allclose(book.rows()[:3], table[:3])
    still = lab(backend, lambda nets: nets.Codebook(V, D, table=given, min_count=None, **options))
    still.quantize(X)
    np.testing.assert_allclose(still.rows()[3:], table[3:], rtol=1e-4)  # the negative control


@pytest.mark.thrifty
def test_averages_without_a_table_lose_codes_by_what_they_have_seen(backend):
    """Of V codes, each counted as .5 at first, those unchosen are not dead at the first batch."""
    decay, least = 0.9, 0.5
    book = lab(backend, lambda nets: nets.Codebook(V, D, decay=decay, min_count=least))
    counts, restarts = np.full(V, least), []
    for _ in range(12):
        chosen = np.bincount(book.quantize(X[:1].repeat(N, 0)).codes, minlength=V)
        counts = decay * counts + (1 - decay) * chosen
        share = min(counts.sum() / N, 1.0)
        dead = counts < least * share
        counts = np.where(dead, least * share, counts)
        restarts.append(dead.sum())
        np.testing.assert_allclose(book.counts(), counts, rtol=1e-5)
        np.testing.assert_allclose(book.rows()[dead], X[:1].repeat(dead.sum(), 0), rtol=1e-5)
    assert not any(restarts[:5])
    assert any(restarts)


@pytest.mark.thrifty
@pytest.mark.parametrize("options", KINDS)
def test_a_start_of_data_is_inputs_that_no_mask_hides(backend, options):
    mask = np.arange(N) < 20
    book = lab(backend, lambda nets: nets.Codebook(V, D, start="data", **options))
    found = book.quantize(X, mask)
    assert among(np.unique(found.vectors, axis=0), X[:20]).all()
    assert not among(found.vectors, X[20:]).any()
    before = book.rows()
    again = book.quantize(X + 50)  # the start is over: codes that are not dead stay
    kept = book.rows()[nearest(before, before)]
    assert np.abs(again.vectors).max() < 10
    assert kept.shape == before.shape


@pytest.mark.parametrize("options", [*KINDS, {"decay": 0.99, "min_count": 2.0}])
def test_a_start_by_k_means_finds_clusters(backend, options):
    """And keeps them: a batch that begins a codebook counts whole, not by what averages take in."""
    centres = 10 * np.eye(V, D, dtype=np.float32) + np.arange(V, dtype=np.float32)[:, None]
    inputs = centres[np.arange(60) % V] + 0.01 * RNG.normal(size=(60, D)).astype(np.float32)
    book = lab(backend, lambda nets: nets.Codebook(V, D, start="k_means", **options))
    codes = book.quantize(inputs).codes
    assert len(np.unique(codes)) == V
    for code in range(V):
        members = inputs[codes == code]
        np.testing.assert_allclose(book.rows()[code], members.mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", KINDS)
def test_k_means_needs_as_many_inputs_as_codes(backend, options):
    book = lab(backend, lambda nets: nets.Codebook(V, D, start="k_means", **options))
    with pytest.raises(ValueError, match="at least as many as the codes, 6; got 4"):
        book.quantize(X[:4])


@pytest.mark.parametrize("options", KINDS)
def test_codes_on_the_sphere(backend, options):
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    book = lab(backend, lambda nets: nets.Codebook(V, D, start="data", cosine=True, **options))
    book.quantize(X)
    rows = book.rows()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    found = book.quantize(X, learn=False)
    np.testing.assert_allclose(found.inputs, units, rtol=1e-5)
    np.testing.assert_array_equal(found.codes, (units @ rows.T).argmax(1))


def test_averages_on_the_sphere_are_directions_of_means(backend):
    given = backend.asarray(X[:V])
    book = lab(backend, lambda nets: nets.Codebook(V, D, decay=0.0, table=given, cosine=True))
    codes = book.quantize(X).codes
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    for code in range(V):
        mean = units[codes == code].mean(0)
        expected = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(book.rows()[code], expected, rtol=1e-3, atol=1e-4)


def test_frozen_codebooks_stay(backend):
    book = lab(backend, lambda nets: nets.Codebook(V, D, table=backend.asarray(X[:V] + 50)))
    book.codebook.eval()
    book.quantize(X)
    np.testing.assert_allclose(book.rows(), X[:V] + 50)


@pytest.mark.parametrize("start", ["uniform", "data", "k_means"])
def test_parameters_frozen_as_in_torch_stay(start):
    """Dead codes of a table that takes no gradient do not restart, and it starts at no data."""
    torch = pytest.importorskip("torch")
    codebook = pytest.importorskip("pyro_dvae.nets").Codebook(V, D, start=start, min_count=2.0 * N)
    before = codebook.requires_grad_(False).table.clone()
    for _ in range(3):
        codebook.quantize(torch.asarray(X), learn=True)
        codebook.begin(torch.asarray(X))
    assert torch.equal(codebook.table, before)
    codebook.requires_grad_(True).quantize(torch.asarray(X), learn=True)  # the negative control
    assert not torch.equal(codebook.table, before)


def test_a_linear_codebook_is_fixed_vectors_through_a_matrix(backend):
    """SimVQ: all rows are of one linear map of vectors that are the same in every codebook."""
    one, two = (lab(backend, lambda nets: nets.LinearCodebook(9, D)) for _ in range(2))
    maps = np.linalg.lstsq(one.rows(), two.rows(), rcond=None)
    np.testing.assert_allclose(one.rows() @ maps[0], two.rows(), atol=1e-4)
    found = one.quantize(X, learn=False)
    np.testing.assert_array_equal(found.codes, nearest(X, one.rows()))
    np.testing.assert_allclose(found.vectors, one.rows()[found.codes], rtol=1e-6)


@pytest.mark.parametrize(("spherical", "scale"), [(False, 1.0), (False, 0.5), (True, 1.0)])
def test_signs_are_the_nearest_of_all_rows(backend, spherical, scale):
    book = lab(backend, lambda nets: nets.BinaryCodes(D, spherical=spherical, scale=scale))
    found, rows = book.quantize(X, learn=False), book.rows()
    assert rows.shape == (2**D, D)
    height = scale / np.sqrt(D) if spherical else scale
    np.testing.assert_allclose(np.abs(rows), height, rtol=1e-6)
    np.testing.assert_array_equal(found.codes, nearest(found.inputs, rows))
    np.testing.assert_allclose(found.vectors, rows[found.codes])
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(found.inputs, scale * units if spherical else X, rtol=1e-5)


def test_scalars_of_a_smaller_scale(backend):
    one, half = (
        lab(backend, lambda nets, s=s: nets.FiniteScalars((5, 3, 4), scale=s)) for s in (1.0, 0.5)
    )
    found, other = one.quantize(X, learn=False), half.quantize(X / 2, learn=False)
    np.testing.assert_array_equal(found.codes, other.codes)
    np.testing.assert_allclose(found.vectors / 2, other.vectors)
    np.testing.assert_allclose(one.rows() / 2, half.rows())


BAD = {
    "`start` must be": lambda nets, table: nets.Codebook(V, D, start="middle"),
    "`start` is for a codebook without": lambda nets, table: nets.Codebook(
        V, D, start="data", table=table
    ),
    "`min_count` must be positive": lambda nets, table: nets.Codebook(V, D, min_count=-1.0),
    "`num_bits` must be 1 to": lambda nets, table: nets.BinaryCodes(0),
    "`scale` must be positive and finite; got 0": lambda nets, table: nets.BinaryCodes(
        3, scale=0.0
    ),
    "`scale` must be positive and finite; got -1": lambda nets, table: nets.FiniteScalars(
        (3, 3), scale=-1.0
    ),
    "`levels` must be numbers of at least 2": lambda nets, table: nets.FiniteScalars((3, 1)),
    "`num_codes` must be at least 2; got 1": lambda nets, table: nets.LinearCodebook(1, D),
    r"`levels` must be .* as \(8, 6, 5\); got \(8.0, 5\)": lambda nets, table: nets.FiniteScalars(
        (8.0, 5)
    ),
    r"`levels` must be .* as \(8, 6, 5\); got 8\.": lambda nets, table: nets.FiniteScalars(8),
    r"`levels` make 10{24} codes, but an integer holds no more than \d+\.": lambda nets, table: (
        nets.FiniteScalars([1000] * 8)
    ),
    "`table` must hold floating-point numbers": lambda nets, table: nets.Codebook(
        V, D, table=table > 0
    ),
    r"`grid` must be sizes of at least 1, as \(8, 8\); got 22": lambda nets, table: (
        nets.CodebookDecoder(nets.FiniteScalars((3, 3)), nets.MLPDecoder(2, None, (4,)), grid="22")
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_codebooks_are_named(backend, message):
    with pytest.raises(ValueError, match=message):
        BAD[message](backend.module("nets"), backend.asarray(X[:V]))
