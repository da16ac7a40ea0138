"""Programs and families that are a user's own objects: with an `==`, or values, of their own."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

X = np.array([0.3, -1.2])
LOGITS = np.array([[0.1, 0.5, -0.3], [0.2, -0.4, 0.6]])
SAME, APART = np.array([[-1.0, 0.5, 2.0]] * 2), np.array([[-1.0, 0.5, 2.0], [0.0, 3.0, 1.0]])


def normal(x, loc):
    return -0.5 * (x - loc) ** 2 - 0.5 * np.log(2 * np.pi)


@pytest.fixture(params=["pyro", "numpyro"])
def host(request):
    """A framework, its arrays, `Exact_ELBO` as a function of programs, and a family of values."""
    if request.param == "pyro":
        torch, host = pytest.importorskip("torch"), pytest.importorskip("pyro")
        loss = pytest.importorskip("pyro_dvae.infer").Exact_ELBO()
        base, softmax = host.distributions.TorchDistribution, torch.log_softmax
        constraint = host.distributions.constraints.real
        array = keep = torch.as_tensor
        where, logsumexp = torch.where, torch.logsumexp
        evaluate = lambda model, guide: float(loss.loss(model, guide, array(X)))  # noqa: E731
    else:
        jax, host = pytest.importorskip("jax"), pytest.importorskip("numpyro")
        loss = pytest.importorskip("numpyro_dvae.infer").Exact_ELBO()
        base, softmax = host.distributions.Distribution, jax.nn.log_softmax
        constraint = host.distributions.constraints.real
        array, keep = jax.numpy.asarray, np.asarray  # what is listed has no part in a computation
        where, logsumexp = jax.numpy.where, jax.scipy.special.logsumexp
        key = jax.random.key(0)
        evaluate = lambda model, guide: float(loss.loss(key, {}, model, guide, X))  # noqa: E731

    class Listed(base):
        """Values of a list, which has the batch in front."""

        arg_constraints = {}  # noqa: RUF012
        has_enumerate_support = True
        support = constraint

        def __init__(self, logits, values):
            self.logits, self.values = logits, keep(values)
            super().__init__(tuple(logits.shape[:-1]))

        def sample(self, *args, **kwargs):
            shape = kwargs.get("sample_shape", args[-1] if args else ())
            return self.values[..., 0] + array(np.zeros((*shape, *self.batch_shape)))

        def expand(self, batch_shape, _instance=None):
            row = keep(np.zeros((*batch_shape, 1)))
            return Listed(self.logits + row, self.values + row)

        def log_prob(self, value):
            of = where(value[..., None] == self.values, softmax(self.logits, -1), -np.inf)
            return logsumexp(of, -1)

        def enumerate_support(self, expand=True):
            return array(np.moveaxis(np.asarray(self.values), -1, 0))

    return SimpleNamespace(
        host=host, dist=host.distributions, array=array, loss=evaluate, Listed=Listed
    )


@dataclasses.dataclass
class Shifted:
    """A model that Python compares by its fields."""

    host: object
    loc: object

    def __call__(self, x):
        with self.host.plate("data", len(X)):
            z = self.host.sample("z", self.host.distributions.Bernoulli(0.4))
            self.host.sample("x", self.host.distributions.Normal(self.loc * z, 1.0), obs=x)


def test_programs_are_known_by_what_they_are_not_by_what_they_hold(host):
    def guide(x):
        with host.host.plate("data", len(X)):
            host.host.sample("z", host.dist.Bernoulli(0.5))

    for loc in (np.array([0.7, 1.0]), np.array([0.7, -1.0])):
        terms = 0.5 * (normal(X, 0.0) + normal(X, loc) + np.log(0.6 * 0.4)) - np.log(0.5)
        found = host.loss(Shifted(host.host, host.array(loc)), guide)
        np.testing.assert_allclose(found, -terms.sum(), rtol=1e-6)


def test_a_static_method_is_a_program(host):
    """It has a function, as a bound method does, but nothing that this is bound to."""

    def guide(x):
        with host.host.plate("data", len(X)):
            host.host.sample("z", host.dist.Bernoulli(0.5))

    model = Shifted(host.host, host.array(np.array([0.7, 1.0])))
    found = [host.loss(each, guide) for each in (model, staticmethod(model.__call__))]
    assert found[0] == found[1]


def listed_pair(host, values):
    def model(x):
        with host.host.plate("data", len(X)):
            z = host.host.sample("z", host.Listed(host.array(0 * LOGITS), values))
            host.host.sample("x", host.dist.Normal(0.7 * z, 1.0), obs=x)

    def guide(x):
        with host.host.plate("data", len(X)):
            host.host.sample("z", host.Listed(host.array(LOGITS), values))

    return model, guide


def test_a_family_lists_its_values_for_each_datum(host):
    """Of all data alike, they are those of one; else there are no states of a datum."""
    log_q = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    terms = np.exp(log_q) * (normal(X[:, None], 0.7 * SAME) - np.log(3) - log_q)
    np.testing.assert_allclose(host.loss(*listed_pair(host, SAME)), -terms.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"'z' .Listed. may have other values for each datum"):
        host.loss(*listed_pair(host, APART))


def test_pyro_takes_a_family_whose_event_shape_is_a_plain_tuple():
    """Matchings of four things by pairs, of which there are six, by a guide that is the prior."""
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.infer import Exact_ELBO, Reinforce_ELBO

    family, places = pyro.distributions.OneTwoMatching, torch.tensor([-1.0, 2.0])
    x = torch.tensor([0.3, -1.2, 1.9, 1.0])

    def guide(x):
        return pyro.sample("z", family(torch.zeros(4, 2)))

    def model(x):
        pyro.sample("x", pyro.distributions.Normal(places[guide(x)], 1.0).to_event(1), obs=x)

    assert not isinstance(family(torch.zeros(4, 2)).event_shape, torch.Size)
    states = places[family(torch.zeros(4, 2)).enumerate_support()].numpy()
    values = -normal(x.numpy(), states).sum(-1)
    np.testing.assert_allclose(float(Exact_ELBO().loss(model, guide, x)), values.mean(), rtol=1e-5)
    pyro.set_rng_seed(0)
    found = float(Reinforce_ELBO(num_particles=2000).loss(model, guide, x))
    assert abs(found - values.mean()) < 5 * values.std() / 2000**0.5
