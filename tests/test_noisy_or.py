"""The fixed point of a noisy-OR decoder under a posterior, in both packages.

With all states of a datum in its set the posterior is exact, so training is expectation
maximisation; here it is done by hand in float64, with sums over states and over which of the causes
were at work.
"""

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

N, L, D = 60, 3, 4
RATE, START, RIDGE = 0.1, 0.01, 1e-5
RNG = np.random.default_rng(0)
TRUE = np.clip(RNG.random((L, D)) * 1.4 - 0.4, 0.0, 0.9)
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=L)))
FEATURES = np.concatenate([STATES, np.ones((len(STATES), 1))], 1)
X = (RNG.random((N, D)) > (1 - (RNG.random((N, L, 1)) < 0.4) * TRUE).prod(1) * 0.95).astype(float)
WEIGHTS, LEAK = np.clip(TRUE + 0.3 * RNG.random((L, D)), 0.1, 0.9), 0.1
PROBABILITY = 0.3
Q = np.array([0.2, 0.5, 0.7])  # of a guide that stays
BOTH = np.array(list(itertools.product([0.0, 1.0], repeat=L + 1)))  # which causes were at work


def at_work(weights):
    """Of each state and entry: its chance to be on, and of each cause to be at work if it is.

    A sum over all ways in which the causes may be at work.
    """
    chances = FEATURES[:, :, None] * weights  # (S, F, D)
    ways = np.where(BOTH[:, None, :, None] == 1, chances, 1 - chances).prod(2)  # (W, S, D)
    some = BOTH.any(1)
    on = ways[some].sum(0)
    return on, np.einsum("wsd,wf->sfd", ways[some], BOTH[some]) / on[:, None]


def posterior(weights, probs):
    """Of each datum's states, and the evidence of all data."""
    on, _ = at_work(weights)
    scores = np.where(X[:, None] == 1, np.log(on), np.log(1 - on)).sum(-1)
    scores = scores + STATES @ np.log(probs) + (1 - STATES) @ np.log(1 - probs)
    evidence = np.logaddexp.reduce(scores, 1)
    return np.exp(scores - evidence[:, None]), evidence.sum()


def uses(q, weights):
    """How often causes are at work and, in the last column, on."""
    _, works = at_work(weights)
    found = np.einsum("ns,nd,sfd->fd", q, X, works) / len(q)
    return np.concatenate([found, (q.mean(0) @ FEATURES)[:, None]], 1)


def maximised(steps):
    """Weights, chances after so many iterations, and the evidence before each."""
    weights = np.concatenate([WEIGHTS, np.full((1, D), LEAK)])
    probs, evidences = np.full(L, PROBABILITY), []
    for _ in range(steps):
        q, evidence = posterior(weights, probs)
        evidences.append(evidence)
        found = uses(q, weights)
        weights, probs = found[:, :-1] / found[:, -1:], (q @ STATES).mean(0)
    return weights, probs, evidences


def parts(package, asarray, learn, likelihood):
    models = importlib.import_module(f"{package}.models")
    decoder = models.NoisyOrDecoder(asarray(WEIGHTS), leak=LEAK, learn=learn)
    prior = models.BernoulliPrior(L, probability=PROBABILITY, learn="closed_form")
    return models.DiscreteVAE(decoder, prior, getattr(models, likelihood)()), decoder


def train_pyro(
    steps, *, states=2**L, learn="closed_form", likelihood="BernoulliLikelihood", more=(), x=X
):
    import pyro
    import pyro.distributions as dist
    import torch

    infer = importlib.import_module("pyro_dvae.infer")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, decoder = parts("pyro_dvae", torch.asarray, learn, likelihood)
    model.double()

    def guide(x, *rest):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.asarray(Q)).to_event(1))

    if states:
        guide, loss = infer.TruncatedGuide(model, states), infer.Truncated_ELBO(sweeps=states // 8)
    else:
        loss = infer.Exact_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss)
    data = [torch.asarray(each) if each is not None else None for each in (x, *more)]
    losses = [svi.step(*data) for _ in range(steps)]
    found = {"raw": decoder.raw.detach(), "probs": model.prior.logits.sigmoid()}
    found |= {"weights": decoder.weights.detach(), "leak": decoder.leak.detach()}
    return {name: value.numpy() for name, value in found.items()} | {"losses": np.array(losses)}


