"""Which sites and axes are renamed together: the ones that leave model and guide as they are."""

import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

RNG = np.random.default_rng(3)
X = RNG.normal(0.0, 3.0, (4, 3)).astype(np.float32)
SQUARE = X[:3]  # as many data as codes and as features
PARAMS = {
    "mu": RNG.normal(size=3),
    "nu": RNG.normal(size=3),
    "means": RNG.normal(size=(3, 3)),
    "moves": RNG.normal(size=(3, 3)),
    "first": RNG.normal(size=3),
    "rows": RNG.normal(size=(3, 3)),
    "others": RNG.normal(size=(3, 3)),
    "weight": RNG.normal(size=(3, 3)),
    "bias": RNG.normal(size=3),
    "chance": np.array(0.3),
    "moving": np.array([0.2, 0.7]),
    "level": np.array(-1.5),
    "size": np.array(0.8),
    "two": RNG.normal(size=2),
    "tilts": RNG.normal(size=3),
}


def programs(backend):
    """Models and guides of each kind, by the functions of a framework."""
    if backend == "pyro":
        import pyro as host
        import pyro.distributions as dist
        import torch

        array, concatenate, place = torch.as_tensor, torch.cat, torch.Tensor.long
        even = torch.ones(3) / 3
    else:
        import jax.numpy as jnp
        import numpyro as host
        import numpyro.distributions as dist

        array, concatenate, place = jnp.asarray, jnp.concatenate, lambda z: z
        even = jnp.ones(3) / 3

    def param(name):
        return host.param(name, array(PARAMS[name].astype(np.float32)))

    def draw(name, logits=None):
        return host.sample(name, dist.Categorical(even) if logits is None else logits_of(logits))

    def logits_of(logits):
        return dist.Categorical(logits=logits)

    def see(name, mean, x):
        host.sample(name, dist.Normal(mean, 1.0), obs=x)

    def two_mixtures(x):
        with host.plate("data", len(x)):
            see("x", param("mu")[draw("z")], x[:, 0])
            see("y", param("nu")[draw("u")], x[:, 1])

    def a_sum(x):  # both codes have one table
        mu = param("mu")
        with host.plate("data", len(x)):
            see("x", mu[draw("z")] + mu[draw("u")], x[:, 0])

    def chain(x):
        first, moves, mu = param("first"), param("moves"), param("mu")
        with host.plate("data", len(x)):
            z = draw("z", first)
            see("x", mu[z], x[:, 0])
            see("y", mu[draw("u", moves[z])], x[:, 1])

    def in_space(x):
        means = param("means")
        host.deterministic("turned", means + 1.0)
        host.deterministic("given", array(SQUARE))
        with host.plate("data", len(x)):
            host.sample("x", dist.Normal(means[draw("z")], 1.0).to_event(1), obs=x)

    def named(x):  # codes are numbers here
        with host.plate("data", len(x)):
            see("x", 1.0 * draw("z"), x[:, 0])

    def free(x):
        with host.plate("data", len(x)):
            draw("z", param("rows")[: len(x)])
            draw("u", param("others")[: len(x)])

    def own_rows(x):
        with host.plate("data", len(x)):
            draw("z", param("rows")[: len(x)])

    def encoder(x):
        with host.plate("data", len(x)):
            draw("z", x @ param("weight") + param("bias"))

    def coins(x):  # of a learnt chance, and of one that goes by the first coin
        size, chance, moving = param("size"), param("chance"), param("moving")
        host.deterministic("tails", 1.0 - chance)
        with host.plate("data", len(x)):
            z = host.sample("z", dist.Bernoulli(chance))
            u = host.sample("u", dist.Bernoulli(moving[place(z)]))
            host.sample("x", dist.Normal(param("two")[place(z)], size), obs=x[:, 0])
            host.sample("y", dist.Normal(param("two")[place(u)], size), obs=x[:, 1])

    def signed(x):  # a logit that goes by the data, and an effect that changes its sign
        with host.plate("data", len(x)):
            z = host.sample("z", dist.Bernoulli(logits=x @ param("tilts") + param("level")))
            see("x", param("size") * (2.0 * z - 1.0), x[:, 0])

    def of_coins(x, names=("z", "u")):
        with host.plate("data", len(x)):
            for name, rows in zip(names, ("rows", "others"), strict=False):
                host.sample(name, dist.Bernoulli(logits=param(rows)[: len(x), 0]))

    def ordered(x):  # says more of some codes than of others
        bias = param("bias")
        with host.plate("data", len(x)):
            draw("z", concatenate([bias[:1] ** 3, bias[1:]]))

    return SimpleNamespace(**locals())


