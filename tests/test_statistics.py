"""Batch normalisation and dropout in the networks of models and guides: once a step, or refused."""

import itertools

import numpy as np
import pytest

B, L, V, WIDTH = 16, 2, 3, 6
X = np.random.default_rng(0).normal(size=(B, WIDTH)).astype(np.float32)


@pytest.fixture
def torch_parts():
    torch = pytest.importorskip("torch")

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = torch.nn.Linear(WIDTH, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2)
            self.net = torch.nn.Sequential(*layers, torch.nn.Linear(8, L * V))

        def forward(self, x):
            return self.net(x).reshape(-1, L, V)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(V, 4)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(4 * L, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, WIDTH)
            )

        def forward(self, z):
            return self.net(self.table(z).reshape(-1, 4 * L)).reshape(*z.shape[:-1], WIDTH)

    return Encoder(), Decoder()


@pytest.mark.filterwarnings("ignore:model or guide does not broadcast")  # they mix the particles
@pytest.mark.filterwarnings("ignore:under plate")  # and the data
@pytest.mark.parametrize("name", ["DAPS_ELBO", "WakeSleep_ELBO"])
def test_statistics_advance_once_a_step(torch_parts, name):
    import pyro
    import torch

    from pyro_dvae import guides, infer, models

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    encoder, decoder = torch_parts
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.GaussianLikelihood())
    guide, loss = guides.IndependentGuide(encoder), getattr(infer, name)(3)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    x = torch.asarray(X)
    for step in range(3):
        expected = 0.9 * encoder.net[1].running_mean + 0.1 * encoder.net[0](x).mean(0)
        svi.step(x)
        assert encoder.net[1].num_batches_tracked == step + 1
        assert decoder.net[1].num_batches_tracked == step + 1
        torch.testing.assert_close(encoder.net[1].running_mean, expected.detach())
    svi.evaluate_loss(x)
    assert encoder.net[1].num_batches_tracked == 3


@pytest.mark.filterwarnings("ignore:model or guide does not broadcast")
def test_data_that_share_statistics_have_no_states_of_their_own(torch_parts):
    """A sum over the states of a datum is refused until the statistics are fixed."""
    import pyro
    import torch

    from pyro_dvae import guides, infer, models

    pyro.clear_param_store()
    encoder, decoder = torch_parts
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.GaussianLikelihood())
    guide, x = guides.IndependentGuide(encoder), torch.asarray(X)
    with (
        pytest.warns(UserWarning, match="a batch normalisation"),
        pytest.raises(ValueError, match="states"),
    ):
        infer.Exact_ELBO().loss(model, guide, x)
    model.eval()
    found = infer.Exact_ELBO().loss(model, guide.eval(), x)
    sampled = infer.Reinforce_ELBO(4000).loss(model, guide, x)
    assert found == pytest.approx(sampled, rel=0.02)


def nnx_programs():
    """A model, and a guide whose network has statistics and dropout."""
    from flax import nnx

    from numpyro_dvae import guides, models, nets

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(WIDTH, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs)
            self.last = nnx.Linear(8, L * V, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(self.norm(self.first(x)))).reshape(-1, L, V)

    decoder = nets.MLPDecoder(L, V, (WIDTH,), 4, (8,))
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), models.GaussianLikelihood())
    return model, guides.IndependentGuide(Encoder(nnx.Rngs(0)))


