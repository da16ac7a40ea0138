"""K particles share what does not depend on them: patches, and keys and values of the context."""

import importlib

import numpy as np
import pytest

B, K, L, V, P, D = 3, 7, 4, 5, 8, 12  # no two alike, nor like D / 2


def shapes_in(jaxpr):
    """Of all arrays that a program makes, in loops and functions too."""
    for equation in jaxpr.eqns:
        yield from (tuple(var.aval.shape) for var in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


@pytest.mark.thrifty
def test_patches_and_their_keys_are_made_once_a_datum(lab, monkeypatch):
    nets, guides, models = lab.module("nets"), lab.module("guides"), lab.module("models")
    block, seen = lab.module("nets.attention").Block, {"patches": [], "context": [], "x": []}

    def recording(kind, name, place):
        function = getattr(kind, name)

        def run(self, *arrays, **options):
            array = arrays[0] if place is None else arrays[place]
            seen[{"patches": "patches", "context_keys_values": "context", "_cross": "x"}[name]] += [
                tuple(array.shape)
            ]
            return function(self, *arrays, **options)

        monkeypatch.setattr(kind, name, run)

    recording(nets.PatchEncoder, "patches", None)
    recording(block, "context_keys_values", None)
    recording(block, "_cross", 0)
    x = np.random.default_rng(0).random((B, 4, 4)).astype(np.float32).round()
    sizes = {"embed_dim": D, "num_heads": 2}
    guide = guides.AutoregressiveGuide(
        nets.PatchEncoder((4, 4), P, **sizes), nets.CausalTransformer(L, V, **sizes)
    )
    decoder = nets.MLPDecoder(L, V, (4, 4), embed_dim=4, hidden=(8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.BernoulliLikelihood())
    loss = lab.module("infer").DAPS_ELBO(num_particles=K)
    if lab.name == "pyro":
        torch = importlib.import_module("torch")
        loss.loss_and_grads(model, guide, torch.as_tensor(x))  # finds the plates first
        for shapes in seen.values():
            shapes.clear()
        loss.loss_and_grads(model, guide, torch.as_tensor(x))
        assert len(seen["patches"]) == 1
        assert len(seen["context"]) == 2  # for the sampler and for the densities
    else:
        jax, numpyro = importlib.import_module("jax"), importlib.import_module("numpyro")
        make_svi = importlib.import_module("quick_numpyro").QuickSVI
        svi = make_svi(model, guide, numpyro.optim.Adam(0.1), loss)
        state = svi.init(jax.random.key(0), jax.numpy.asarray(x))
        for shapes in seen.values():
            shapes.clear()
        step = jax.make_jaxpr(lambda state: svi.update(state, jax.numpy.asarray(x)))(state)
        copies = [
            s for s in shapes_in(step.jaxpr) if {K, P} <= set(s) and s[-1] in (D, 2 * D, D // 2)
        ]
        assert not copies
        assert (B, P, 2 * D) in set(shapes_in(step.jaxpr))
    assert set(seen["patches"]) == {(B, 4, 4)}
    assert set(seen["context"]) == {(B, P, D)}  # not K of each
    if lab.name == "pyro":  # JAX maps over particles
        assert (K, B, L, D) in seen["x"]
