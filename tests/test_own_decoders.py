"""A model of one's own that calls the codebook itself: it trains, or says what to do instead."""

import numpy as np
import pytest

B, L, V, D = 16, 2, 4, 3
X = np.random.default_rng(0).normal(size=(B, 3)).astype("f")
TABLE = 0.3 * np.random.default_rng(1).normal(size=(V, D)).astype("f")


def pyro_steps(loss, **options):
    """Losses of some steps, and how far the table moved."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_dvae import guides, infer, nets

    pyro.clear_param_store()
    torch.manual_seed(0)
    codebook = nets.Codebook(V, D, table=torch.asarray(TABLE), **options)
    net = torch.nn.Linear(L * D, 3)

    def model(x):
        nets.register("model", torch.nn.ModuleList([net, codebook]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(L, V) / V).to_event(1))
            pyro.sample("x", dist.Normal(net(codebook(z).flatten(-2)), 1.0).to_event(1), obs=x)

    guide = guide_of(guides, nets, codebook, loss)
    adam = pyro.optim.Adam({"lr": 1e-2})
    svi = pyro.infer.SVI(model, guide, adam, loss_of(infer, loss))
    losses = [svi.step(torch.asarray(X)) for _ in range(20)]
    return losses, float((codebook.table.detach() - torch.asarray(TABLE)).abs().max())


def numpyro_steps(loss, **options):
    import jax
    import numpyro
    import numpyro.distributions as dist
    from flax import linen as nn

    from numpyro_dvae import guides, infer, nets

    codebook = nets.Codebook(V, D, table=jax.numpy.asarray(TABLE), **options)
    net = nn.Dense(3)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jax.numpy.ones((L, V)) / V).to_event(1))
            vectors = codebook(z)
            vectors = vectors.reshape(*vectors.shape[:-2], -1)
            means = nets.register("net", net, vectors)(vectors)
            numpyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    guide = guide_of(guides, nets, codebook, loss)
    from quick_numpyro import QuickSVI

    svi = QuickSVI(model, guide, numpyro.optim.Adam(1e-2), loss_of(infer, loss))
    state, losses, update = svi.init(jax.random.key(0), X), [], jax.jit(svi.update)
    for _ in range(20):
        state, value = update(state, X)
        losses.append(float(value))
    values = {**svi.get_params(state), **state.mutable_state}
    held = values.get("codebook$state", {})
    table = held["table"] if "table" in held else values["codebook$table"]
    return losses, float(np.abs(table - TABLE).max())


def guide_of(guides, nets, codebook, loss):
    if loss == "vq":
        return guides.VectorQuantizedGuide(nets.MLPEncoder((3,), L, D, hidden=()), codebook)
    return guides.IndependentGuide(nets.MLPEncoder((3,), L, V, hidden=()))


def loss_of(infer, loss):
    return infer.VQ_ELBO() if loss == "vq" else infer.Reinforce_ELBO(2)


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("loss", "decay"), [("vq", None), ("vq", 0.9), ("reinforce", None), ("reinforce", 0.9)]
)
def test_codes_and_vectors_are_told_apart_by_the_codebook(backend, loss, decay):
    steps = pyro_steps if backend.name == "pyro" else numpyro_steps
    if (loss, decay) == ("reinforce", 0.9):
        with pytest.raises(ValueError, match=r"this loss trains the model on codes.*decay=None"):
            steps(loss, decay=decay)
        return
    losses, moved = steps(loss, decay=decay)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert moved > 0.01


def test_real_numbers_that_are_no_codes_are_named(backend):
    codebook = backend.module("nets").Codebook(V, D, table=backend.asarray(TABLE))
    with pytest.raises(ValueError, match=r"relaxed codes \(\*batch, L, 4\); got .*\(2, 3\)"):
        codebook(backend.asarray(np.zeros((2, D), "f")))