def test_nnx_statistics_advance_once_a_step():
    jax = pytest.importorskip("jax")
    import numpyro

    from numpyro_dvae import infer

    (model, guide), x = nnx_programs(), jax.numpy.asarray(X)
    from quick_numpyro import QuickSVI

    svi = QuickSVI(model, guide, numpyro.optim.Adam(1e-2), infer.DAPS_ELBO(3))
    state = jax.jit(svi.init)(jax.random.key(0), x)
    for _ in range(2):
        first = svi.get_params(state)["guide.encoder$params"]["first"]
        before = state.mutable_state["guide.encoder$state"]["state"]["norm"]["mean"]
        expected = 0.9 * before + 0.1 * (x @ first["kernel"] + first["bias"]).mean(0)
        state, _ = jax.jit(svi.update)(state, x)
        after = state.mutable_state["guide.encoder$state"]["state"]["norm"]["mean"]
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["reports", pytest.param("ways out", marks=pytest.mark.slow)])
def test_nnx_networks_are_evaluated_without_dropout_at_what_they_have_learnt(what):
    """Each datum for itself, whichever mode the network is left in."""
    jax = pytest.importorskip("jax")
    import numpyro

    from numpyro_dvae import diagnostics, fit, infer

    (model, guide), x = nnx_programs(), np.float32(X)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(0.1), infer.DAPS_ELBO(100))
    key = jax.random.key(0)
    result = fit.fit(key, svi, x, num_steps=40, eval_data=x, eval_every=40, progress=False)
    encoder, half = guide.encoder, len(x) // 2
    modes = encoder.norm.use_running_average, encoder.drop.deterministic
    params, state = (result.params[f"guide.encoder${name}"] for name in ("params", "state"))
    first, norm, last = (params[name] for name in ("first", "norm", "last"))
    seen = state["state"]["norm"]
    hidden = x @ first["kernel"] + first["bias"] - seen["mean"]
    hidden = hidden / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
    logits = (hidden @ last["kernel"] + last["bias"]).reshape(-1, L, V)
    if what == "ways out":
        codes = fit.encode_data(result, x)
        np.testing.assert_array_equal(codes, logits.argmax(-1))
        np.testing.assert_array_equal(codes[:half], fit.encode_data(result, x[:half]))
    else:
        found = diagnostics.posterior_gap(key, result, x)
        probs = jax.nn.softmax(logits, -1)
        entropy = -(probs * np.log(probs)).sum((1, 2))
        rates = diagnostics.latent_rates(key, result, x)["z"].rate
        np.testing.assert_allclose(rates.sum(), L * np.log(V) - entropy.mean(), rtol=1e-4)
        part = diagnostics.posterior_gap(key, result, x[:half])
        np.testing.assert_allclose(found.elbo[:half], part.elbo, rtol=1e-5)
        loss = -found.whole_elbo / len(x)
        drawn = result.history[-1]["eval_loss"]  # of 100 draws
        np.testing.assert_allclose(drawn, loss, rtol=0.003)
    assert (encoder.norm.use_running_average, encoder.drop.deterministic) == modes


@pytest.mark.slow
def test_nnx_networks_have_gradients_without_dropout_at_what_they_have_learnt():
    """An exact loss has no noise, and the gradient that enumeration gives."""
    jax = pytest.importorskip("jax")
    from numpyro.handlers import seed, substitute
    from numpyro.infer.util import log_density

    from numpyro_dvae import diagnostics, infer

    (model, guide), x, key = nnx_programs(), np.float32(X), jax.random.key(0)
    svi = infer.SVI(model, guide, numpyro_adam(), infer.Exact_ELBO())
    state = svi.init(key, x)
    params = svi.get_params(state) | state.mutable_state
    name = "guide.encoder$params"
    found = diagnostics.gradient_variance(
        key,
        (model, guide),
        x,
        losses={"exact": infer.Exact_ELBO()},
        num_repeats=3,
        select=lambda each: each == f"{name}.last.bias",
        params=params,
    )
    first, norm, last = (params[name][part] for part in ("first", "norm", "last"))
    seen = params["guide.encoder$state"]["state"]["norm"]
    hidden = (x @ first["kernel"] + first["bias"] - seen["mean"]) / np.sqrt(seen["var"] + 1e-5)
    logits = (hidden * norm["scale"] + norm["bias"]) @ last["kernel"] + last["bias"]
    log_q = np.asarray(jax.nn.log_softmax(logits.reshape(-1, L, V), -1), np.float64)

    def log_joint(z):
        given = seed(substitute(model, data={**params, "z": np.tile(z, (B, 1))}), key)
        sites = log_density(given, (x,), {}, {})[1]
        return sum(np.asarray(sites[n]["fn"].log_prob(sites[n]["value"])) for n in ("z", "x"))

    states = list(itertools.product(range(V), repeat=L))
    rows = np.stack([log_q[:, range(L), z].sum(-1) for z in states])
    q, gain = np.exp(rows), np.stack([log_joint(z) for z in states]) - rows
    is_code = np.array([[[z[i] == v for v in range(V)] for i in range(L)] for z in states])
    slope = np.einsum("sn,sn,slv->nlv", q, gain, is_code)
    slope = slope - np.exp(log_q) * (q * gain).sum(0)[:, None, None]
    np.testing.assert_allclose(found.signal, np.linalg.norm(slope.sum(0)), rtol=1e-4)
    assert found.noise == pytest.approx(0.0, abs=1e-4)


def numpyro_adam():
    import numpyro

    return numpyro.optim.Adam(1e-2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("norm", r"\['batch_stats'\].*flax\.nnx.*LayerNorm"), ("drop", r"dropout.*flax\.nnx")],
)
def test_linen_modules_with_a_state_are_refused_with_a_way_out(layer, message):
    jax = pytest.importorskip("jax")
    from flax import linen as nn
    from numpyro.handlers import seed

    from numpyro_dvae.nets import register

    norm, drop = nn.BatchNorm(use_running_average=False), nn.Dropout(0.2, deterministic=False)
    x = jax.numpy.asarray(X)
    with pytest.raises(ValueError, match=message):
        seed(register, jax.random.key(0))("net", norm if layer == "norm" else drop, x)(x)
