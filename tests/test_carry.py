"""The same parameters and inputs give the same numbers in both packages."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import carry  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pyro  # noqa: E402
from numpyro import handlers  # noqa: E402
from pyro import poutine  # noqa: E402

import numpyro_dvae.guides as jax_guides  # noqa: E402
import numpyro_dvae.models as jax_models  # noqa: E402
import numpyro_dvae.nets as jax_nets  # noqa: E402
import pyro_dvae.guides as torch_guides  # noqa: E402
import pyro_dvae.models as torch_models  # noqa: E402
import pyro_dvae.nets as torch_nets  # noqa: E402

L, V, D, B, SHAPE = 3, 5, 8, 4, (6, 5)
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


@pytest.fixture(autouse=True)
def _fresh(request):
    """Torch networks in the test's dtype, fixed position codes included."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    before = torch.get_default_dtype()
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    torch.set_default_dtype(getattr(torch, parameters.get("dtype", "float32")))
    yield
    torch.set_default_dtype(before)


def images(dtype):
    return np.random.default_rng(0).uniform(size=(B, *SHAPE)).round().astype(dtype)


def codes(*shape, high=V):
    return np.random.default_rng(1).integers(high, size=(*shape, L))


def context(dtype):
    return np.random.default_rng(2).normal(size=(B, 6, D)).astype(dtype)


def assert_close(found, expected, dtype):
    found, expected = np.asarray(found), expected.detach().numpy()
    assert found.dtype == expected.dtype == dtype
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * TOLERANCE[dtype])


def transformer(nets, **options):
    return nets.CausalTransformer(L, V, embed_dim=D, num_layers=2, num_heads=2, **options)


NETWORKS = {
    "encoder": (lambda n: n.MLPEncoder(SHAPE, L, V, (7, 6)), lambda d: [images(d)]),
    "binary encoder": (lambda n: n.MLPEncoder(SHAPE, L), lambda d: [images(d)]),
    "decoder": (lambda n: n.MLPDecoder(L, V, SHAPE, D, (7, 6)), lambda d: [codes(2, B)]),
    "binary decoder": (
        lambda n: n.MLPDecoder(L, None, SHAPE),
        lambda d: [codes(2, B, high=2).astype(d)],
    ),
    "patches": (
        lambda n: n.PatchEncoder(SHAPE, 6, embed_dim=D, num_layers=2, num_heads=2),
        lambda d: [images(d)],
    ),
    "transformer": (transformer, lambda d: [codes(2, B), context(d)]),
    "prior transformer": (
        lambda n: transformer(n, cross_attention=False),
        lambda d: [codes(2, B)],
    ),
}


