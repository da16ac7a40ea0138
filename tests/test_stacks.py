"""Codebooks of several, entropies and the stochastic head, against NumPy and as programs."""

import importlib

import numpy as np
import pytest
from codebook_lab import lab
from quantized import SHAPE, X, numpyro_kit, pyro_kit

B, L, D, V = 6, 4, 6, 5
RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(B, L, D)).astype(np.float32)
TABLES = RNG.normal(size=(3, V, D)).astype(np.float32)
WEIGHTS = RNG.normal(size=(B, L, D)).astype(np.float32)


def nearest(inputs, rows):
    return ((inputs[..., None, :] - rows) ** 2).sum(-1).argmin(-1)


def books(backend, nets, width=D):
    return [nets.Codebook(V, width, table=backend.asarray(t[:, :width].copy())) for t in TABLES]


def test_residuals_quantise_what_is_left(backend):
    book = lab(backend, lambda nets: nets.ResidualCodebook(books(backend, nets)))
    found, left, codes, total = book.quantize(INPUTS, learn=False), INPUTS, [], 0.0
    for stage, table in enumerate(TABLES):
        codes.append(nearest(left, table))
        np.testing.assert_allclose(found.inputs[:, stage * L :][:, :L], left, rtol=1e-4, atol=1e-5)
        total, left = total + table[codes[-1]], left - table[codes[-1]]
    np.testing.assert_array_equal(found.codes, np.concatenate(codes, 1))
    np.testing.assert_allclose(book.call("join", found.vectors), total, rtol=1e-4, atol=1e-5)
    again = book.call("join", book.call("__call__", found.codes))
    np.testing.assert_allclose(again, total, rtol=1e-4, atol=1e-5)
    route = backend.module("ops.codepaths").straight_through_codes
    grads = book.gradient(WEIGHTS, INPUTS, route)
    np.testing.assert_allclose(grads, 3 * WEIGHTS, rtol=1e-5)  # a path by each stage


def test_groups_have_channels_of_their_own(backend):
    book = lab(backend, lambda nets: nets.GroupedCodebook(books(backend, nets, 2)))
    found = book.quantize(INPUTS, learn=False)
    parts = np.split(INPUTS, 3, -1)
    codes = [nearest(p, t[:, :2]) for p, t in zip(parts, TABLES, strict=True)]
    np.testing.assert_array_equal(found.codes, np.concatenate(codes, 1))
    vectors = [t[:, :2][c] for t, c in zip(TABLES, codes, strict=True)]
    np.testing.assert_allclose(book.call("join", found.vectors), np.concatenate(vectors, -1))
    route = backend.module("ops.codepaths").straight_through_codes
    np.testing.assert_allclose(book.gradient(WEIGHTS, INPUTS, route), WEIGHTS, rtol=1e-5)


