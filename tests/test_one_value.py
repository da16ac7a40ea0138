"""Discrete sites of one value alone, and families of the host that are rarely met."""

import importlib

import numpy as np
import pytest

X = np.array([0.3, -1.2, 1.9])
PRIOR, GUIDE = 0.3, 0.4


def normal(x, loc):
    return -0.5 * (x - loc) ** 2 - 0.5 * np.log(2 * np.pi)


def loss_by_hand(likelihood):
    """Minus the ELBO of a coin beside likelihoods ``(data, 2)``, given the coin."""
    q, p = np.array([1 - GUIDE, GUIDE]), np.array([1 - PRIOR, PRIOR])
    return -(q * (likelihood + np.log(p) - np.log(q))).sum()


class Kit:
    def __init__(self, backend):
        self.is_pyro = backend.name == "pyro"
        self.ppl = importlib.import_module(backend.name)
        self.np = importlib.import_module("torch" if self.is_pyro else "jax.numpy")
        self.dist, self.infer = self.ppl.distributions, backend.module("infer")
        if self.is_pyro:
            self.ppl.clear_param_store()

    def array(self, values):
        return self.np.asarray(np.asarray(values, np.float32))

    def coin(self):
        with self.ppl.plate("data", 3):
            self.ppl.sample("u", self.dist.Bernoulli(GUIDE))

    def model(self, infer=None):
        """A category of one value says where a coin's normal is."""
        with self.ppl.plate("data", 3):
            u = self.ppl.sample("u", self.dist.Bernoulli(PRIOR))
            z = self.ppl.sample("z", self.dist.Categorical(self.array([1.0])), infer=infer)
            self.ppl.sample("x", self.dist.Normal(0.5 + z + u, 1.0), obs=self.array(X))

    def loss(self, model, guide, loss=None):
        loss = self.infer.Exact_ELBO() if loss is None else loss
        if self.is_pyro:
            return loss.loss(model, guide)
        jax = importlib.import_module("jax")
        svi = self.infer.SVI(model, guide, self.ppl.optim.SGD(0.1), loss)
        return svi.evaluate(svi.init(jax.random.key(0)))


def right():
    return loss_by_hand(normal(X[:, None], np.array([0.5, 1.5])))


@pytest.mark.thrifty
def test_a_marked_category_of_one_value_is_summed_with_all_particles_at_once(backend):
    kit = Kit(backend)

    def marked():
        kit.model(infer={"enumerate": "parallel"})

    def both():
        with kit.ppl.plate("data", 3):
            kit.ppl.sample("u", kit.dist.Bernoulli(GUIDE))
            kit.ppl.sample("z", kit.dist.Categorical(kit.array([1.0])))

    np.testing.assert_allclose(float(kit.loss(marked, both)), right(), rtol=1e-6)
    if not kit.is_pyro:
        with pytest.raises(ValueError, match=r"'z' .* has one value.* Sample it in the guide"):
            kit.loss(marked, kit.coin)
        return
    np.testing.assert_allclose(float(kit.loss(marked, kit.coin)), right(), rtol=1e-6)
    sampled = kit.infer.Reinforce_ELBO(num_particles=4)
    assert np.isfinite(float(kit.loss(marked, kit.coin, sampled)))  # a warning would be an error


@pytest.mark.thrifty
def test_automatic_guides_take_a_category_of_one_value(backend):
    kit = Kit(backend)
    guide = backend.module("guides").AutoDiscrete(kit.model)
    both = normal(X[:, None], np.array([0.5, 1.5])) @ [1 - PRIOR, PRIOR]
    np.testing.assert_allclose(float(kit.loss(kit.model, guide)), -both.sum(), rtol=1e-6)


