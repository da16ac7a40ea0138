"""What users of quantisers met elsewhere: padding, half precision, many codes, far vectors."""

import numpy as np
import pytest
from codebook_lab import lab
from quantized import TABLE, B, L, V, X, pair
from test_quantizing import call

HALF = B // 2
REAL = np.arange(B) < HALF


def codes_of(params):
    """The codes of the real half under the linear encoder."""
    inputs = (X[:HALF].reshape(HALF, -1) @ params[0] + params[1]).reshape(HALF * L, 1, -1)
    return ((inputs - TABLE) ** 2).sum(-1).argmin(-1)


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", [pytest.param("gradient", marks=pytest.mark.slow), "moving"])
def test_padding_under_a_mask_trains_nothing(kit, kind):
    elbo = kit.module("infer").VQ_ELBO()

    def evaluate(*data):
        kit.start(None, None)  # the same networks each time
        return kit.evaluate(kit.start(*pair(kit, kind, min_count=1e-3)), elbo, *data)

    alone = evaluate(X[:HALF])
    filled = np.where(REAL[:, None, None], X, 100.0).astype(np.float32)
    masked = evaluate(filled, REAL)
    assert masked.loss == pytest.approx(alone.loss, rel=1e-6)
    assert masked.distance == pytest.approx(alone.distance, rel=1e-6)
    counts = np.bincount(codes_of(alone.params).ravel(), minlength=V)
    shares = counts[counts > 0] / counts.sum()
    expected = (counts > 0).mean(), np.exp(-(shares * np.log(shares)).sum())
    assert masked.usage == pytest.approx(expected, rel=1e-5)
    for found, expected in zip(masked.grads, alone.grads, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    chosen = np.unique(codes_of(alone.params))  # the others restart at random inputs
    np.testing.assert_allclose(masked.table[chosen], alone.table[chosen], rtol=1e-6)
    control = evaluate(filled)
    assert np.abs(control.grads[0] - alone.grads[0]).max() > 1.0


@pytest.mark.thrifty
def test_a_batch_of_padding_moves_no_average_and_starts_no_table(kit):
    elbo = kit.module("infer").VQ_ELBO()
    for table in (TABLE, None):
        start = "data" if table is None else None
        run = kit.start(*pair(kit, "moving", table, min_count=5.0, start=start))
        found = kit.evaluate(run, elbo, X, np.zeros(B, bool))
        np.testing.assert_array_equal(found.table, np.zeros_like(TABLE) if table is None else table)


def test_a_table_starts_at_inputs_that_are_not_masked(kit):
    model, guide = pair(kit, "moving", None, start="data")
    filled = np.where(REAL[:, None, None], X, 100.0).astype(np.float32)
    found = kit.evaluate(kit.start(model, guide), kit.module("infer").VQ_ELBO(), filled, REAL)
    weight, bias = found.params[:2]
    inputs = (X[:HALF].reshape(HALF, -1) @ weight + bias).reshape(HALF * L, -1)
    assert np.abs(found.table).max() <= np.abs(inputs).max() * (1 + 1e-5)


def test_a_mask_of_the_model_alone_is_refused(kit):
    model, guide = pair(kit, "gradient")
    masked = kit.masked(lambda *args: model(*args), np.ones(B, bool))
    with pytest.raises(ValueError, match="Run both programs under the mask"):
        kit.loss(kit.start(masked, guide), kit.module("infer").VQ_ELBO())


@pytest.mark.thrifty
@pytest.mark.parametrize("frozen", [True, False])
def test_eval_freezes_moving_averages(kit, frozen):
    model, guide = pair(kit, "moving")
    guide.codebook.train(not frozen)
    found = kit.evaluate(kit.start(model, guide), kit.module("infer").VQ_ELBO())
    assert (np.abs(found.table - TABLE).max() == 0) == frozen


def in_dtype(backend, array, dtype):
    array = backend.asarray(array)
    if backend.name == "numpyro":
        return array.astype(dtype)
    import torch

    return array.to(getattr(torch, dtype))


@pytest.mark.parametrize(("dtype", "count"), [("bfloat16", 4000), ("float16", 70_000)])
def test_sums_of_half_precision_are_exact(backend, dtype, count):
    ops = backend.module("ops.quantizing")
    ones = in_dtype(backend, np.ones((count, 2)), dtype)
    codes = backend.asarray(np.zeros(count, int))
    sums = ops.code_sums(ones, codes, 2)
    np.testing.assert_array_equal(np.asarray(sums), [[count] * 2, [0, 0]])
    assert float(ops.code_counts(codes, 2)[0]) == count


def test_averages_of_half_precision_count_in_single_precision(backend):
    """70 000 inputs of one code: more than float16 holds, and than bfloat16 tells apart."""
    given = in_dtype(backend, np.array([[2.0, 2.0], [-1.0, -1.0]]), "float16")
    book = lab(backend, lambda nets: nets.Codebook(2, 2, decay=0.5, table=given, min_count=1e-3))
    inputs = np.ones((70_000, 2), np.float16)
    book.quantize(inputs)
    rows = book.rows()
    assert rows.dtype == np.float16
    np.testing.assert_allclose(rows[0], 1.0, rtol=1e-3)
    np.testing.assert_allclose(book.counts()[0], 35_000, rtol=1e-3)


def test_a_module_that_is_halved_keeps_its_counts():
    torch = pytest.importorskip("torch")
    from pyro_dvae.nets import Codebook

    for options, names in (({"decay": 0.9}, ("counts", "sums")), ({}, ("counts",))):
        book = Codebook(2, 2, table=torch.eye(2), **options).half()
        assert book.table.dtype == torch.float16
        assert {getattr(book, name).dtype for name in names} == {torch.float32}
        assert {getattr(book.double(), name).dtype for name in names} == {torch.float64}


def test_codes_of_half_precision_are_those_of_the_numbers(backend):
    ops = backend.module("ops.quantizing")
    rng = np.random.default_rng(0)
    x, table = (in_dtype(backend, rng.normal(size=(n, 8)), "bfloat16") for n in (200, 32))
    wide = (in_dtype(backend, a, "float32") for a in (x, table))
    x64, table64 = (np.asarray(a, np.float64) for a in wide)
    right = ((x64[:, None] - table64) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(np.asarray(ops.nearest_codes(x, table)), right)
    vectors, codes = ops.quantize_levels(x[:, :6], (1000,) * 6)
    assert vectors.dtype == x.dtype
    wide = ops.quantize_levels(in_dtype(backend, x64[:, :6], "float32"), (1000,) * 6)[1]
    np.testing.assert_array_equal(np.asarray(codes), np.asarray(wide))


@pytest.mark.parametrize("offset", [10, 1000, 10_000])
def test_nearest_codes_far_from_the_origin(backend, offset):
    rng = np.random.default_rng(0)
    table = (offset + rng.normal(size=(64, 8))).astype(np.float32)
    x = table[rng.integers(64, size=500)] + 0.3 * rng.normal(size=(500, 8))
    x = x.astype(np.float32)
    right = ((x.astype(float)[:, None] - table) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(call(backend, "nearest_codes", x, table), right)


def test_more_codes_than_an_int32_holds(backend):
    ops = backend.module("ops.quantizing")
    x = backend.asarray(np.array([[5.0] * 11, [-5.0] * 11, [5.0] * 10 + [-5.0]]))
    vectors, codes = ops.quantize_levels(x, [8] * 11)
    np.testing.assert_array_equal(np.asarray(codes), [8**11 - 1, 0, 8**10 - 1])
    np.testing.assert_array_equal(
        np.asarray(ops.level_vectors([8] * 11, codes)), np.asarray(vectors)
    )
    with pytest.raises(ValueError, match=r"make \d+ codes, but an integer holds no more than"):
        ops.quantize_levels(backend.asarray(np.zeros((1, 22))), [8] * 22)


def test_codes_beyond_int32_are_refused_where_integers_have_32_bits():
    jax = pytest.importorskip("jax")
    from numpyro_dvae.ops.quantizing import quantize_levels

    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r"no more than 2147483647.*jax_enable_x64"):
            quantize_levels(jax.numpy.zeros((1, 11)), [8] * 11)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_finite_scalars_need_no_table(backend):
    codebook = backend.module("nets").FiniteScalars([4] * 16)  # a table would take 256 GiB
    inputs = backend.asarray(np.random.default_rng(0).normal(size=(3, 16)))
    quantized = codebook.quantize(inputs)
    np.testing.assert_array_equal(
        np.asarray(codebook(quantized.codes)), np.asarray(quantized.vectors)
    )
    assert codebook.num_codes == 4**16


def test_codes_in_use(backend):
    used = backend.module("ops.usage").codes_in_use
    codes = np.array([[7, 3, 7], [7, 9, 2**40]])
    mask = np.array([[True], [False]])
    for keep, shares in (
        (mask, np.array([2, 1]) / 3),
        (np.ones((2, 1), bool), np.array([3, 1, 1, 1]) / 6),
    ):
        found = [float(each) for each in used(backend.asarray(codes), backend.asarray(keep))]
        entropy = -(shares * np.log(shares)).sum()
        np.testing.assert_allclose(found, [len(shares), np.exp(entropy)], rtol=1e-6)
    nothing = used(backend.asarray(codes), backend.asarray(np.zeros((2, 1), bool)))
    np.testing.assert_allclose([float(each) for each in nothing], [0, 1])


def test_rows_of_a_mask(backend):
    mask = np.array([False, True, False, True, True])
    uniforms = np.array([0.0, 0.3, 0.34, 0.7, 1 - 1e-9])
    np.testing.assert_array_equal(call(backend, "rows_of_mask", mask, uniforms), [1, 1, 3, 4, 4])
    found = call(backend, "rows_of_mask", np.zeros(5, bool), uniforms)
    assert ((found >= 0) & (found < V)).all()


@pytest.mark.thrifty
def test_the_usage_of_stacks_is_that_of_each_table(kit):
    """Of two tables of 5 codes the second uses one, whose number the first uses as well."""
    first = np.linspace(-0.5, 0.5, 5, dtype=np.float32)[:, None].repeat(3, 1)
    tables = [first, np.array([0.0, 50, 60, 70, 80], np.float32)[:, None].repeat(3, 1)]
    nets, models, guides = map(kit.module, ("nets", "models", "guides"))
    books = [nets.Codebook(5, 3, table=kit.asarray(table), decay=None) for table in tables]
    book = nets.ResidualCodebook(books)
    network = nets.MLPDecoder(2 * 3, None, (3, 2), hidden=())
    likelihood = models.GaussianLikelihood(variance=1.0, learn=False)
    model = models.DiscreteVAE(
        nets.CodebookDecoder(book, network), models.UniformPrior(4, 5), likelihood
    )
    guide = guides.VectorQuantizedGuide(nets.MLPEncoder((3, 2), 2, 3, hidden=()), book)
    elbo, half = kit.module("infer").VQ_ELBO(), np.arange(len(X)) < len(X) // 2
    run = kit.start(model, guide)
    kit.train(run, elbo, 1)
    codes, _ = kit.codes_and_means(run)

    def check(codes):
        parts = codes[:, :2], codes[:, 2:]
        usage = np.mean([len(np.unique(part)) for part in parts]) / 5
        assert len(np.unique(parts[1])) == 1 < len(np.unique(parts[0]))
        shares = np.unique(parts[0], return_counts=True)[1] / parts[0].size
        perplexity = (np.exp(-(shares * np.log(shares)).sum()) + 1) / 2
        found = kit.info(run, elbo)
        np.testing.assert_allclose([found.usage, found.perplexity], [usage, perplexity], rtol=1e-5)

    check(codes)
    for mask in (None, half):  # in a function, under a handler
        run = kit.start(kit.masked(model, mask), kit.masked(lambda *args: guide(*args), mask))
        kit.train(run, elbo, 1)
        check(codes if mask is None else codes[mask])