def test_relaxed_codes_are_mixed_by_their_own_table(backend):
    book = lab(backend, lambda nets: nets.ResidualCodebook(books(backend, nets)))
    weights = RNG.dirichlet(np.ones(V), size=(B, 3 * L)).astype(np.float32)
    blocks = np.split(weights, 3, 1)
    expected = np.concatenate([b @ t for b, t in zip(blocks, TABLES, strict=True)], 1)
    np.testing.assert_allclose(book.call("mix", weights), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thrifty
def test_stacks_hold_stacks_and_learn(backend):
    def make(nets):
        groups = [
            nets.GroupedCodebook([nets.BinaryCodes(3), nets.Codebook(8, 3, decay=0.5)])
            for _ in range(2)
        ]
        return nets.ResidualCodebook(groups)

    book = lab(backend, make)
    for _ in range(2):
        found = book.quantize(INPUTS)
    assert found.codes.shape == (B, 4 * L)
    left = INPUTS - book.call("join", found.vectors)
    assert np.square(left).mean() < np.square(INPUTS).mean()
    assert [b.shape[-1] for b in book.codebook.blocks(backend.asarray(found.codes))] == [L] * 4


BAD = {
    "one number of codes, one width": lambda nets: nets.ResidualCodebook(
        [nets.Codebook(V, D), nets.Codebook(V + 1, D)]
    ),
    "two or more": lambda nets: nets.GroupedCodebook([nets.Codebook(V, D)]),
    "`codebooks` must be a list of two or more; got Codebook": lambda nets: nets.ResidualCodebook(
        nets.Codebook(V, D)
    ),
    r"`codebooks` must be quantisers, .* got \['MLPDecoder'\]": lambda nets: nets.GroupedCodebook(
        [nets.Codebook(V, D), nets.MLPDecoder(L, V, (3,))]
    ),
    r"`sizes` .* as \(16, 64\) for .*; got \(\(2, 2\), \(4, 4\)\)": (
        lambda nets: nets.HierarchicalCodebook(two(nets), ((2, 2), (4, 4)))
    ),
    "`sizes` must be one positive .*; got 4": lambda nets: nets.HierarchicalCodebook(two(nets), 4),
    r"`sizes` must be .*; got \(4.0, 16.5\)": lambda nets: nets.HierarchicalCodebook(
        two(nets), (4.0, 16.5)
    ),
    r"`grids` must be .* places, as .*; got \(4, 4\)": lambda nets: nets.HierarchicalDecoder(
        nets.HierarchicalCodebook(two(nets), (4, 16)), nets.MLPDecoder(L, V, (3,)), grids=(4, 4)
    ),
    "`sizes` must be one positive": lambda nets: nets.HierarchicalCodebook(
        [nets.Codebook(V, D), nets.Codebook(V, D)], (4,)
    ),
    "hold others, but are not held": lambda nets: nets.ResidualCodebook(
        [
            nets.HierarchicalCodebook([nets.Codebook(V, D), nets.Codebook(V, D)], (1, 1))
            for _ in range(2)
        ]
    ),
    "hold one of moving averages twice": lambda nets: nets.ResidualCodebook([moving(nets)] * 2),
    "one of moving averages twice, which": lambda nets: nets.GroupedCodebook(
        [nets.ResidualCodebook([book, nets.Codebook(V, D)]) for book in [moving(nets)] * 2]
    ),
    "learn by gradient": lambda nets: nets.CodebookEncoder(
        nets.MLPEncoder((3,), L, D), nets.Codebook(V, D, decay=0.9)
    ),
    "must be a single one": lambda nets: nets.CodebookEncoder(
        nets.MLPEncoder((3,), L, D),
        nets.ResidualCodebook([nets.Codebook(V, D), nets.Codebook(V, D)]),
    ),
    "`scale` must be positive": lambda nets: nets.CodebookEncoder(
        nets.MLPEncoder((3,), L, D), nets.Codebook(V, D), scale=0.0
    ),
}


def two(nets):
    return [nets.Codebook(V, D), nets.Codebook(V, D)]


def moving(nets):
    return nets.Codebook(V, D, decay=0.9)


@pytest.mark.parametrize("message", BAD)
def test_bad_stacks_are_named(backend, message):
    with pytest.raises(ValueError, match=message):
        BAD[message](backend.module("nets"))


def test_inputs_and_codes_that_do_not_divide_are_named(backend):
    book = lab(backend, lambda nets: nets.GroupedCodebook(books(backend, nets, 2)))
    with pytest.raises(ValueError, match="width 5 do not divide into 3 groups of 2"):
        book.quantize(INPUTS[..., :5])
    with pytest.raises(ValueError, match="got 4 latents, which do not divide"):
        book.call("__call__", np.zeros((B, 4), int))


# ----------------------------------------------------------------------------------- programs


@pytest.fixture(params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return {"pyro": pyro_kit, "numpyro": numpyro_kit}[request.param]()


def small(kit, codebook, decoder, guide, num_latents):
    models = kit.module("models")
    prior = models.UniformPrior(num_latents, codebook.num_codes)
    model = models.DiscreteVAE(decoder, prior, models.GaussianLikelihood(variance=1.0, learn=False))
    return kit.start(model, guide, lr=0.02)


STACKS = {
    "residual": (lambda n: n.ResidualCodebook([n.Codebook(V, 3) for _ in "ab"]), 4, {}),
    "groups of averages": (
        lambda n: n.GroupedCodebook([n.Codebook(V, 3, decay=0.9) for _ in "ab"]),
        4,
        {"gradient": "rotation"},
    ),
    "simvq": (lambda n: n.LinearCodebook(V, 3), 2, {}),
    "lfq": (lambda n: n.BinaryCodes(3), 2, {"entropy": 0.05}),
    "cosine": (lambda n: n.Codebook(V, 3, cosine=True, start="data"), 2, {"entropy": 0.01}),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", STACKS)
def test_any_codebook_trains(kit, kind):
    nets = kit.module("nets")
    make, num_latents, options = STACKS[kind]
    codebook = make(nets)
    network = nets.MLPDecoder(2 * codebook.embed_dim, None, SHAPE, hidden=())
    decoder = nets.CodebookDecoder(codebook, network)
    encoder = nets.MLPEncoder(SHAPE, 2, codebook.embed_dim, hidden=())
    guide = kit.module("guides").VectorQuantizedGuide(encoder, codebook, **options)
    run = small(kit, codebook, decoder, guide, num_latents)
    losses = kit.train(run, kit.module("infer").VQ_ELBO(), 40)
    assert losses[-1] < losses[0] - 0.1 * len(X)


def scales(kit, nets, book):
    """Networks of two scales: the second encoder and the decoder see the vectors of the first."""
    if kit.name == "numpyro":
        nn = importlib.import_module("flax.linen")
        jnp = importlib.import_module("jax.numpy")

        class Coarse(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3)(x.reshape(*x.shape[:-2], -1))[..., None, :]

        class Fine(nn.Module):
            @nn.compact
            def __call__(self, x, above):
                flat = (a.reshape(*a.shape[:-2], -1) for a in (x, above))
                outputs = nn.Dense(6)(jnp.concatenate([*flat], -1))
                return outputs.reshape(*x.shape[:-2], 2, 3)

        class Decoder(nn.Module):
            @nn.compact
            def __call__(self, coarse, fine):
                flat = (a.reshape(*a.shape[:-2], -1) for a in (coarse, fine))
                outputs = nn.Dense(6)(jnp.concatenate([*flat], -1))
                return outputs.reshape(*outputs.shape[:-1], *SHAPE)

        return (Coarse(), Fine()), Decoder()
    torch = importlib.import_module("torch")

    class Module(torch.nn.Module):
        def __init__(self, width, shape):
            super().__init__()
            self.dense, self.shape = torch.nn.LazyLinear(width), shape

        def forward(self, *arrays):
            flat = torch.cat([a.flatten(-2) for a in arrays], -1)
            return self.dense(flat).unflatten(-1, self.shape)

    return (Module(3, (1, 3)), Module(6, (2, 3))), Module(6, SHAPE)


@pytest.mark.thrifty
def test_scales_see_those_that_are_coarser(kit):
    nets, guides = kit.module("nets"), kit.module("guides")
    book = nets.HierarchicalCodebook([nets.Codebook(V, 3) for _ in "ab"], (1, 2))
    encoders, network = scales(kit, nets, book)
    guide = guides.HierarchicalGuide(encoders, book, gradient="straight_through")
    if kit.name == "pyro":
        guide.posterior(kit.asarray(X))  # lazy layers find their widths
        network(*(kit.asarray(np.zeros((1, size, 3), np.float32)) for size in (1, 2)))
    decoder = nets.HierarchicalDecoder(book, network)
    run = small(kit, book, decoder, guide, 3)
    losses = kit.train(run, kit.module("infer").VQ_ELBO(), 40)
    assert losses[-1] < losses[0] - 0.1 * len(X)


def test_scales_and_encoders_go_together(kit):
    nets, guides = kit.module("nets"), kit.module("guides")
    book = nets.HierarchicalCodebook([nets.Codebook(V, 3) for _ in "ab"], (1, 4))
    encoders, network = scales(kit, nets, book)
    with pytest.raises(ValueError, match="`encoders` must be one for each of 2 scales; got 1"):
        guides.HierarchicalGuide(encoders[:1], book)
    with pytest.raises(ValueError, match=f"2 scales; got {type(encoders[0]).__name__}"):
        guides.HierarchicalGuide(encoders[0], book)
    with pytest.raises(ValueError, match=r"`grids` must be one for each scale, of \(1, 4\) places"):
        nets.HierarchicalDecoder(book, network, grids=((1, 1), (2, 3)))


LOSSES = {
    "DAPS_ELBO": {"num_particles": 4},
    "Reinforce_ELBO": {"num_particles": 4},
    "Exact_ELBO": {},
}


@pytest.mark.thrifty
@pytest.mark.parametrize("loss", LOSSES)
def test_the_stochastic_head_trains_under_any_loss(kit, loss):
    nets, guides, infer = kit.module("nets"), kit.module("guides"), kit.module("infer")
    table = kit.asarray(RNG.normal(size=(V, 3)).astype(np.float32))
    book = nets.Codebook(V, 3, table=table)
    head = nets.CodebookEncoder(nets.MLPEncoder(SHAPE, 2, 3, hidden=()), book)
    decoder = nets.CodebookDecoder(book, nets.MLPDecoder(6, None, SHAPE, hidden=()))
    run = small(kit, book, decoder, guides.IndependentGuide(head), 2)
    losses = kit.train(run, getattr(infer, loss)(**LOSSES[loss]), 40)
    assert np.mean(losses[-5:]) < losses[0] - 0.1 * len(X)


@pytest.mark.thrifty
@pytest.mark.parametrize("start", ["data", "k_means"])
@pytest.mark.parametrize("num_padded", [0, 3])
def test_the_head_starts_where_the_vectors_of_its_first_batch_are(kit, start, num_padded):
    nets, guides = kit.module("nets"), kit.module("guides")
    book = nets.Codebook(V, 3, start=start)
    head = nets.CodebookEncoder(nets.MLPEncoder(SHAPE, 2, 3, hidden=()), book)
    decoder = nets.CodebookDecoder(book, nets.MLPDecoder(6, None, SHAPE, hidden=()))
    run = small(kit, book, decoder, guides.IndependentGuide(head), 2)
    run.lr = 0.0
    padded = np.concatenate([X, np.full_like(X[:num_padded], 1e3)])
    mask = np.arange(len(padded)) < len(X) if num_padded else None
    run.model, run.guide = (kit.masked(program, mask) for program in (run.model, run.guide))
    kit.train(run, kit.module("infer").Exact_ELBO(), 1, padded)
    if kit.name == "pyro":
        layer = head.network.layers[0]
        weight, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
        table, scale = book.table.detach().numpy(), float(head.log_scale.detach().exp())
    else:
        layer = run.params["guide.encoder$params"]["layers_0"]
        weight, bias = (np.asarray(layer[name]) for name in ("kernel", "bias"))
        table = np.asarray(run.params["codebook$table"])
        scale = np.exp(float(run.params["guide.scale$log"]))
    vectors = (X.reshape(len(X), -1) @ weight + bias).reshape(-1, 3)
    nearest = ((vectors[:, None] - table) ** 2).sum(-1)
    assert scale == pytest.approx(0.5 * np.sqrt(vectors.var(0).mean()), rel=1e-4)
    if start == "data":
        np.testing.assert_allclose(nearest.min(0), 0.0, atol=1e-8)
    else:
        assert nearest.min(1).mean() < 0.5 * vectors.var(0).sum()
        assert len(np.unique(nearest.argmin(1))) == V


def test_logits_of_the_head_are_of_squared_distances(backend):
    def make(nets):
        return nets.Codebook(V, D, table=backend.asarray(TABLES[0]))

    found = lab(backend, make).call("logits", INPUTS, np.float32(0.7))
    squares = ((INPUTS[..., None, :] - TABLES[0]) ** 2).sum(-1)
    np.testing.assert_allclose(found, -squares / (2 * 0.7**2), rtol=1e-4)