@dtypes
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_their_gradients(name, dtype):
    build, make = NETWORKS[name]
    ours, theirs = build(jax_nets), build(torch_nets)
    inputs = make(dtype)
    expected = theirs(*map(torch.asarray, inputs))
    slopes = np.random.default_rng(3).normal(size=expected.shape).astype(dtype)
    (torch.asarray(slopes) * expected).sum().backward()
    params = carry.network(theirs)
    run = jax.jit(lambda params, inputs: ours.apply({"params": params}, *inputs))
    found, pull = jax.vjp(lambda params: run(params, inputs), params)
    assert_close(found, expected, dtype)
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    gradients, expected = pull(slopes)[0], carry.network(theirs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        branch = gradients
        for key in path:
            branch = branch[key.key]
        scale = max(1.0, np.abs(leaf).max())
        np.testing.assert_allclose(branch, leaf, atol=10 * scale * TOLERANCE[dtype], rtol=0)


@dtypes
def test_samplers_on_the_same_uniforms(dtype):
    ours, theirs = transformer(jax_nets), transformer(torch_nets)
    uniforms = np.random.default_rng(4).uniform(size=(30, B, L)).astype(dtype)
    inputs = uniforms, context(dtype)
    expected = theirs.invert_cdf(*map(torch.asarray, inputs)).numpy()
    variables = {"params": carry.network(theirs)}
    uniforms, *inputs = map(jnp.asarray, inputs)
    run = jax.jit(lambda uniforms: ours.apply(variables, uniforms, *inputs, method="invert_cdf"))
    found = np.asarray(run(uniforms))
    assert np.mean(found != expected) < {"float64": 1e-9, "float32": 1e-2}[dtype]
    assert np.mean(np.asarray(run(1 - uniforms)) != expected) > 0.3  # negative control


GUIDES = {
    "independent": lambda g, n: g.IndependentGuide(n.MLPEncoder(SHAPE, L, V)),
    "binary": lambda g, n: g.IndependentGuide(n.MLPEncoder(SHAPE, L), binary=True),
    "autoregressive": lambda g, n: g.AutoregressiveGuide(
        n.PatchEncoder(SHAPE, 6, embed_dim=D, num_heads=2), transformer(n)
    ),
}


@dtypes
@pytest.mark.parametrize("kind", GUIDES)
def test_guides(kind, dtype):
    ours = GUIDES[kind](jax_guides, jax_nets)
    theirs = GUIDES[kind](torch_guides, torch_nets)
    x, z = images(dtype), codes(7, B, high=2 if kind == "binary" else V)
    expected = theirs.posterior(torch.asarray(x))
    found = handlers.substitute(ours.posterior, data=carry.program("guide", theirs))(x)
    value = torch.asarray(z.astype(dtype) if kind == "binary" else z)
    assert_close(found.log_prob(z), expected.log_prob(value), dtype)
    if kind == "autoregressive":
        entropy = found.conditional_entropy(z)
        assert_close(entropy, expected.conditional_entropy(value), dtype)


MODELS = {
    "uniform, bernoulli": lambda m, n: m.DiscreteVAE(
        n.MLPDecoder(L, V, SHAPE), m.UniformPrior(L, V), m.BernoulliLikelihood()
    ),
    "bernoulli, gaussian": lambda m, n: m.DiscreteVAE(
        n.MLPDecoder(L, None, SHAPE),
        m.BernoulliPrior(L, probability=0.3, learn=True),
        m.GaussianLikelihood(shape=SHAPE, bounds=(0.01, 1.0)),
    ),
}


@dtypes
@pytest.mark.parametrize("kind", MODELS)
def test_log_joints_of_models(kind, dtype):
    ours = MODELS[kind](jax_models, jax_nets)
    theirs = MODELS[kind](torch_models, torch_nets)
    binary = kind.startswith("bernoulli")
    x, z = images(dtype), codes(B, high=2 if binary else V)
    value = torch.asarray(z.astype(dtype) if binary else z)
    x, z = jnp.asarray(x), jnp.asarray(z)
    wanted = poutine.trace(poutine.condition(theirs, data={"z": value})).get_trace(
        torch.asarray(images(dtype))
    )
    wanted.compute_log_prob()
    params = carry.program("model", theirs)
    program = handlers.substitute(handlers.condition(ours, data={"z": z}), data=params)
    found = handlers.trace(program).get_trace(x)
    for site in ("z", "x"):
        log_prob = found[site]["fn"].log_prob(found[site]["value"])
        expected = wanted.nodes[site]["log_prob"]
        assert_close(log_prob.astype(dtype), expected, dtype)
    means = handlers.substitute(ours.reconstruct, data=params)(z)
    assert_close(means, theirs.reconstruct(value), dtype)


def test_every_parameter_has_a_twin():
    """Sizes agree, so nothing is left at its start on either side."""
    model, guide = torch_models.mnist_vae(), torch_guides.mnist_guide()
    carried = carry.program("model", model) | carry.program("guide", guide)

    def parameters(key):
        x, made = jnp.zeros((2, 28, 28), jnp.float32), {}
        for program in (jax_models.mnist_vae(), jax_guides.mnist_guide()):
            sites = handlers.trace(handlers.seed(program, key)).get_trace(x)
            made |= {k: s["value"] for k, s in sites.items() if s["type"] == "param"}
        return made

    made = jax.eval_shape(parameters, jax.random.key(0))
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, carried)
