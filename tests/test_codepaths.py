"""Gradients past the choice of a code, signs, soft assignments and k-means, against NumPy."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

N, D, V = 7, 4, 5
seeds = st.integers(0, 10**6)
PATHS = ["straight_through_codes", "rotation_trick", "diveq"]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@functools.cache
def compiled(backend, room, name, *static):
    return backend.jit(getattr(backend.module(f"ops.{room}"), name), static_argnames=static)


@functools.cache
def route(backend, name):
    """The route, and the gradients of the weighted path to inputs and vectors."""
    function = getattr(backend.module("ops.codepaths"), name)

    def total(inputs, vectors, weights):
        return (weights * function(inputs, vectors).path).sum()

    def by_vectors(vectors, inputs, weights):
        return total(inputs, vectors, weights)

    def run(inputs, vectors, weights):
        found = function(inputs, vectors)
        grads = backend.grad(total)(inputs, vectors, weights)
        return *found, grads, backend.grad(by_vectors)(vectors, inputs, weights)

    jitted = backend.jit(run)
    return lambda *arrays: [np.asarray(a) for a in jitted(*map(backend.asarray, arrays))]


def rotation(a, b):
    """Rodrigues: the rotation in the plane of two unit vectors that takes one to the other."""
    turn = np.outer(b, a) - np.outer(a, b)
    return np.eye(len(a)) + turn + turn @ turn / (1 + a @ b)


def expected_grads(name, z, e, w):
    """By matrices, one row at a time: gradients to an input and to its code's vector."""
    if name == "straight_through_codes":
        return w, np.zeros_like(e)
    if name == "rotation_trick":
        sizes = np.linalg.norm(z), np.linalg.norm(e)
        turn = rotation(z / sizes[0], e / sizes[1])
        np.testing.assert_allclose(sizes[1] / sizes[0] * turn @ z, e, atol=1e-12)
        return sizes[1] / sizes[0] * turn.T @ w, np.zeros_like(e)
    u = (e - z) / np.linalg.norm(e - z)
    step, grads = 1e-6, []
    for moved in (0, 1):  # central differences of z + |e - z| u at constant u
        grad = np.zeros(len(z))
        for k in range(len(z)):
            ends = []
            for sign in (1, -1):
                pair = [z.copy(), e.copy()]
                pair[moved][k] += sign * step
                ends.append(w @ (pair[0] + np.linalg.norm(pair[1] - pair[0]) * u))
            grad[k] = (ends[0] - ends[1]) / (2 * step)
        grads.append(grad)
    return tuple(grads)


