"""What the data share need be no normal: a rate, a chance, and shares of classes, by quadrature."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import betaln, gammaln, logsumexp
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

COUNTS = np.array([0.0, 3.0, 1.0, 6.0, 2.0])
X = np.array([-1.7, 0.4, 2.6, 0.1, 3.2])
MEANS = np.array([-2.0, 0.0, 3.0])


class Shared(NamedTuple):
    name: str  # of the shared site
    model: Callable
    guide: Callable
    points: np.ndarray  # (Q, ...), of the shared latent
    sizes: np.ndarray  # (Q,), of the cells of these
    log_p: np.ndarray  # (Q,)
    log_q: np.ndarray
    tables: Callable  # points -> log q, log p(z), log p(x | z), each (S, N, Q)
    spread: float  # of what has an expectation below


def line(low, high, size=2000):
    edges = np.linspace(low, high, size + 1)
    return (edges[1:] + edges[:-1]) / 2, np.full(size, (high - low) / size)


def rate():
    def model(ppl, data):
        rate = ppl.sample("rate", ppl.dist.Gamma(2.0 + 0.0 * data["x"][0], 1.0))
        with ppl.plate("data", 5):
            z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.5 + 0.0 * data["x"]))
            ppl.sample("x", ppl.dist.Poisson(rate * (1.0 + 2.0 * z)), obs=data["x"])

    def guide(ppl, data):
        rate = ppl.sample("rate", ppl.dist.Gamma(8.0 + 0.0 * data["x"][0], 5.0))
        with ppl.plate("data", 5):
            logits = -0.5 + data["x"] - 1.5 * rate
            ppl.sample("z", ppl.dist.Bernoulli(logits=logits))

    def tables(points):
        z = np.arange(2)[:, None, None]
        log_q = bernoulli(z, -0.5 + COUNTS[:, None] - 1.5 * points)
        mean = points * (1 + 2 * z)
        log_x = COUNTS[:, None] * np.log(mean) - mean - gammaln(COUNTS + 1)[:, None]
        return log_q, bernoulli(z, -0.5) + 0.0 * log_q, log_x

    points, sizes = line(0, 14)

    def gamma(shape, rate):
        return shape * np.log(rate) - gammaln(shape) + (shape - 1) * np.log(points) - rate * points

    known = Shared("rate", model, guide, points, sizes, gamma(2, 1), gamma(8, 5), tables, 1.0)
    return known, COUNTS


def chance():
    def model(ppl, data):
        p = ppl.sample("p", ppl.dist.Beta(1.5 + 0.0 * data["x"][0], 2.0))
        with ppl.plate("data", 5):
            z = ppl.sample("z", ppl.dist.Binomial(3, probs=p))
            ppl.sample("x", ppl.dist.Normal(1.0 * z, 1.0), obs=data["x"])

    def guide(ppl, data):
        p = ppl.sample("p", ppl.dist.Beta(5.0 + 0.0 * data["x"][0], 6.0))
        with ppl.plate("data", 5):
            odds = ppl.exp(0.6 * (data["x"] - 1.0)) * p / (1.0 - p)
            ppl.sample("z", ppl.dist.Binomial(3, probs=odds / (1.0 + odds)))

    def tables(points):
        z = np.arange(4)[:, None, None]
        ways = gammaln(4) - gammaln(z + 1) - gammaln(4 - z)
        logit = np.log(points / (1 - points))
        tilted = logit + 0.6 * (X[:, None] - 1.0)
        log_q, log_p = (ways + z * t - 3 * np.logaddexp(0, t) for t in (tilted, logit))
        return log_q, log_p + 0.0 * log_q, normal(X[:, None], z) + 0.0 * log_q

    points, sizes = line(0, 1)

    def beta(a, b):
        return (a - 1) * np.log(points) + (b - 1) * np.log1p(-points) - betaln(a, b)

    known = Shared("p", model, guide, points, sizes, beta(1.5, 2), beta(5, 6), tables, 0.3)
    return known, X


def shares():
    def model(ppl, data):
        shares = ppl.sample("shares", ppl.dist.Dirichlet(1.5 + 0.0 * data["means"]))
        with ppl.plate("data", 5):
            z = ppl.sample("z", ppl.dist.Categorical(shares))
            ppl.sample("x", ppl.dist.Normal(data["means"][z], 1.0), obs=data["x"])

    def guide(ppl, data):
        shares = ppl.sample("shares", ppl.dist.Dirichlet(data["counts"]))
        with ppl.plate("data", 5):
            odds = shares * ppl.exp(data["means"] * data["x"][:, None] - data["means"] ** 2 / 2)
            ppl.sample("z", ppl.dist.Categorical(odds / odds.sum(-1)[..., None]))

    def tables(points):
        log_p = np.log(points).T[:, None] + np.zeros((3, 5, len(points)))
        log_x = normal(X[:, None], MEANS[:, None, None]) + 0.0 * log_p
        return log_p + log_x - logsumexp(log_p + log_x, 0), log_p, log_x

    one, part = np.meshgrid(line(0, 1, 150)[0], line(0, 1, 150)[0], indexing="ij")
    points = np.stack([one, part * (1 - one), (1 - part) * (1 - one)], -1).reshape(-1, 3)
    sizes = np.ravel(1 - one) / 150**2

    def dirichlet(counts):
        norm = gammaln(counts.sum()) - gammaln(counts).sum()
        return norm + ((counts - 1) * np.log(points)).sum(-1)

    log_p, log_q = dirichlet(np.full(3, 1.5)), dirichlet(np.array([2.0, 3.0, 2.5]))
    known = Shared("shares", model, guide, points, sizes, log_p, log_q, tables, 0.3)
    return known, X


FAMILIES = {family.__name__: family for family in (rate, chance, shares)}


class Numbers(NamedTuple):
    elbo: np.ndarray  # of each datum, given what is shared
    rate: np.ndarray  # nats
    distortion: np.ndarray
    shared: float  # log p - log q of what is shared
    evidence: float
    mean: np.ndarray  # of what is shared, by the posterior


@functools.cache
def exact(name):
    known = FAMILIES[name]()[0]
    weights = np.exp(known.log_q) * known.sizes
    weights = weights / weights.sum()
    log_q, log_p, log_x = known.tables(known.points)
    rates = (np.exp(log_q) * (log_q - log_p)).sum(0) @ weights
    likelihood = (np.exp(log_q) * log_x).sum(0) @ weights
    shared = (known.log_p - known.log_q) @ weights
    joint = known.log_p + logsumexp(log_p + log_x, 0).sum(0) + np.log(known.sizes)
    evidence = logsumexp(joint)
    mean = np.exp(joint - evidence) @ known.points
    return Numbers(likelihood - rates, rates, -likelihood, float(shared), float(evidence), mean)


@pytest.mark.thrifty
@pytest.mark.parametrize("name", FAMILIES)
def test_all_numbers(shim, name):
    known, data = FAMILIES[name]()
    numbers, data = exact(name), {"x": data, "means": MEANS, "counts": np.array([2.0, 3.0, 2.5])}
    case = shim.Case(program_of(known.model, known.guide, {}, data))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=200, num_shared=100)
    assert found.shared.sites == (known.name,)
    part = numbers.shared / len(numbers.elbo)
    assert (np.abs(found.elbo - numbers.elbo - part) < 5 * found.elbo_error + 1e-6).all()
    assert abs(found.shared.elbo - numbers.shared) < 5 * found.shared.elbo_error
    whole = numbers.elbo.sum() + numbers.shared
    assert abs(found.whole.elbo - whole) < 5 * found.whole.elbo_error
    assert found.whole.elbo_error < 0.3
    assert found.whole.iwae < numbers.evidence + 5 * found.whole.iwae_error
    assert abs(found.whole.iwae - numbers.evidence) < 5 * found.whole.iwae_error + 0.05
    mean = found.expectation(lambda latents: latents[known.name])
    error = 5 * known.spread / found.shared.ess**0.5
    np.testing.assert_allclose(mean, numbers.mean, atol=error)
    cost = diagnose(shim, "rate_distortion", case, num_draws=300)
    assert abs(cost.whole.elbo - whole) < 5 * cost.whole.elbo_error
    bits = (numbers.rate - part) / np.log(2)
    assert (np.abs(cost.rate - bits) < 5 * cost.rate_error + 1e-6).all()
    assert (np.abs(cost.distortion - numbers.distortion) < 5 * cost.distortion_error + 1e-6).all()
    rates = diagnose(shim, "latent_rates", case, num_draws=100)
    np.testing.assert_allclose(rates[known.name].rate.sum(), -numbers.shared, rtol=1e-3)
    error = 5 * rates["z"].error.max() + 1e-6
    assert abs(rates["z"].rate.sum() - numbers.rate.mean()) < error
