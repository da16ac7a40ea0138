"""Counts of a hidden number, which can be no more than it: smaller numbers are impossible."""

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from scipy import stats
from scipy.special import logsumexp

COUNTS = np.array([[31.0, 22.0], [40.0, 41.0], [0.0, 3.0]])
SIZE, MEAN = 80, 45.0
NUMBERS = np.arange(SIZE)
PRIOR = stats.poisson.logpmf(NUMBERS, MEAN)
SEEN = stats.binom.logpmf(COUNTS[:, :, None], NUMBERS, 0.5).sum(1)  # (3, V)


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def population(ppl, counts):
    with ppl.plate("places", 3, dim=-2):
        n = ppl.sample("n", ppl.dist.Poisson(ppl.array(MEAN)))
        with ppl.plate("visits", 2, dim=-1):
            ppl.sample("seen", ppl.dist.Binomial(n, ppl.array(0.5)), obs=counts)


@pytest.mark.thrifty
def test_a_guide_of_more_numbers_than_a_table_has_rows_starts_without_impossible_ones(lab):
    model = lab.bind(population)
    guide, counts = lab.guide(model, num_values={"n": SIZE}), lab.array(COUNTS)
    loss, _ = lab.loss(lab.exact(), model, guide, lab.start(guide, counts), counts)
    log_q = np.where(SEEN > -np.inf, PRIOR, -np.inf)
    log_q = log_q - logsumexp(log_q, -1, keepdims=True)
    with np.errstate(invalid="ignore"):
        gains = np.where(SEEN > -np.inf, PRIOR + SEEN - log_q, 0.0)
    np.testing.assert_allclose(loss, -(np.exp(log_q) * gains).sum(), rtol=1e-4)
    even = {"n": np.zeros((3, 1, SIZE))}
    assert lab.loss(lab.exact(), model, guide, even, counts)[0] == np.inf


@pytest.mark.thrifty
def test_impossible_draws_weigh_nothing(lab):
    model = lab.bind(population)
    guide, counts = lab.guide(model, num_values={"n": SIZE}), lab.array(COUNTS)
    lab.start(guide, counts)
    params = {"n": np.broadcast_to(PRIOR, (3, 1, SIZE)).copy()}
    found = lab.posterior(model, guide, params, COUNTS, num_draws=4000, corrected=True)
    log_p = PRIOR + SEEN
    exact = np.exp(log_p - logsumexp(log_p, -1, keepdims=True))
    q = np.exp(PRIOR - logsumexp(PRIOR))
    squares = (exact**2 / q)[:, None] * (np.eye(SIZE) - exact[:, None]) ** 2 / 4000
    error = 5 * np.sqrt(squares.sum(-1)) + 1e-6
    assert (np.abs(found["n"].probs.reshape(3, SIZE) - exact) < error).all()
    assert (found.log_weights == -np.inf).any()


@pytest.mark.filterwarnings("ignore:model or guide does not broadcast")
def test_where_bounds_follow_from_draws_pyro_is_not_asked_for_the_support():
    """A value that is beyond bounds of its own is refused by Torch, as ever."""
    pytest.importorskip("torch")
    lab = make_lab("pyro")
    guide = lab.bind(lambda ppl: ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4))))

    def model(width, trials):
        def program(ppl):
            z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.3)))
            ppl.sample("u", ppl.dist.Uniform(0.0, width + z), obs=ppl.array(1.5))
            ppl.sample("v", ppl.dist.Uniform(z - 1.0, 9.0).mask(False), obs=ppl.array(-7.0))
            ppl.sample("y", ppl.dist.Binomial(trials, 0.2 + 0.5 * z), obs=ppl.array(2.0))

        return lab.bind(program)

    def log_p(z, width):
        y = stats.binom.logpmf(2, 3, 0.2 + 0.5 * z)
        u = stats.uniform.logpdf(1.5, 0, width + z)
        return stats.bernoulli.logpmf(z, 0.3) + u + y - stats.bernoulli.logpmf(z, 0.4)

    reinforce = lab.module("infer").Reinforce_ELBO(2)
    expected = -(0.6 * log_p(0, 2.0) + 0.4 * log_p(1, 2.0))
    np.testing.assert_allclose(lab.exact().loss(model(2.0, 3), guide), expected, rtol=1e-6)
    assert lab.exact().loss(model(1.0, 3), guide) == np.inf
    gap = lab.module("diagnostics").posterior_gap((model(1.0, 3), guide))
    evidence = log_p(1, 1.0) + stats.bernoulli.logpmf(1, 0.4)
    np.testing.assert_allclose(gap.log_evidence, evidence, rtol=1e-6)
    for elbo in (lab.exact(), reinforce):
        with pytest.raises(ValueError, match="within the support"):
            elbo.loss(model(2.0, 1), guide)