@pytest.mark.parametrize("name", PATHS)
@settings(max_examples=5)
@given(seed=seeds)
def test_paths_have_the_codes_values_and_their_own_gradients(backend, name, seed):
    z, e, w = draw(seed, 3, N, D)
    path, inputs, vectors, to_inputs, to_vectors = route(backend, name)(z, e, w)
    for found, exact in ((path, e), (inputs, z), (vectors, e)):
        np.testing.assert_array_equal(found, exact)
    for row in range(N):
        expected = expected_grads(name, z[row], e[row], w[row])
        np.testing.assert_allclose(to_inputs[row], expected[0], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(to_vectors[row], expected[1], rtol=1e-6, atol=1e-8)


def test_the_paths_are_not_one_another(backend):
    z, e, w = draw(0, 3, N, D)
    grads = [route(backend, name)(z, e, w)[3] for name in PATHS]
    for k in range(3):
        assert np.abs(grads[k] - grads[k - 1]).max() > 0.1


def test_vectors_without_a_direction(backend):
    """Inputs of 0, codes of 0, inputs that are their codes, and opposite ones."""
    z = np.array([[0.0, 0, 0, 0], [1, 2, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0]])
    e = np.array([[1.0, 2, 0, 0], [0, 0, 0, 0], [1, 2, 0, 0], [-3, 0, 0, 0]])
    w = np.ones((4, 4))
    found = route(backend, "rotation_trick")(z, e, w)
    np.testing.assert_array_equal(found[0], e)
    np.testing.assert_allclose(found[3], [w[0], 0 * w[0], w[0], [-3, 3, 3, 3]], atol=1e-12)
    found = route(backend, "diveq")(z, e, w)
    np.testing.assert_array_equal(found[0], e)
    np.testing.assert_allclose(found[3][2], 1.0)  # the input is the code: all goes to the input
    np.testing.assert_array_equal(found[4][2], 0.0)


def test_noise_turns_diveq_where_a_gradient_is_taken(backend):
    """``z + |e - z| u`` with u off the line and constant; without a gradient it is e."""
    function = backend.module("ops.codepaths").diveq
    z, e, noise, w = draw(4, 4, N, D)
    ahead = e - z + noise
    u = ahead / np.linalg.norm(ahead, axis=-1, keepdims=True)
    line = e - z
    size = np.linalg.norm(line, axis=-1, keepdims=True)
    arrays = [backend.asarray(each) for each in (z, e, noise, w)]

    def squares(z, e, noise, w):
        return (w * function(z, e, noise).path ** 2).sum()

    slope = 2 * w * (z + size * u)  # of the sum of squares to the path that was seen
    along = (slope * u).sum(-1, keepdims=True) * line / size
    found = np.asarray(backend.grad(squares)(*arrays))
    np.testing.assert_allclose(found, slope - along, rtol=1e-9, atol=1e-12)
    found = backend.grad(lambda e, z, noise, w: squares(z, e, noise, w))(
        arrays[1], arrays[0], *arrays[2:]
    )
    np.testing.assert_allclose(np.asarray(found), along, rtol=1e-9, atol=1e-12)
    if backend.name == "pyro":
        function = pytest.importorskip("torch").no_grad()(function)
    np.testing.assert_array_equal(np.asarray(function(*arrays[:3]).path), e)


def test_the_penalty_of_diveq_is_constant(backend):
    function = backend.module("ops.codepaths").diveq

    def total(inputs, vectors):
        found = function(inputs, vectors)
        return ((found.inputs - found.vectors) ** 2).sum()

    z, e = map(backend.asarray, draw(1, 2, N, D))
    np.testing.assert_array_equal(np.asarray(backend.grad(total)(z, e)), 0.0)


# ------------------------------------------------------------------------------------- signs


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_signs(backend, scale):
    inputs = np.array([[0.2, -3.0, 5.0], [-1.0, 0.0, 2.0]])
    vectors, codes = compiled(backend, "signs", "quantize_signs", "scale")(
        backend.asarray(inputs), scale=scale
    )
    np.testing.assert_allclose(vectors, scale * np.array([[1, -1, 1], [-1, -1, 1]]))
    np.testing.assert_array_equal(codes, [5, 4])
    back = compiled(backend, "signs", "sign_vectors", "num_channels", "scale")(
        codes, num_channels=3, scale=scale
    )
    np.testing.assert_allclose(back, vectors)


def test_the_slope_of_signs_is_that_of_the_inputs(backend):
    signs = backend.module("ops.signs")
    inputs, weights = draw(2, 2, N, D)

    def total(inputs):
        return (backend.asarray(weights) * signs.quantize_signs(inputs)[0]).sum()

    np.testing.assert_allclose(backend.grad(total)(backend.asarray(inputs)), weights)


def test_directions_and_their_gradient(backend):
    on_sphere = backend.module("ops.signs").on_sphere
    inputs, weights = draw(3, 2, N, D)
    inputs[0] = 0.0

    def total(inputs):
        return (backend.asarray(weights) * on_sphere(inputs)).sum()

    sizes = np.linalg.norm(inputs[1:], axis=1, keepdims=True)
    units = inputs[1:] / sizes
    found = np.asarray(on_sphere(backend.asarray(inputs)))
    np.testing.assert_allclose(found, [[0.0] * D, *units])
    across = weights[1:] - (weights[1:] * units).sum(1, keepdims=True) * units
    grads = np.asarray(backend.grad(total)(backend.asarray(inputs)))
    np.testing.assert_allclose(grads, [[0.0] * D, *(across / sizes)])


# --------------------------------------------------------------------------- soft assignments


@settings(max_examples=5)
@given(seed=seeds, scale=st.sampled_from([0.3, 2.0]))
def test_soft_assignments_and_entropies(backend, seed, scale):
    inputs, table = draw(seed, N, D), draw(seed + 1, V, D)
    room = "assignments"
    logits = compiled(backend, room, "assignment_logits")(
        *map(backend.asarray, (inputs, table, np.float64(scale)))
    )
    squares = ((inputs[:, None] - table) ** 2).sum(-1)
    probs = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * scale**2))
    probs /= probs.sum(1, keepdims=True)
    found = np.exp(np.asarray(logits))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), probs, rtol=1e-9)
    own = compiled(backend, room, "own_entropies")(logits)
    np.testing.assert_allclose(own, -(probs * np.log(probs)).sum(1), rtol=1e-9)
    mean = probs.mean(0)
    shared = compiled(backend, room, "mean_entropy")(logits)
    np.testing.assert_allclose(shared, -(mean * np.log(mean)).sum(), rtol=1e-9)
    assert float(shared) > float(np.mean(np.asarray(own)))  # by Jensen


# ----------------------------------------------------------------------------------- k-means


def lloyd(inputs, centres, num_steps):
    for _ in range(num_steps):
        nearest = ((inputs[:, None] - centres) ** 2).sum(-1).argmin(1)
        counts = np.bincount(nearest, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, inputs)
        chosen = counts > 0
        centres = np.where(chosen[:, None], sums / np.maximum(counts, 1)[:, None], centres)
    return centres, counts, sums


