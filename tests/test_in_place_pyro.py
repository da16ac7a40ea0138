"""Programs that change in place what a site holds, which would be scored at what it has become."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from scipy.special import logsumexp  # noqa: E402
from scipy.stats import norm  # noqa: E402

from pyro_dvae import diagnostics, infer  # noqa: E402

Y = np.array([0.5, -1.0, 2.0])
SLOPE = 0.8


def guide(y):
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7]).double()))


def model_of(change):
    """Two looks at a latent, or at what is observed, between which something is changed."""

    def model(y):
        slope = pyro.param("slope", torch.tensor(SLOPE).double())
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
            location, y = z * slope, y.clone()
            pyro.sample("before", dist.Normal(location, 1.0), obs=y)
            z, location, y = change(z, location, y)
            pyro.sample("after", dist.Normal(location + z, 1.0), obs=y)

    return model


def without_first(z):
    z[..., 0] = 0.0
    return z


CHANGES = {
    "draw": ("z", lambda z, m, y: (z.mul_(2).sub_(1), m, y)),
    "draw within its support": ("z", lambda z, m, y: (without_first(z), m, y)),
    "location": ("before", lambda z, m, y: (z, m.add_(1), y)),
    "observation": ("before", lambda z, m, y: (z, m, y.sub_(1))),
}
USES = {
    "Exact_ELBO": lambda model, y: infer.Exact_ELBO().loss(model, guide, y),
    "Reinforce_ELBO": lambda model, y: infer.Reinforce_ELBO(2).loss(model, guide, y),
    "one by one": lambda model, y: infer.DAPS_ELBO(2, vectorize_particles=False).loss(
        model, guide, y
    ),
    "Truncated_ELBO": lambda model, y: infer.Truncated_ELBO().loss(
        model, infer.TruncatedGuide(model, 2), y
    ),
    "posterior_gap": lambda model, y: diagnostics.posterior_gap((model, guide), y),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_site_holds_is_not_changed_in_place(change, use):
    name, changed = CHANGES[change]
    with pytest.raises(ValueError, match=rf"(?s)site '{name}'.*changed in place.*clone\(\)"):
        USES[use](model_of(changed), torch.as_tensor(Y))


def test_a_guide_does_not_either():
    def changing(y):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double())).zero_()

    with pytest.raises(ValueError, match="site 'z': its value is changed in place"):
        infer.Reinforce_ELBO(2).loss(model_of(lambda *given: given), changing, torch.as_tensor(Y))


def test_copies_are_changed_as_the_refusal_says():
    model = model_of(lambda z, m, y: (without_first(z.clone()), m + 1, y - 1))
    states = np.array([[0.0], [1.0]])
    seen = states * [0, 1, 1]
    scores = norm.logpdf(Y, states * SLOPE) + norm.logpdf(Y - 1, states * SLOPE + 1 + seen)
    scores += np.log(np.where(states == 1, 0.4, 0.6))
    found = infer.Truncated_ELBO().loss(model, infer.TruncatedGuide(model, 2), torch.as_tensor(Y))
    np.testing.assert_allclose(found, -logsumexp(scores, 0).sum(), rtol=1e-7)


@pytest.mark.parametrize("vectorize", [True, False])
def test_parts_of_an_array_that_is_filled_step_by_step_are_not_changed(vectorize):
    """Each step is observed at a part of an array, whose other parts are then filled."""

    def model(y):
        seen, location = torch.zeros(3).double(), torch.zeros(3).double()
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
        for step in range(3):
            seen[step], location[step] = y[step], step
            there = dist.Normal(location[step] + z, 1.0)
            pyro.sample(f"y{step}", there, obs=seen[step])

    def its_guide(y):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))

    states = np.array([0.0, 1.0])[:, None]
    scores = norm.logpdf(Y, np.arange(3) + states).sum(1) + np.log([0.6, 0.4])
    found = infer.Exact_ELBO(vectorize_particles=vectorize).loss(model, its_guide, torch.tensor(Y))
    np.testing.assert_allclose(found, -(scores.mean() + np.log(2)), rtol=1e-7)


@pytest.mark.parametrize("part", ["observation", "location"])
def test_a_part_of_an_array_that_is_changed_behind_its_site_is_found(part):
    def model(y):
        seen, location = y.clone(), torch.zeros(3).double()
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
        for step in range(3):
            pyro.sample(f"y{step}", dist.Normal(location[step] + z, 1.0), obs=seen[step])
            pyro.sample(f"w{step}", dist.Normal(location[step], 1.0), obs=y[step])
        {"observation": seen, "location": location}[part][1] += 1.0

    def its_guide(y):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))

    name = {"observation": "y1", "location": "w1"}[part]
    with pytest.raises(ValueError, match=f"site '{name}': .* changed in place"):
        infer.Reinforce_ELBO(2).loss(model, its_guide, torch.as_tensor(Y))


def test_data_that_a_handler_gives_are_not_changed():
    data = torch.ones(3).double()
    model = poutine.condition(model_of(lambda z, m, y: (z.mul_(2), m, y)), {"z": data})
    with pytest.raises(ValueError, match="site 'z': its value is changed in place"):
        infer.Reinforce_ELBO(2).loss(model, lambda y: None, torch.as_tensor(Y))
