"""Pyro's losses under `torch.func`: derivatives by hand, and a reason where there is no number."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

from pyro import distributions as dist  # noqa: E402

from pyro_dvae.infer import Exact_ELBO, Reinforce_ELBO  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning")  # torch's own

X = torch.tensor([0.3, -1.2, 1.9], dtype=torch.float64)
LOGITS = torch.tensor([0.1, -0.5, 0.8], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def of(loss):
    """A loss as a function of the guide's logits."""

    def function(logits):
        def model(x):
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=torch.float64)))
                pyro.sample("x", dist.Normal(0.7 * z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Bernoulli(logits=logits))

        return loss.differentiable_loss(model, guide, X)

    return function


def by_hand(logits):
    """The sum over both states, its first derivatives, and its second ones, of NumPy alone."""
    q = 1 / (1 + np.exp(-logits.numpy()))
    log_q = np.stack([np.log(1 - q), np.log(q)])
    x = X.numpy()
    log_p = np.log([[0.6], [0.4]]) - 0.5 * (x - np.array([[0.0], [0.7]])) ** 2
    terms = log_q - log_p + 0.5 * np.log(2 * np.pi)
    value = (np.exp(log_q) * terms).sum()
    slope = q * (1 - q) * (terms[1] - terms[0])
    curvature = q * (1 - q) * (1 + (1 - 2 * q) * (terms[1] - terms[0]))
    return value, slope, np.diag(curvature)


@pytest.mark.parametrize("vectorize", [True, False])
def test_derivatives_of_a_loss_are_those_of_the_sum(vectorize):
    function = of(Exact_ELBO(vectorize_particles=vectorize))
    value, slope, curvature = by_hand(LOGITS)
    found, at = torch.func.grad_and_value(function)(LOGITS)
    np.testing.assert_allclose(at, value)
    np.testing.assert_allclose(found, slope)
    np.testing.assert_allclose(torch.func.jacrev(function)(LOGITS), slope)
    along = torch.func.jvp(function, (LOGITS,), (SLOPE,))
    np.testing.assert_allclose(along, (value, slope @ SLOPE.numpy()))
    second = torch.func.jacrev(torch.func.grad(function))(LOGITS)
    np.testing.assert_allclose(second, curvature, atol=1e-12)


def test_a_sampled_loss_has_the_gradient_of_the_sum():
    pyro.set_rng_seed(0)
    function = torch.func.grad(of(Reinforce_ELBO(num_particles=500)))
    found = torch.stack([function(LOGITS) for _ in range(20)]).numpy()
    error = found.std(0, ddof=1) / 20**0.5
    assert (np.abs(found.mean(0) - by_hand(LOGITS)[1]) < 5 * error).all()


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian, torch.func.vmap])
def test_under_vmap_a_loss_says_why_it_has_no_value(transform):
    with pytest.raises(ValueError, match=r"torch.func.vmap there are none.* jacrev"):
        transform(of(Exact_ELBO()))(torch.stack([LOGITS] * 3))