@pytest.mark.parametrize("num_steps", [1, 6])
def test_k_means_is_lloyds_from_spread_inputs(backend, num_steps):
    inputs, uniforms = draw(5, 60, 2), np.random.default_rng(6).uniform(size=V)
    start = compiled(backend, "quantizing", "spread_codes")(
        *map(backend.asarray, (inputs, uniforms))
    )
    state = compiled(backend, "clustering", "k_means", "num_steps")(
        *map(backend.asarray, (inputs, uniforms)), num_steps=num_steps
    )
    expected = lloyd(inputs, np.asarray(start), num_steps)
    for found, exact in zip(state, expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


def test_bad_clusters_are_named(backend):
    k_means = backend.module("ops.clustering").k_means
    inputs, uniforms = map(backend.asarray, (np.zeros((3, 2)), np.zeros(4)))
    with pytest.raises(ValueError, match="at least as many as the codes, 4; got 3"):
        k_means(inputs, uniforms)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1; got 0"):
        k_means(inputs, uniforms[:2], num_steps=0)


def published(z, e, variance, normals):
    """``z + |e - z| u`` with u along ``e - z + sigma n``."""
    ahead = e - z + np.sqrt(variance) * normals
    size = np.linalg.norm(e - z, axis=-1, keepdims=True)
    return z + size * ahead / np.linalg.norm(ahead, axis=-1, keepdims=True)


def run_with(backend, guide, x, normals, monkeypatch):
    """The vectors of codes and what the decoder sees, with a gradient, where these are drawn."""

    def run(x):
        seeded = guide if backend.name == "pyro" else ppl.handlers.seed(guide, 0)
        trace = tracing(seeded).get_trace(x)
        path = trace.nodes["z.path"] if backend.name == "pyro" else trace["z.path"]
        return path["value"].sum(), path["value"]

    ppl = pytest.importorskip(backend.name)
    if backend.name == "pyro":
        torch, tracing = pytest.importorskip("torch"), ppl.poutine.trace
        monkeypatch.setattr(torch, "randn_like", lambda array: torch.asarray(normals))
        return run(torch.asarray(x))[1].detach().numpy()
    jax, tracing = pytest.importorskip("jax"), ppl.handlers.trace
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jax.numpy.asarray(normals))
    return np.asarray(jax.grad(run, has_aux=True)(jax.numpy.asarray(x))[1])


def identity(backend):
    if backend.name == "numpyro":
        return lambda x: x
    return pytest.importorskip("torch").nn.Identity()


@pytest.mark.parametrize("variance", [0.0, 0.005, 0.5])
def test_the_noise_of_a_guide_has_its_variance(backend, variance, monkeypatch):
    nets, guides = backend.module("nets"), backend.module("guides")
    x, table, normals = draw(6, N, 1, D), draw(7, N, D), draw(8, N, 1, D)
    codebook = nets.Codebook(N, D, table=backend.asarray(table))
    options = {"gradient": "diveq", "noise_variance": variance}
    guide = guides.VectorQuantizedGuide(identity(backend), codebook, **options)
    path = run_with(backend, guide, x, normals, monkeypatch)
    vectors = table[np.linalg.norm(x - table, axis=-1).argmin(-1)][:, None]
    expected = published(x, vectors, variance, normals)
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-9)
    other = published(x, vectors, 2 * variance + 0.01, normals)
    assert not np.allclose(path, other, rtol=1e-4)


def test_a_variance_is_not_negative(backend):
    nets, guides = backend.module("nets"), backend.module("guides")
    with pytest.raises(ValueError, match="`noise_variance`"):
        guides.VectorQuantizedGuide(identity(backend), nets.Codebook(4, 2), noise_variance=-0.1)


BAD_ROUTES = {
    r"got (Tensor|\w*Tracer|ArrayImpl)\. Of z and e": lambda paths, z, e: e,
    r"got \[\(1, 4\), \(7, 1, 4\)": lambda paths, z, e: paths.Route(e[0], z, e),
}


@pytest.mark.parametrize("message", BAD_ROUTES)
def test_a_gradient_of_ones_own_returns_a_route(backend, message, monkeypatch):
    nets, guides, paths = map(backend.module, ("nets", "guides", "ops.codepaths"))
    x, table = draw(6, N, 1, D), draw(7, V, D)
    codebook = nets.Codebook(V, D, table=backend.asarray(table))

    def guide(gradient):
        return guides.VectorQuantizedGuide(identity(backend), codebook, gradient=gradient)

    vectors = table[np.linalg.norm(x - table, axis=-1).argmin(-1)][:, None]
    own = guide(lambda z, e: paths.Route(2 * e, z, e))
    np.testing.assert_allclose(run_with(backend, own, x, None, monkeypatch), 2 * vectors)
    bad = guide(lambda z, e: BAD_ROUTES[message](paths, z, e))
    with pytest.raises(ValueError, match=f"`gradient` must return a Route of .*{message}"):
        run_with(backend, bad, x, None, monkeypatch)
