"""A discrete family whose draws hand a gradient on is discrete: as the plain one, in all losses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402

from pyro_dvae.diagnostics import posterior_gap  # noqa: E402
from pyro_dvae.infer import (  # noqa: E402
    DAPS_ELBO,
    VIMCO_ELBO,
    Exact_ELBO,
    Reinforce_ELBO,
    relax,
)

X = np.array([-1.0, 1.0])
LOGITS = np.array([0.3, 0.0, -0.2])
PLACES = np.array([-1.0, 0.0, 1.0])


class OwnBernoulli(dist.Bernoulli):
    """A user's own: the gradient goes to the probability as it is."""

    has_rsample = True

    def rsample(self, sample_shape=()):
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


def programs(family, **options):
    wrap = (lambda fn: fn.to_event(1)) if options.pop("in_event", False) else lambda fn: fn

    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", wrap(dist.OneHotCategorical(torch.ones(*shape, 3).double())))
            mean = (z.reshape(*z.shape[: z.dim() - len(shape) - 1], -1)[..., -3:] * places).sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.tensor(LOGITS))
        with pyro.plate("data", 2):
            found = logits * x[:, None]
            found = found[:, None].expand(-1, *shape, -1) if shape else found
            pyro.sample("z", wrap(family(logits=found)))

    places = torch.tensor(PLACES)
    shape = (1,) if wrap(dist.OneHotCategorical(torch.ones(1, 3))).event_shape[:-1] else ()
    return model, guide


def exact():
    """Minus the ELBO and its gradient, by the states."""

    def loss(logits):
        total = 0.0
        for x in X:
            q = np.exp(logits * x) / np.exp(logits * x).sum()
            log_p = -np.log(3) - 0.5 * (x - PLACES) ** 2 - 0.5 * np.log(2 * np.pi)
            total += (q * (np.log(q) - log_p)).sum()
        return total

    steps = 1e-6 * np.eye(3)
    return loss(LOGITS), np.array([(loss(LOGITS + s) - loss(LOGITS - s)) / 2e-6 for s in steps])


def value_and_grad(elbo, model, guide, seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x = torch.tensor(X)
    guide(x)
    value = elbo.loss_and_grads(model, guide, x)
    return value, pyro.param("logits").grad.numpy()


@pytest.mark.parametrize("in_event", [False, True])
def test_its_states_are_listed(in_event):
    pair = programs(dist.OneHotCategoricalStraightThrough, in_event=in_event)
    value, grad = value_and_grad(Exact_ELBO(), *pair)
    np.testing.assert_allclose(value, exact()[0], rtol=1e-6)
    np.testing.assert_allclose(grad, exact()[1], rtol=1e-5)
    gap = posterior_gap(pair, torch.tensor(X))
    np.testing.assert_allclose(np.sum(gap.elbo), -exact()[0], rtol=1e-6)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("loss", [Reinforce_ELBO, VIMCO_ELBO, DAPS_ELBO])
def test_losses_take_it_for_the_plain_family(loss, vectorize):
    elbo = loss(num_particles=5, vectorize_particles=vectorize)
    found = [
        value_and_grad(elbo, *programs(family))
        for family in (dist.OneHotCategorical, dist.OneHotCategoricalStraightThrough)
    ]
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_family_of_ones_own_is_taken_so():
    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(family, x):
        logits = pyro.param("logits", torch.tensor(LOGITS))
        with pyro.plate("data", 2):
            pyro.sample("z", family(logits=logits[0] * x))

    for elbo in (Exact_ELBO(), Reinforce_ELBO(num_particles=5)):
        plain, own = (
            value_and_grad(elbo, model, lambda x, f=f: guide(f, x))
            for f in (dist.Bernoulli, OwnBernoulli)
        )
        assert plain[0] == own[0]
        np.testing.assert_array_equal(plain[1], own[1])


def test_it_is_relaxed_as_the_plain_family():
    from pyro.infer import Trace_ELBO

    found = [
        value_and_grad(
            Trace_ELBO(num_particles=5), *(relax(p, "reinmax") for p in programs(family))
        )
        for family in (dist.OneHotCategorical, dist.OneHotCategoricalStraightThrough)
    ]
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def coin(x):
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


@pytest.mark.parametrize("loss", [Exact_ELBO(), Reinforce_ELBO(num_particles=2)])
def test_densities_of_relaxed_draws_are_refused_for_a_discrete_latent(loss):
    half = torch.tensor(0.5)
    families = {
        "RelaxedBernoulliStraightThrough": (coin, lambda q: q[:, 0]),
        "RelaxedOneHotCategoricalStraightThrough": (programs(dist.Delta)[0], lambda q: q),
    }
    for family, (model, part) in families.items():

        def guide(x, family=family, part=part):
            logits = pyro.param("logits", torch.tensor(LOGITS)) * x[:, None]
            with pyro.plate("data", 2):
                pyro.sample("z", getattr(dist, family)(half, logits=part(logits)))

        with pytest.raises(ValueError, match=f"continuous in the guide \\({family}\\)"):
            loss.loss(model, guide, torch.tensor(X))