def test_an_observed_mask_in_pyro_and_the_advice_for_it():
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    from pyro_dvae.diagnostics import discrete_posterior
    from pyro_dvae.infer import Exact_ELBO

    dist, mark = pyro.distributions, {"enumerate": "parallel"}
    seen, known = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 3):
            u = pyro.sample("u", dist.Bernoulli(PRIOR))
            a = pyro.sample(
                "a", dist.Bernoulli(0.4 + 0.2 * u), infer=mark, obs=seen, obs_mask=known
            )
            pyro.sample("x", dist.Normal(0.7 * a + u, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("u", dist.Bernoulli(GUIDE))

    def config(site):
        return mark if site["name"] == "a_unobserved" else {}

    x = torch.tensor(X)
    with pytest.raises(ValueError, match=r"obs_mask.*poutine.infer_config\(config_fn"):
        Exact_ELBO().loss(model, guide, x)
    marked = pyro.poutine.infer_config(model, config_fn=config)
    found = Exact_ELBO().loss(marked, guide, x)
    u, a = np.arange(2), np.arange(2)[:, None]
    cells = normal(X[:, None, None], 0.7 * a + u) + np.log(
        np.where(a, 0.4 + 0.2 * u, 0.6 - 0.2 * u)
    )
    summed = np.logaddexp(cells[1, 0], cells[1, 1])
    likelihood = np.stack([cells[0, 1], summed, cells[2, 0]])
    np.testing.assert_allclose(found, loss_by_hand(likelihood), rtol=1e-6)
    posterior = discrete_posterior((marked, guide), x, num_draws=25)["a_unobserved"]
    assert posterior.counted.tolist() == [False, True, False]  # data are in place of the others


def test_a_tree_of_pyro_is_listed():
    """Its support is of each entry; there are three trees of three vertices."""
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    from pyro_dvae.infer import Exact_ELBO

    family = pyro.distributions.SpanningTree(torch.tensor([0.1, 0.2, 0.7]))

    def guide():
        pyro.sample("tree", family)

    def model():
        tree = pyro.sample("tree", family)
        mean = tree.sum().to(torch.get_default_dtype())
        pyro.sample("x", pyro.distributions.Normal(mean, 1.0), obs=torch.tensor(1.0))

    found = Exact_ELBO(vectorize_particles=False).loss(model, guide)  # as the family has no batch
    trees = {tuple(map(tuple, tree.tolist())) for tree in family.enumerate_support()}
    edges = {(0, 1): 0.1, (0, 2): 0.2, (1, 2): 0.7}
    weights = np.array([np.exp(sum(edges[edge] for edge in tree)) for tree in sorted(trees)])
    sums = np.array([sum(map(sum, tree)) for tree in sorted(trees)])
    right = -(weights / weights.sum()) @ normal(1.0, sums)
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_a_tree_of_pyro_is_diagnosed_draw_by_draw():
    pyro, torch = pytest.importorskip("pyro"), pytest.importorskip("torch")
    from pyro_dvae.diagnostics import importance_diagnostics, latent_rates, posterior_gap

    families = [
        pyro.distributions.SpanningTree(torch.tensor(logits))
        for logits in ([0.1, 0.2, 0.7], [0.5, -0.2, 0.1])
    ]

    def guide():
        pyro.sample("tree", families[1])

    def model():
        tree = pyro.sample("tree", families[0])
        mean = tree.sum().to(torch.get_default_dtype())
        pyro.sample("x", pyro.distributions.Normal(mean, 1.0), obs=torch.tensor(1.0))

    p, q = (torch.stack([f.log_prob(t) for t in f.enumerate_support()]) for f in families)
    rate = float((q.exp() * (q - p)).sum())
    found = latent_rates((model, guide))["tree"].rate.sum()  # by a sum over the trees
    np.testing.assert_allclose(found, rate, rtol=1e-5)
    gap = posterior_gap((model, guide))
    report = importance_diagnostics((model, guide), num_particles=400)
    assert abs(report.iwae.item() - gap.log_evidence.item()) < 0.1 < gap.gap.item()
