"""Draws of a distribution that weighs or moves those of another: not taken for the other."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm

X = np.array([1.3, 0.2, -0.4])
PRIOR, GATE, LOGITS = 0.4, 0.3, np.array([0.3, -0.2, 0.1])
TIMES = 60


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


WAYS = {  # the probability of the second value, of that of a Bernoulli draw, and both values
    "ZeroInflated": (lambda p: (1 - GATE) * p, (0.0, 1.0)),
    "Transformed": (lambda p: p, (1.0, 3.0)),
}


def right(way, logits):
    """Minus the ELBO, by all states of three coins."""
    chance, values = WAYS[way]
    q, loss = chance(sigmoid(logits)), 0.0
    prior = chance(PRIOR)
    for z in map(np.array, itertools.product((0, 1), repeat=3)):
        log_q = np.log(np.where(z, q, 1 - q)).sum()
        log_p = np.log(np.where(z, prior, 1 - prior)).sum()
        log_p += norm.logpdf(X, np.where(z, values[1], values[0])).sum()
        loss -= np.exp(log_q) * (log_p - log_q)
    return loss


def value_and_slopes(way):
    steps = 1e-5 * np.eye(3)
    slopes = [(right(way, LOGITS + s) - right(way, LOGITS - s)) / 2e-5 for s in steps]
    return np.array([right(way, LOGITS), *slopes])


def programs(ppl, dist, array, coin, logits, way):
    """Model and guide; `coin` is a Bernoulli distribution of logits."""

    def wrapped(logits):
        if way == "ZeroInflated":
            return dist.ZeroInflatedDistribution(coin(logits), gate=array(GATE))
        affine = dist.transforms.AffineTransform(array(1.0), array(2.0))
        return dist.TransformedDistribution(coin(logits), [affine])

    def model():
        with ppl.plate("data", 3):
            z = ppl.sample("z", wrapped(array(np.log(PRIOR / (1 - PRIOR)))))
            ppl.sample("x", dist.Normal(1.0 * z, 1.0), obs=array(X))

    def guide():
        with ppl.plate("data", 3):
            ppl.sample("z", wrapped(logits()))

    return model, guide


def assert_near(draws, expected):
    draws = np.asarray(draws)
    error = draws.std(0, ddof=1) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - expected) < 5 * error).all(), (draws.mean(0), expected, error)


class _Pyro:
    name = "pyro"

    def __init__(self, way):
        self.torch, self.pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
        from pyro_dvae import infer

        self.infer, dist = infer, self.pyro.distributions
        self.pyro.set_rng_seed(0)
        self.logits = self.torch.tensor(LOGITS, requires_grad=True)
        self.programs = programs(
            self.pyro,
            dist,
            self.torch.tensor,
            lambda logits: dist.Bernoulli(logits=logits),
            lambda: self.logits,
            way,
        )

    def draws(self, elbo, times):
        def once():
            self.logits.grad = None
            value = elbo.loss_and_grads(*self.programs)
            return [float(value), *self.logits.grad.tolist()]

        return [once() for _ in range(times)]


class _NumPyro:
    name = "numpyro"

    def __init__(self, way):
        self.jax, self.numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
        from numpyro_dvae import infer

        self.infer, dist = infer, self.numpyro.distributions
        self.programs = programs(
            self.numpyro,
            dist,
            self.jax.numpy.asarray,
            lambda logits: dist.BernoulliLogits(logits),
            lambda: self.numpyro.param("logits", self.jax.numpy.zeros(3)),
            way,
        )

    def draws(self, elbo, times):
        def once(key):
            def loss(logits):
                return elbo.loss(key, {"logits": logits}, *self.programs)

            value, slopes = self.jax.value_and_grad(loss)(self.jax.numpy.asarray(LOGITS))
            return self.jax.numpy.append(value, slopes)

        keys = self.jax.random.split(self.jax.random.key(0), times)
        return self.jax.jit(lambda keys: self.jax.lax.map(once, keys))(keys)


@pytest.fixture(params=[_Pyro, _NumPyro], ids=lambda lab: lab.name)
def lab(request):
    return request.param


@pytest.mark.parametrize("way", WAYS)
def test_losses_that_sample_have_the_value_and_gradient(lab, way):
    lab = lab(way)
    assert_near(lab.draws(lab.infer.Reinforce_ELBO(8), TIMES), value_and_slopes(way))


@pytest.mark.parametrize("way", WAYS)
def test_they_are_no_bernoulli_draws(lab, way):
    lab = lab(way)
    with pytest.raises(ValueError, match=rf"'z' of the guide is {way}\w+, but .* Reinforce_ELBO"):
        lab.draws(lab.infer.DisARM_ELBO(8), 1)


@pytest.mark.parametrize("way", WAYS)
def test_states_are_listed_where_the_host_can(lab, way):
    lab = lab(way)
    if (lab.name, way) == ("numpyro", "ZeroInflated"):
        found = lab.draws(lab.infer.Exact_ELBO(), 1)[0]
        np.testing.assert_allclose(found, value_and_slopes(way), rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=rf"'z' \({way}\w+\).* Reinforce_ELBO"):
            lab.draws(lab.infer.Exact_ELBO(), 1)


def test_a_multinomial_draw_has_no_entropy_in_closed_form():
    """PyTorch offers one, and fails at it once a plate has expanded the distribution."""
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.infer import Reinforce_ELBO

    prior, probs, means, num = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.1, 0.4]), X, 5000
    log_joint = np.log(prior) + norm.logpdf(X[:, None], means)
    terms = np.log(probs) - log_joint
    wanted = (probs * terms).sum()
    variance = (probs * terms**2).sum(-1) - (probs * terms).sum(-1) ** 2

    def program(weights, x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", pyro.distributions.Multinomial(1, probs=torch.tensor(weights)))
            if x is not None:
                mean = z.to(x) @ torch.tensor(means)
                pyro.sample("x", pyro.distributions.Normal(mean, 1.0), obs=x)

    pyro.set_rng_seed(0)
    pair = (lambda: program(prior, torch.tensor(X))), (lambda: program(probs, None))
    found = Reinforce_ELBO(num).loss(*pair)
    assert abs(float(found) - wanted) < 5 * (variance.sum() / num) ** 0.5
