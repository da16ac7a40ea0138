"""Fast log-densities are those of Pyro's own distributions, with and without a gradient."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from scipy.special import logsumexp  # noqa: E402
from scipy.stats import poisson  # noqa: E402

from pyro_dvae import diagnostics, infer  # noqa: E402
from pyro_dvae.programs.densities import fast_log_prob  # noqa: E402
from pyro_dvae.programs.sites import sample_sites  # noqa: E402

RNG = np.random.default_rng(0)
MEANS, X = (torch.tensor(values) for values in RNG.normal(size=(2, 5, 4, 3)))
BITS = torch.tensor(RNG.integers(2, size=(5, 4)), dtype=torch.float64)
LOGITS = torch.tensor([-2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
ONE = torch.tensor(0.3, dtype=torch.float64)
CASES = {
    "one scale": (lambda s: dist.Normal(MEANS, s * ONE).to_event(2), X),
    "a scale per entry": (lambda s: dist.Normal(MEANS, s * X[0].exp()).to_event(2), X),
    "a scale per row": (lambda s: dist.Normal(MEANS, s * X[0, :, :1].exp()).to_event(2), X),
    "a scale per datum": (lambda s: dist.Normal(MEANS, s * X[:, :1, :1].exp()).to_event(2), X),
    "bits": (lambda s: dist.Bernoulli(logits=s * LOGITS).to_event(1), BITS),
    "bits of one chance": (
        lambda s: dist.Bernoulli(logits=s * LOGITS[0]).expand([4]).to_event(1),
        BITS,
    ),
    "bits of each datum": (lambda s: dist.Bernoulli(logits=s * MEANS[..., 0]).to_event(1), BITS),
    "masked": (lambda s: dist.Normal(MEANS, s * ONE).mask(X[0] > 0).to_event(2), X),
    "masked, one scale per row": (
        lambda s: dist.Normal(MEANS, s * X[:, :, :1].exp()).mask(X[0, :1] > 0).to_event(2),
        X,
    ),
    "data masked": (lambda s: dist.Normal(MEANS, s * ONE).mask(X[:, :1, :1] > 0).to_event(2), X),
    "rows masked": (lambda s: dist.Normal(MEANS, s * ONE).mask(X[:, :, :1] > 0).to_event(2), X),
    "all masked alike": (
        lambda s: dist.Normal(MEANS, s * ONE).mask(torch.tensor(True)).to_event(2),
        X,
    ),
    "data of bits masked": (
        lambda s: dist.Bernoulli(logits=s * LOGITS).mask(X[:, 0, :1] > 0).to_event(1),
        BITS,
    ),
    "one number for a row": (lambda s: dist.Normal(MEANS, s * ONE).to_event(2), X[:, :, :1]),
    "one bit for a datum": (lambda s: dist.Bernoulli(logits=s * LOGITS).to_event(1), BITS[:, :1]),
    "one bit for all": (
        lambda s: dist.Bernoulli(logits=s * LOGITS).mask(LOGITS > 0).to_event(1),
        BITS[0, 0],
    ),
    "masked bits": (lambda s: dist.Bernoulli(logits=s * LOGITS).mask(LOGITS > 0).to_event(1), BITS),
    "a location per row": (lambda s: dist.Normal(MEANS[..., :1], s * ONE).to_event(2), X),
    "a location and scale per row": (
        lambda s: dist.Normal(MEANS[..., :1], s * X[0, :, :1].exp()).to_event(2),
        X,
    ),
    "a location and scale per datum": (
        lambda s: dist.Normal(MEANS[:, :1, :1], s * X[:, :1, :1].exp()).to_event(2),
        X,
    ),
    "a location per row, masked": (
        lambda s: dist.Normal(MEANS[..., :1], s * ONE).mask(X[:, :, :1] > 0).to_event(2),
        X,
    ),
    "bits of one chance, as it is": (
        lambda s: dist.Bernoulli(logits=s * LOGITS[:1]).to_event(1),
        BITS,
    ),
    "no event": (lambda s: dist.Normal(MEANS[:, 0, 0], s * ONE), X[:, 0, 0]),
}


def site_of(name, factor):
    make, value = CASES[name]

    def model():
        with pyro.plate("data", 5):
            pyro.sample("x", make(factor), obs=value)

    return sample_sites(poutine.trace(model).get_trace())["x"]


@pytest.mark.parametrize("name", CASES)
def test_the_values_are_the_same(name):
    site = site_of(name, torch.ones((), dtype=torch.float64))
    expected = site.log_prob()
    torch.testing.assert_close(fast_log_prob(site), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_the_same(name):
    found = []
    for log_prob in (fast_log_prob, lambda site: site.log_prob()):
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        found.append(torch.autograd.grad(log_prob(site_of(name, factor)).sum(), factor)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.zeros(5, 40), torch.tensor(0.3)).to_event(1),
        dist.Bernoulli(logits=torch.full((40,), 0.3)).expand([5, 40]).to_event(1),
    ],
    ids=["real", "binary"],
)
def test_no_digits_are_lost_under_autocast(fn):
    site = sample_sites(poutine.trace(lambda: pyro.sample("x", fn)).get_trace())["x"]
    with torch.autocast("cpu", torch.bfloat16):
        found = fast_log_prob(site)
        rough = torch.ones(5, 40) @ torch.full((40,), 0.337)
    torch.testing.assert_close(found, fn.log_prob(site.value), rtol=1e-5, atol=1e-5)
    assert (rough.float() - 40 * 0.337).abs().max() > 1e-3  # what a product of matrices makes of it


def test_a_mixture_by_a_draw_of_two_supports_is_of_its_own_datum():
    """Whose support Pyro checks by the values that the draw picks: no part of the density."""
    rate, prior, y = 1.3, 0.4, np.array([0.0, 3.0, 0.0])

    def model(y):
        absent = torch.zeros(3, dtype=torch.float64)
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(prior).double()))
            counts = dist.Poisson(absent + rate)
            pyro.sample("y", dist.MaskedMixture(z.bool(), dist.Delta(absent), counts), obs=y)

    def guide(y):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 1.0, 0.6]).double()))

    data = torch.as_tensor(y)
    scores = np.stack([np.where(y == 0, 0.0, -np.inf), poisson.logpmf(y, rate)])
    scores = scores + np.log([[1 - prior], [prior]])
    found = diagnostics.posterior_gap((model, guide), data)
    np.testing.assert_allclose(found.log_evidence, logsumexp(scores, 0), rtol=1e-6)
    bound = infer.Truncated_ELBO().loss(model, infer.TruncatedGuide(model, 2), data)
    np.testing.assert_allclose(bound, -logsumexp(scores, 0).sum(), rtol=1e-6)
    q = np.array([[0.8, 0.0, 0.4], [0.2, 1.0, 0.6]])
    terms = np.where(q > 0, q * (np.where(q > 0, scores, 0) - np.log(np.where(q > 0, q, 1))), 0)
    found = infer.Exact_ELBO().loss(model, guide, data)
    np.testing.assert_allclose(found, -terms.sum(), rtol=1e-6)
