"""Code distributions in Pyro: parallel enumeration, and autograd's graph and in-place changes."""

import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

import pyro_lab as lab  # noqa: E402
from test_distributions import autoregressive, counting  # noqa: E402

from pyro_dvae.distributions import Categorical  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh():
    lab.reset()
    lab.module = lambda path: __import__(f"pyro_dvae.{path}", fromlist=["_"])


def test_expanding_a_categorical_copies_nothing():
    ours = Categorical(logits=torch.randn(4, 3, 5))
    assert ours._shared.data_ptr() == ours.expand((9, 4, 3))._shared.data_ptr()


def test_categorical_under_parallel_enumeration():
    logits = torch.randn(3, 5, dtype=torch.float64)

    def loss(family):
        def model():
            with pyro.plate("data", 3):
                z = pyro.sample("z", family(logits=logits), infer={"enumerate": "parallel"})
                x = torch.ones(3, dtype=torch.float64)
                pyro.sample("x", pyro.distributions.Normal(z.double(), 1.0), obs=x)

        return pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)

    stock = pyro.distributions.Categorical
    assert loss(Categorical) == pytest.approx(loss(stock), rel=1e-12)


def test_a_pass_without_gradient_is_not_taken_over(monkeypatch):
    q = autoregressive(lab)
    codes = q.sample((3,))
    passes = counting(q, monkeypatch)
    with torch.no_grad():
        q.log_prob(codes)
    q.conditional_entropy(codes).sum().backward()
    assert len(passes) == 2


def test_nothing_stale_is_taken_over():
    q = autoregressive(lab)
    codes = q.sample((3,))
    q.log_prob(codes)
    codes[0] = (codes[0] + 1) % 4
    torch.testing.assert_close(q.conditional_entropy(codes), q.conditional_entropy(codes.clone()))
    before = q.log_prob(codes).detach()
    with torch.no_grad():
        q.transformer.head.weight.mul_(2)
    assert not torch.equal(q.log_prob(codes), before)
    with torch.no_grad():
        q.transformer.head.weight.div_(2)