@pytest.fixture(params=["pyro", "numpyro"])
def kit(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    made = programs(request.param)
    made.package = f"{request.param}_dvae"
    made.module = importlib.import_module(f"{made.package}.diagnostics.symmetry")
    return made


def symmetries(kit, model, guide, x):
    """What is found at given parameters."""
    trained = importlib.import_module(f"{kit.package}.diagnostics.trained")
    params = {name: kit.array(value.astype(np.float32)) for name, value in PARAMS.items()}
    if kit.package == "pyro_dvae":
        kit.host.clear_param_store()
        return kit.module.Symmetries(trained.as_trained((model, guide), params), (kit.array(x),))
    import jax

    pair = trained.as_trained((model, guide), params)
    return kit.module.Symmetries(jax.random.key(0), pair, (kit.array(x),))


def axes_of(codes):
    return {name: set(axes) for name, axes in codes.axes.items()}


@pytest.mark.thrifty
def test_sites_are_renamed_apart_where_they_may_be(kit):
    found = symmetries(kit, kit.two_mixtures, kit.free, X[:3]).groups()
    assert [codes.sites for codes in found] == [("z",), ("u",)]
    assert axes_of(found[0]) == {"mu": {-1}, "rows": {-1}}  # the rows are of data
    assert axes_of(found[1]) == {"nu": {-1}, "others": {-1}}


@pytest.mark.thrifty
def test_sites_of_one_table_are_renamed_together(kit):
    (codes,) = symmetries(kit, kit.a_sum, kit.free, X[:3]).groups()
    assert codes.sites == ("z", "u")
    assert axes_of(codes) == {"mu": {-1}, "rows": {-1}, "others": {-1}}


@pytest.mark.thrifty
def test_a_table_of_moves_has_two_axes_of_codes(kit):
    (codes,) = symmetries(kit, kit.chain, kit.free, X[:3]).groups()
    assert codes.sites == ("z", "u")
    expected = {"mu": {-1}, "moves": {-2, -1}, "first": {-1}, "rows": {-1}, "others": {-1}}
    assert axes_of(codes) == expected


@pytest.mark.thrifty
def test_features_as_many_as_codes_keep_their_names(kit):
    (codes,) = symmetries(kit, kit.in_space, kit.encoder, SQUARE).groups()
    assert axes_of(codes) == {"means": {-2}, "turned": {-2}, "weight": {-1}, "bias": {-1}}
    assert not codes.lost
    (codes,) = symmetries(kit, kit.in_space, kit.own_rows, SQUARE).groups()
    assert axes_of(codes) == {"means": {-2}, "turned": {-2}, "rows": {-1}}


@pytest.mark.thrifty
def test_renamed_programs_are_the_same(kit):
    """The densities of all states, under all permutations."""
    found = symmetries(kit, kit.in_space, kit.encoder, SQUARE)
    (codes,) = found.groups()
    dtype = found.latents["z"].dtype
    for states in itertools.product(range(3), repeat=3):
        values = (
            {"z": kit.array(np.array(states)).astype(dtype)}
            if kit.package[0] == "n"
            else {"z": kit.array(np.array(states))}
        )
        _, before = found.run(values)
        for permutation in itertools.permutations(range(3)):
            renaming = kit.module.Renaming(codes, np.array(permutation))
            _, after = found.run(values, renaming)
            np.testing.assert_allclose(after.model, before.model, rtol=1e-5)
            np.testing.assert_allclose(after.guide, before.guide, rtol=1e-5, atol=1e-6)


def test_a_guide_that_tells_codes_apart_loses_its_names(kit):
    (codes,) = symmetries(kit, kit.in_space, kit.ordered, SQUARE).groups()
    assert axes_of(codes) == {"means": {-2}, "turned": {-2}}
    assert codes.lost == ("bias",)


@pytest.mark.thrifty
def test_a_learnt_chance_is_mirrored(kit):
    (codes,) = symmetries(kit, kit.coins, kit.of_coins, SQUARE).groups()
    assert codes.sites == ("z", "u")
    expected = {"chance": {1}, "moving": {-1, 1}, "two": {-1}, "rows": {0}, "others": {0}}
    assert axes_of(codes) == {**expected, "tails": {1}}
    renaming = kit.module.Renaming(codes, np.array([1, 0]))
    moved = renaming.of_array("moving", kit.array(PARAMS["moving"].astype(np.float32)))
    np.testing.assert_allclose(moved, [0.3, 0.8], rtol=1e-6)


@pytest.mark.thrifty
def test_logits_and_signs_are_mirrored(kit):
    (codes,) = symmetries(kit, kit.signed, lambda x: kit.of_coins(x, ("z",)), SQUARE).groups()
    assert axes_of(codes) == {"tilts": {0}, "level": {0}, "size": {0}, "rows": {0}}


def test_a_model_that_tells_codes_apart_is_not_renamed(kit):
    found = symmetries(kit, kit.named, kit.own_rows, SQUARE)
    assert found.groups() == []
    assert "not found to be the same with its 3 codes renamed" in found.why("z")


def test_parameters_that_have_a_gradient_are_read():
    """Those of an automatic guide, which are its distributions' own logits."""
    pytest.importorskip("torch")
    made = programs("pyro")
    made.package = "pyro_dvae"
    made.module = importlib.import_module("pyro_dvae.diagnostics.symmetry")
    auto = importlib.import_module("pyro_dvae.guides").AutoDiscrete(made.a_sum)
    (codes,) = symmetries(made, made.a_sum, auto, X[:3]).groups()
    assert codes.sites == ("z", "u")
    assert axes_of(codes) == {"mu": {-1}}