def train_numpyro(
    steps, *, states=2**L, learn="closed_form", likelihood="BernoulliLikelihood", more=(), x=X
):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from quick_numpyro import QuickSVI

    infer = importlib.import_module("numpyro_dvae.infer")
    model, decoder = parts("numpyro_dvae", jnp.asarray, learn, likelihood)

    def guide(x, *rest):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(jnp.asarray(Q)).to_event(1))

    if states:
        guide, loss = infer.TruncatedGuide(model, states), infer.Truncated_ELBO(sweeps=states // 8)
    else:
        loss = infer.Exact_ELBO()
    svi = QuickSVI(model, guide, numpyro.optim.Adam(0.01), loss)
    data = [jnp.asarray(each) if each is not None else None for each in (x, *more)]
    state, losses = jax.jit(svi.init)(jax.random.key(0), *data), []
    update = jax.jit(svi.update)
    for _ in range(steps):
        state, loss_value = update(state, *data)
        losses.append(loss_value)
    kept = state.mutable_state
    found = {"raw": kept.get("model.decoder$raw"), "losses": np.array(losses)}
    found["probs"] = 1 / (1 + np.exp(-kept["model.prior$logits"]))
    return found | decoder.learnt({**svi.get_params(state), **kept})


TRAIN = {"pyro": train_pyro, "numpyro": train_numpyro}


@pytest.fixture(params=list(TRAIN))
def train(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return TRAIN[request.param]


@pytest.fixture(scope="session", params=["pyro_dvae", "numpyro_dvae"])
def package(request):
    pytest.importorskip("torch" if request.param == "pyro_dvae" else "jax")
    return request.param


@pytest.mark.thrifty
def test_truncated_posteriors_maximise_as_by_hand(train):
    found, (weights, probs, evidences) = train(4), maximised(4)
    np.testing.assert_allclose(found["weights"], weights[:-1], atol=2e-5)
    np.testing.assert_allclose(found["leak"], weights[-1], atol=2e-5)
    np.testing.assert_allclose(found["probs"], probs, rtol=1e-4)
    np.testing.assert_allclose(-found["losses"], evidences, rtol=1e-5)
    assert (np.diff(found["losses"]) < 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("states", [2, 5])
def test_the_bound_never_falls_with_sets_that_stay(train, states):
    """Sets of fewer states than there are, without E-steps, and data that are anything."""
    x = np.random.default_rng(states).integers(0, 2, X.shape).astype(float)
    losses = train(40, states=states, x=x)["losses"]
    assert (np.diff(losses) <= 1e-5 * abs(losses[0])).all()
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.slow
def test_a_gradient_is_far_behind_in_as_many_steps(train):
    """The negative control: of a rate that is not too large."""
    closed, learnt = train(30)["losses"][-1], train(30, learn=True)["losses"][-1]
    assert closed < learnt - 1.0


@pytest.mark.thrifty
def test_other_losses_average_uses(train):
    found = train(1, states=0)["raw"]
    q = np.prod(np.where(STATES == 1, Q, 1 - Q), 1)
    weights = np.concatenate([WEIGHTS, np.full((1, D), LEAK)])
    batch = uses(np.broadcast_to(q, (N, len(q))), weights)
    start = np.concatenate([weights, np.ones((L + 1, 1))], 1)
    batch = batch + RIDGE * batch[:, -1].mean() * start
    np.testing.assert_allclose(found, (1 - RATE) * START * start + RATE * batch, rtol=1e-5)


@pytest.mark.thrifty
def test_what_the_closed_form_is_not_of_is_refused(train):
    with pytest.raises(ValueError, match="'x' has a closed form that sees latents"):
        train(1, more=(None, None, np.ones(X.shape, bool)))
    words = r'NoisyOrDecoder\(learn="closed_form"\) is for data as of BernoulliLikelihood; got Norm'
    with pytest.raises(ValueError, match=words):
        train(1, likelihood="GaussianLikelihood")


@pytest.mark.slow
def test_a_start_is_not_asked_for_once_it_is_held(monkeypatch):
    """As a constant of the steps it would have them compiled anew for each start."""
    jax, numpyro = pytest.importorskip("jax"), importlib.import_module("numpyro")
    infer = importlib.import_module("numpyro_dvae.infer")
    models = importlib.import_module("numpyro_dvae.models")
    decoder = models.NoisyOrDecoder(WEIGHTS, leak=LEAK, learn="closed_form")
    model = models.DiscreteVAE(decoder, models.BernoulliPrior(L), models.BernoulliLikelihood())
    guide, adam = infer.TruncatedGuide(model, 4), numpyro.optim.Adam(0.01)
    svi = infer.SVI(model, guide, adam, infer.Truncated_ELBO())
    state, asked = jax.jit(svi.init)(jax.random.key(0), X), []
    start = models.NoisyOrDecoder.start
    monkeypatch.setattr(models.NoisyOrDecoder, "start", lambda self: asked.append(1) or start(self))
    jax.jit(svi.update).lower(state, X)
    assert not asked


def xp_of(package):
    return importlib.import_module("torch" if package == "pyro_dvae" else "jax.numpy")


@pytest.mark.parametrize("learn", [True, False, "closed_form"])
def test_chances_are_those_of_causes_at_work(package, learn):
    asarray = xp_of(package).asarray
    weights, states = (asarray(each.astype(np.float32)) for each in (WEIGHTS, STATES))
    decoder = importlib.import_module(f"{package}.models").NoisyOrDecoder(
        weights.reshape(L, 2, D // 2), leak=LEAK, learn=learn
    )
    if package == "pyro_dvae":
        logits, shown = decoder(states).detach(), [decoder.weights.detach(), decoder.leak.detach()]
    else:  # what is learnt by gradient is a parameter, what is held comes with the call
        held = (decoder.start(),) if learn == "closed_form" else ()
        logits = decoder.apply({"params": {"raw": decoder.start()}}, states, *held)
        trained = {"net$raw": decoder.start(), "net$params": {"raw": decoder.start()}}
        shown = decoder.learnt(trained, name="net").values()
        if learn is not False:
            with pytest.raises(ValueError, match=r"`params` must hold 'model.decoder\$.*net\$raw"):
                decoder.learnt(trained)
    on, _ = at_work(np.concatenate([WEIGHTS, np.full((1, D), LEAK)]))
    assert logits.shape == (2**L, 2, D // 2)
    for each, first in zip(shown, (WEIGHTS.reshape(L, 2, -1), LEAK), strict=True):
        np.testing.assert_allclose(each, np.broadcast_to(first, each.shape), rtol=1e-5)
    assert [each.shape for each in shown] == [(L, 2, D // 2), (2, D // 2)]
    found = 1 / (1 + np.exp(-np.asarray(logits, np.float64).reshape(on.shape)))
    np.testing.assert_allclose(found, on, rtol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_fixed_point_never_lowers_the_bound(package, seed):
    """Of sets of states that stay, each datum's posterior being that on its set."""
    noisy_or, xp = importlib.import_module(f"{package}.models.noisy_or"), xp_of(package)
    rng = np.random.default_rng(seed)
    weights = rng.beta(0.5, 0.5, (L + 1, D)).clip(1e-3, 1 - 1e-3)
    x, sets = rng.random((5, D)) < rng.random(), rng.random((5, len(STATES))) < 0.4
    sets[:, rng.integers(len(STATES))] = True

    def scores_of(weights):
        on = 1 - np.prod(1 - FEATURES[:, :, None] * weights, 1)
        scores = np.where(x[:, None], np.log(on), np.log1p(-on)).sum(-1)
        return np.where(sets, scores, -np.inf), on

    scores, on = scores_of(weights)
    q = np.exp(scores - np.logaddexp.reduce(scores, 1)[:, None])
    told = np.einsum("ns,sf,nd,sd->fd", q, FEATURES, x, 1 / on)
    total = np.concatenate([told, (q.sum(0) @ FEATURES)[:, None]], 1).astype(np.float32)
    old = noisy_or.uses_of(xp.asarray(weights.astype(np.float32)))
    new = noisy_or.solve_uses(xp.asarray(total), xp.full_like(old, float(len(x))), old)
    new = np.asarray(noisy_or.chances_of(new), np.float64)
    before, after = (np.logaddexp.reduce(each, 1).sum() for each in (scores, scores_of(new)[0]))
    assert after >= before - 1e-5 * abs(before)
    unused = total[:, -1] == 0
    np.testing.assert_allclose(new[unused], weights[unused], rtol=1e-4)


def test_what_are_no_chances_is_refused(package):
    decoder, xp = importlib.import_module(f"{package}.models").NoisyOrDecoder, xp_of(package)
    with pytest.raises(ValueError, match=r"`weights` are probabilities, in \[0, 1\]; got some fro"):
        decoder(xp.asarray([[0.5, 1.5]]))
    with pytest.raises(ValueError, match=r"`leak` must be strictly in \(0, 1\); got 0.0."):
        decoder(xp.asarray([[0.5, 1.0]]), leak=0.0)
