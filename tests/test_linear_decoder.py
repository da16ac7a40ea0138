"""Least squares of a linear decoder under a posterior, in both packages.

With all states of a datum in its set the posterior is exact, so training is expectation
maximisation; here it is done by hand in float64, by enumeration.
"""

import importlib
import itertools

import numpy as np
import pytest

N, L, D = 60, 3, 4
RATE, RIDGE, START = 0.1, 1e-5, 0.01
RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(L, D))
X = (RNG.random((N, L)) < 0.4) @ TRUE + 0.5 + 0.3 * RNG.normal(size=(N, D))
ATOMS = TRUE + 0.5 * RNG.normal(size=(L, D))
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=L)))
FEATURES = np.concatenate([STATES, np.ones((len(STATES), 1))], 1)
PROBABILITY, VARIANCE = 0.3, 0.5
Q = np.array([0.2, 0.5, 0.7])  # of a guide that stays


def posterior(weights, variance, probs):
    """Of each datum's states, and the evidence of all data."""
    errors = np.square(X[:, None] - FEATURES @ weights).sum(-1)
    scores = STATES @ np.log(probs) + (1 - STATES) @ np.log(1 - probs) - 0.5 * errors / variance
    scores = scores - 0.5 * D * np.log(2 * np.pi * variance)
    evidence = np.logaddexp.reduce(scores, 1)
    return np.exp(scores - evidence[:, None]), evidence.sum()


def moments(q):
    """Mean second moments of the features, and with the data."""
    gram = np.einsum("ns,sf,sg->fg", q, FEATURES, FEATURES) / len(q)
    return np.concatenate([gram, np.einsum("ns,sf,nd->fd", q, FEATURES, X) / len(q)], 1)


def maximised(steps):
    """Weights, variance, chances after so many iterations, and the evidence before each."""
    weights, variance = np.concatenate([ATOMS, np.zeros((1, D))]), VARIANCE
    probs, evidences = np.full(L, PROBABILITY), []
    for _ in range(steps):
        q, evidence = posterior(weights, variance, probs)
        evidences.append(evidence)
        errors = np.square(X[:, None] - FEATURES @ weights).sum(-1)
        variance, probs = (q * errors).sum() / X.size, (q @ STATES).mean(0)
        found = moments(q)
        weights = np.linalg.solve(found[:, : L + 1], found[:, L + 1 :])
    return weights, variance, probs, evidences


def parts(package, asarray, learn):
    models = importlib.import_module(f"{package}.models")
    decoder = models.LinearDecoder(asarray(ATOMS), learn=learn)
    prior = models.BernoulliPrior(L, probability=PROBABILITY, learn="closed_form")
    likelihood = models.GaussianLikelihood(variance=VARIANCE, learn="closed_form")
    return models.DiscreteVAE(decoder, prior, likelihood), decoder


def train_pyro(steps, *, truncated=True, learn="closed_form", observed=None):
    import pyro
    import pyro.distributions as dist
    import torch

    infer = importlib.import_module("pyro_dvae.infer")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, decoder = parts("pyro_dvae", torch.asarray, learn)
    model.double()

    def guide(x, *rest):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.asarray(Q)).to_event(1))

    if truncated:
        guide, loss = infer.TruncatedGuide(model, 2**L), infer.Truncated_ELBO()
    else:
        loss = infer.Exact_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
    data = [torch.asarray(X)]
    data += [] if observed is None else [None, None, torch.asarray(observed)]
    losses = [svi.step(*data) for _ in range(steps)]
    found = {"raw": decoder.raw.detach(), "variance": model.likelihood.variance}
    found["probs"] = model.prior.logits.sigmoid()
    found |= {"atoms": decoder.atoms.detach(), "offset": decoder.offset.detach()}
    return {name: value.numpy() for name, value in found.items()} | {"losses": np.array(losses)}


def train_numpyro(steps, *, truncated=True, learn="closed_form", observed=None):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    infer = importlib.import_module("numpyro_dvae.infer")
    model, decoder = parts("numpyro_dvae", jnp.asarray, learn)

    def guide(x, *rest):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(jnp.asarray(Q)).to_event(1))

    if truncated:
        guide, loss = infer.TruncatedGuide(model, 2**L), infer.Truncated_ELBO()
    else:
        loss = infer.Exact_ELBO()
    from quick_numpyro import QuickSVI

    svi = QuickSVI(model, guide, numpyro.optim.Adam(0.01), loss)
    data = [jnp.asarray(X)] + ([] if observed is None else [None, None, observed])
    state, losses = jax.jit(svi.init)(jax.random.key(0), *data), []
    update = jax.jit(svi.update)
    for _ in range(steps):
        state, loss_value = update(state, *data)
        losses.append(loss_value)
    kept = state.mutable_state
    found = {"raw": kept.get("model.decoder$raw"), "losses": np.array(losses)}
    found["variance"] = np.exp(kept["model.likelihood$raw"])
    found["probs"] = 1 / (1 + np.exp(-kept["model.prior$logits"]))
    return found | decoder.learnt({**svi.get_params(state), **kept})


