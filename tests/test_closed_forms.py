"""Parameters in closed form under losses that see a batch at a time, in both packages.

Each step moves the parameter a tenth of the way to the optimum of the batch under the weights by
which the loss trains the model; here that is computed by hand, from an enumeration.
"""

import importlib

import numpy as np
import pytest
from quantized import TABLE, B, D, L, V, X

RATE = 0.1


def parts(package, asarray, loss, learn="closed_form", shape=()):
    nets, models, guides = (
        importlib.import_module(f"{package}.{p}") for p in ("nets", "models", "guides")
    )
    codebook = nets.Codebook(V, D, table=asarray(TABLE))
    decoder = nets.CodebookDecoder(codebook, nets.MLPDecoder(L * D, None, (3, 2), hidden=()))
    likelihood = models.GaussianLikelihood(variance=4.0, learn=learn, shape=shape)
    model = models.DiscreteVAE(decoder, models.UniformPrior(L, V), likelihood)
    if loss == "VQ_ELBO":
        return model, guides.VectorQuantizedGuide(
            nets.MLPEncoder((3, 2), L, D, hidden=()), codebook
        )
    return model, guides.IndependentGuide(nets.MLPEncoder((3, 2), L, V, hidden=()))


def make_loss(package, name):
    infer = importlib.import_module(f"{package}.infer")
    kind = getattr(infer, name)
    return kind() if name in ("Exact_ELBO", "VQ_ELBO") else kind(4)


def run_pyro(name, num_steps, lr=0.0, **options):
    """Variances after each step, and at the first the mean square error of each joint code."""
    import pyro
    import torch

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = parts("pyro_dvae", torch.asarray, name, **options)
    x = torch.asarray(X)
    codes = torch.cartesian_prod(*[torch.arange(V)] * L)
    with torch.no_grad():
        squares = (x - model.reconstruct(codes)[:, None]).square().mean((-2, -1)).numpy()
        posterior = guide.posterior(x)
        probs = posterior.log_prob(codes[:, None].expand(-1, B, -1)).exp().numpy()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": lr}), make_loss("pyro_dvae", name))
    found = []
    for _ in range(num_steps):
        svi.step(x)
        found.append(model.likelihood.variance.detach().numpy().copy())
    return found, squares, probs


def run_numpyro(name, num_steps, lr=0.0, **options):
    """The same."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.handlers import substitute
    from quick_numpyro import QuickSVI

    model, guide = parts("numpyro_dvae", jnp.asarray, name, **options)
    x, codes = jnp.asarray(X), np.stack(np.meshgrid(*[np.arange(V)] * L, indexing="ij"), -1)
    codes = jnp.asarray(codes.reshape(-1, L))
    svi = QuickSVI(model, guide, numpyro.optim.Adam(lr), make_loss("numpyro_dvae", name))
    state = jax.jit(svi.init)(jax.random.key(0), x)
    data = {**svi.get_params(state), **state.mutable_state}
    means = substitute(model.reconstruct, data=data)(codes)
    squares = np.square(x - means[:, None]).mean((-2, -1))
    posterior = substitute(guide.posterior, data=data)(x)
    probs = np.exp(posterior.log_prob(jnp.broadcast_to(codes[:, None], (len(codes), B, L))))
    update, found = jax.jit(svi.update), []
    for _ in range(num_steps):
        state, _ = update(state, x)
        raw = {**svi.get_params(state), **state.mutable_state}
        key = "model.likelihood$raw"
        found.append(
            np.exp(raw[key]) if key in raw else np.exp(raw["model.likelihood$params"]["raw"])
        )
    return found, squares, probs


RUNS = {"pyro": run_pyro, "numpyro": run_numpyro}


@pytest.fixture(params=list(RUNS))
def run(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return RUNS[request.param]


@pytest.mark.thrifty
@pytest.mark.parametrize("name", ["Exact_ELBO", "VQ_ELBO"])
def test_a_step_goes_a_tenth_of_the_way_to_the_optimum(run, name):
    found, squares, probs = run(name, 2)
    optimum = (squares * probs).sum(0).mean()
    for step in (1, 2):
        way = 1 - (1 - RATE) ** step
        expected = np.exp((1 - way) * np.log(4.0) + way * np.log(optimum))
        assert float(found[step - 1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.thrifty
@pytest.mark.parametrize(
    "name", ["DAPS_ELBO", pytest.param("Reinforce_ELBO", marks=pytest.mark.slow)]
)
def test_draws_settle_about_the_optimum(run, name):
    found, squares, probs = run(name, 250)
    mean = (squares * probs).sum(0).mean()
    spread = np.sqrt(((squares**2 * probs).sum(0) - (squares * probs).sum(0) ** 2).mean() / B / 4)
    settled = np.log(np.ravel(found[150:]))
    # A moving average of batches: its own noise is what RATE / (2 - RATE) leaves of a batch's.
    error = spread / mean / np.sqrt(100)
    assert abs(settled.mean() - np.log(mean)) < 5 * error + (spread / mean) ** 2


@pytest.mark.thrifty
def test_the_learnt_variance_lags(run):
    """The negative control, at equal steps."""
    closed, squares, probs = run("Exact_ELBO", 40, lr=1e-3)
    learnt, *_ = run("Exact_ELBO", 40, lr=1e-3, learn=True)
    optimum = (squares * probs).sum(0).mean()
    assert abs(np.log(closed[-1] / optimum)) < 0.1
    assert abs(np.log(learnt[-1] / optimum)) > 0.5
