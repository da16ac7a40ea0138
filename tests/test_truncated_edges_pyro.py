"""Sites and plates that Pyro's truncated posteriors meet, and those that change between calls."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
from pyro import distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402

from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide  # noqa: E402
from pyro_dvae.infer.truncated import minibatch  # noqa: E402
from pyro_dvae.programs.handlers.rows import check_indices  # noqa: E402

X = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def test_a_site_that_changes_its_size_between_calls_is_named():
    size = [2]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3).expand(size).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    elbo, guide = Truncated_ELBO(), TruncatedGuide(model, 2)
    elbo.loss(model, guide, X)
    size[0] = 3
    message = (
        r"'z' had shape \(1, 2\) per datum when its states were made, and is now \(1, 3\)\. All"
    )
    with pytest.raises(ValueError, match=message):
        elbo.loss(model, guide, X)


def test_an_expanded_prior_is_summed_as_it_is():
    probs = torch.tensor(0.3, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ExpandedDistribution(dist.Bernoulli(probs), (len(x),)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = Truncated_ELBO().loss(model, TruncatedGuide(model, 2), X)
    each = [np.exp(-((X.numpy() - z) ** 2) / 2) * p for z, p in ((0, 0.7), (1, 0.3))]
    np.testing.assert_allclose(found, -np.log(sum(each) / np.sqrt(2 * np.pi)).sum(), rtol=1e-9)


def test_rows_of_a_plate_from_elsewhere():
    trace = poutine.Trace()
    whole = SimpleNamespace(name="data", size=3, full_size=3)
    assert minibatch._rows_of(trace, whole).tolist() == [0, 1, 2]
    part = SimpleNamespace(name="data", size=2, full_size=3)
    with pytest.raises(
        ValueError, match=r"rows of plate 'data', 2 of 3, are not to be found\. Make"
    ):
        minibatch._rows_of(trace, part)


def test_no_rows_are_in_range():
    check_indices("data", torch.zeros(0, dtype=torch.long), 3)
    for rows in ([0, 3], [-1]):
        with pytest.raises(ValueError, match=f"from 0 to 2; got rows from {min(rows)} to"):
            check_indices("data", torch.tensor(rows), 3)


def test_without_gradient_a_step_leaves_the_state():
    def model(x):
        probs = pyro.param("probs", torch.tensor(0.3, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(probs))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pyro.clear_param_store()
    elbo, guide = Truncated_ELBO(beta=lambda step: 1.0 + step), TruncatedGuide(model, 2)
    expected, before = elbo.loss(model, guide, X), elbo.state
    with torch.no_grad():
        found = elbo.differentiable_loss(model, guide, X)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert elbo.state is before
    assert not found.requires_grad
