"""Two parts of one kind in one NumPyro program: each has parameters and state of its own."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from flax import linen as nn  # noqa: E402
from numpyro import handlers  # noqa: E402

from numpyro_dvae import models, nets  # noqa: E402
from numpyro_dvae.guides import AutoregressiveGuide, IndependentGuide  # noqa: E402

KEY = jax.random.key(0)


def codebooks(**options):
    one, two = nets.Codebook(6, 2, **options), nets.Codebook(6, 2, **options)
    return (lambda: one.table), (lambda: two.table)


def decoders():
    def one_of(width):
        codebook = nets.Codebook(3, 2, table=jnp.ones((3, 2)))
        return nets.CodebookDecoder(codebook, nn.Dense(width))

    one, two = one_of(4), one_of(4)
    codes = jnp.zeros((5, 1), int)
    return (lambda: one(codes)), (lambda: two(codes))


def vae_parts(prior, likelihood, decoder=None):
    """What a model has of a prior, a likelihood and a decoder."""
    model = models.DiscreteVAE(decoder or nets.MLPDecoder(2, 3, (4,), 2, (5,)), prior, likelihood)

    def run():
        with handlers.scope(prefix=f"{id(model)}", hide_types=["param", "mutable", "plate"]):
            return model(num_data=2)

    return run


def vaes(prior=lambda: models.CategoricalPrior(2, 3), **likelihood):
    return tuple(vae_parts(prior(), models.GaussianLikelihood(**likelihood)) for _ in range(2))


def binary_vaes():
    prior, likelihood = models.BernoulliPrior, models.GaussianLikelihood

    def one():
        parts = prior(2, learn="closed_form"), likelihood(learn="closed_form")
        return vae_parts(*parts, nets.MLPDecoder(2, None, (4,), hidden=()))

    return one(), one()


def class_priors():
    def one():
        transformer = nets.CausalTransformer(2, 3, embed_dim=4, cross_attention=True)
        return models.AutoregressivePrior(transformer, num_classes=2)

    one, two, labels = one(), one(), jnp.array([0, 1])
    return (lambda: one(labels).context), (lambda: two(labels).context)


def guides():
    def of(guide, prefix):
        def run():
            with handlers.scope(prefix=prefix, hide_types=["param", "mutable", "plate"]):
                return guide(jnp.ones((2, 4)))

        return run

    return tuple(of(IndependentGuide(nets.MLPEncoder((4,), 2, 3, (5,))), p) for p in "ab")


def transformer_guides():
    def one():
        transformer = nets.CausalTransformer(2, 3, embed_dim=4)
        encoder = nets.PatchEncoder((2, 2), 2, embed_dim=4)
        return AutoregressiveGuide(encoder, transformer)

    one, two, x = one(), one(), jnp.ones((2, 2, 2))
    return (lambda: one.posterior(x).context), (lambda: two.posterior(x).context)


KINDS = {  # two uses, and how many names each has
    "codebooks": (codebooks, 1),
    "moving averages": (lambda: codebooks(decay=0.9), 1),
    "decoders": (decoders, 2),
    "models": (vaes, 3),
    "closed forms": (binary_vaes, 3),
    "class priors": (class_priors, 2),
    "guides": (guides, 1),
    "transformers": (transformer_guides, 2),
}


def names(program, data=None):
    program = program if data is None else handlers.substitute(program, data=data)
    found = handlers.trace(handlers.seed(program, KEY)).get_trace()
    return {k: site["value"] for k, site in found.items() if site["type"] in ("param", "mutable")}


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_its_own(kind):
    make, count = KINDS[kind]
    one, two = make()

    def both():
        return one(), two()

    found = names(both)
    assert len(found) == 2 * count
    second = {name for name in found if "_1$" in name}
    assert len(second) == count
    assert {name.replace("_1$", "$") for name in second} == found.keys() - second
    # They keep their names, in any order and alone.
    assert names(lambda: (two(), one()), found).keys() == found.keys()
    assert names(two).keys() == second
    # What one is given is not the other's.
    changed = {k: jax.tree.map(lambda leaf: leaf + 1, found[k]) for k in second}
    data = {**found, **changed}
    before, after = (names(both, values) for values in (found, data))
    for name in found:
        same = jax.tree.map(lambda a, b: bool(np.all(a == b)), before[name], after[name])
        assert all(jax.tree.leaves(same)) == (name not in second)


def test_two_codebooks_train_apart():
    one, two = nets.Codebook(6, 2), nets.Codebook(9, 2)

    def both():
        loc = one.table.sum(0) - 2 * two.table.sum(0)
        numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=jnp.ones(2))

    svi = numpyro.infer.SVI(
        both, lambda: None, numpyro.optim.Adam(1e-2), numpyro.infer.Trace_ELBO()
    )
    state, _ = svi.update(svi.init(jax.random.key(0)))
    params = svi.get_params(state)
    with handlers.substitute(data=params):
        assert one.table.shape == (6, 2)
        assert two.table.shape == (9, 2)
    assert set(params) == {"codebook$table", "codebook_1$table"}


def test_numbers_of_another_process_are_refused_and_names_are_not():
    data = {"codebook$table": jnp.ones((6, 2)), "codebook_1$table": jnp.zeros((6, 2))}
    stranger = nets.Codebook(6, 2)
    with pytest.raises(ValueError, match='several parts named "codebook"'):
        names(lambda: stranger.table, data)
    stranger.name = "top"
    with handlers.substitute(data={"codebook.top$table": jnp.ones((6, 2))}):
        np.testing.assert_array_equal(stranger.table, 1.0)
    top = nn.Dense(2, name="top")
    assert names(lambda: nets.register("net", top, jnp.ones(3))).keys() == {"net.top$params"}


def test_other_sizes_are_named():
    codebook = nets.Codebook(6, 2)
    with (
        handlers.substitute(data={"codebook$table": jnp.ones((9, 2))}),
        pytest.raises(ValueError, match=r"must have shape \(6, 2\); got \(9, 2\)"),
    ):
        codebook.table  # noqa: B018


def test_one_part_used_twice_is_one():
    codebook = nets.Codebook(6, 2)
    assert names(lambda: (codebook.table, codebook.table)).keys() == {"codebook$table"}


def test_scopes_tell_parts_apart_by_themselves():
    one, two = (IndependentGuide(nets.MLPEncoder((4,), 2, 3, (5,))) for _ in range(2))

    def both():
        for prefix, guide in (("a", one), ("b", two)):
            with handlers.scope(prefix=prefix):
                guide(jnp.ones((2, 4)))

    assert names(both).keys() == {"a/guide.encoder$params", "b/guide.encoder$params"}