TRAIN = {"pyro": train_pyro, "numpyro": train_numpyro}


@pytest.fixture(params=list(TRAIN))
def train(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return TRAIN[request.param]


@pytest.mark.thrifty
def test_truncated_posteriors_maximise_as_by_hand(train):
    found, (weights, variance, probs, evidences) = train(4), maximised(4)
    np.testing.assert_allclose(found["atoms"], weights[:-1], atol=2e-3)
    np.testing.assert_allclose(found["offset"], weights[-1], atol=2e-3)
    np.testing.assert_allclose(found["variance"], variance, rtol=2e-3)
    np.testing.assert_allclose(found["probs"], probs, rtol=2e-3)
    np.testing.assert_allclose(-found["losses"], evidences, rtol=1e-4)
    assert (np.diff(found["losses"]) < 0.0).all()


@pytest.mark.thrifty
def test_a_gradient_is_far_behind_in_as_many_steps(train):
    """The negative control: of a rate that is not too large."""
    closed, learnt = train(30)["losses"][-1], train(30, learn=True)["losses"][-1]
    assert closed < learnt - 5.0


@pytest.mark.thrifty
def test_other_losses_average_moments(train):
    found = train(1, truncated=False)["raw"]
    q = np.prod(np.where(STATES == 1, Q, 1 - Q), 1)
    batch = moments(np.broadcast_to(q, (N, len(q))))
    start = np.concatenate([np.eye(L + 1), np.concatenate([ATOMS, np.zeros((1, D))])], 1)
    batch = batch + RIDGE * batch.diagonal().mean() * start
    np.testing.assert_allclose(found, (1 - RATE) * START * start + RATE * batch, rtol=1e-5)


@pytest.mark.parametrize("package", ["pyro_dvae", "numpyro_dvae"])
def test_another_likelihood_is_refused(package):
    """Least squares are of a Gaussian one: of logits they would be no M-step."""
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    models = importlib.import_module(f"{package}.models")
    dist = importlib.import_module(f"{package.removesuffix('_dvae')}.distributions")
    xp = importlib.import_module("torch" if package == "pyro_dvae" else "jax.numpy")
    decoder = models.LinearDecoder(xp.asarray(ATOMS), learn="closed_form")
    form = decoder.closed_form if package == "pyro_dvae" else decoder.closed_form("decoder")
    x, latents = xp.asarray(X), {"z": xp.zeros((N, L))}
    form.statistic(dist.Normal(x, 1.0).to_event(1), x, latents)
    words = r'LinearDecoder\(learn="closed_form"\) is for data as of GaussianLikelihood; got Bern'
    with pytest.raises(ValueError, match=words):
        form.statistic(dist.Bernoulli(logits=x).to_event(1), x, latents)


@pytest.mark.thrifty
def test_missing_entries_are_refused(train):
    with pytest.raises(ValueError, match="'x' has a closed form that sees latents"):
        train(1, observed=np.ones(X.shape, bool))


@pytest.mark.parametrize("package", ["pyro_dvae", "numpyro_dvae"])
def test_a_latent_that_no_datum_uses_keeps_its_atom(package):
    pytest.importorskip("torch" if package == "pyro_dvae" else "jax")
    linear = importlib.import_module(f"{package}.models.linear")
    xp = importlib.import_module("torch" if package == "pyro_dvae" else "jax.numpy")
    weights = xp.asarray(np.concatenate([ATOMS, np.zeros((1, D))]).astype(np.float32))
    q = np.eye(len(STATES))[RNG.integers(0, len(STATES) // 2, N)]  # the first latent is off
    total = xp.asarray((N * moments(q)).astype(np.float32))
    solved = linear.solve_moments(total, xp.full_like(total, N), linear.moments_of(weights))
    found = np.asarray(linear.least_squares(solved))
    np.testing.assert_allclose(found[0], ATOMS[0], rtol=1e-4)
    kept = moments(q)[1:, 1:]
    expected = np.linalg.solve(kept[:, :L], kept[:, L:])
    np.testing.assert_allclose(found[1:], expected, atol=1e-2)
