"""What is simulated beside sites that are summed out: at draws of these, given the data."""

import importlib

import numpy as np
import pytest

X = np.array([-2.0, 0.5, 3.0, 1.0])
MEANS, PROBS = np.array([-2.0, 0.0, 3.0]), np.array([0.5, 0.3, 0.2])
FLIP = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
SEEN = np.array([True, False, True, True])
MARK = {"enumerate": "parallel"}


@pytest.fixture(params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def kit(request):
    pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[request.param])
    return Kit(request.param)


class Kit:
    """`to_arviz` of a package, and what programs are made of."""

    def __init__(self, name):
        self.ppl = importlib.import_module(name)
        self.np = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name])
        self.to_arviz = importlib.import_module(f"{name}_dvae.diagnostics").to_arviz
        self.name, self.keys = name, ()
        if name == "numpyro":
            self.keys = (importlib.import_module("jax").random.key(0),)

    def array(self, values):
        return self.np.asarray(np.asarray(values, np.float32))

    def mask(self, values):
        if self.name == "pyro":
            return self.ppl.poutine.mask(mask=self.np.asarray(values))
        return self.ppl.handlers.mask(mask=self.np.asarray(values))

    def __call__(self, model, guide, x=X, num_draws=4000, groups=("posterior_predictive",)):
        if self.name == "pyro":
            self.ppl.set_rng_seed(0)
        found = self.to_arviz(
            *self.keys,
            (model, guide),
            self.array(x),
            num_draws=num_draws,
            groups=("posterior", *groups),
        )
        return found


def density(x, mean, scale):
    return np.exp(-0.5 * ((x - mean) / scale) ** 2) / scale


@pytest.mark.parametrize("masked", [False, True])
def test_of_a_datum_beside_a_drawn_site(kit, masked):
    dist, seen = kit.ppl.distributions, SEEN if masked else np.ones(4, bool)
    means, probs = kit.array(MEANS), kit.array(PROBS)

    def model(x):
        with kit.ppl.plate("data", 4):
            k = kit.ppl.sample("k", dist.Bernoulli(kit.array(0.3)))
            z = kit.ppl.sample("z", dist.Categorical(probs), infer=MARK)
            loc = kit.ppl.deterministic("loc", means[z] + k)
            with kit.mask(seen):
                kit.ppl.sample("x", dist.Normal(loc, 0.5), obs=x)

    def guide(x):
        with kit.ppl.plate("data", 4):
            kit.ppl.sample("k", dist.Bernoulli(kit.array(0.3)))

    found = kit(model, guide)
    k = np.arange(2)[:, None, None]
    weights = PROBS[:, None] * np.where(seen, density(X, MEANS[:, None] + k, 0.5), 1.0)
    given = weights / weights.sum(1, keepdims=True)  # (k, z, N)
    expected = (np.array([0.7, 0.3])[:, None] * (given * (MEANS[:, None] + k)).sum(1)).sum(0)
    for group, name in (("posterior_predictive", "x"), ("posterior", "loc")):
        assert found[group][name].dims == ("chain", "draw", "data")
        values = found[group][name].values[0]
        error = values.std(0) / np.sqrt(len(values))
        assert (np.abs(values.mean(0) - expected) < 5 * error + 1e-6).all()
    codes = found["posterior"]["loc"].values - found["posterior"]["k"].values
    assert set(np.unique(codes).tolist()) <= set(MEANS.tolist())
    kit(model, guide, num_draws=30, groups=("vi_stats", "log_likelihood"))  # ends


def test_sites_that_depend_on_each_other_are_drawn_together(kit):
    """A switch that the data share above a chain of two under each: their joint, pair by pair."""
    dist, means = kit.ppl.distributions, kit.array(MEANS)
    probs, flip = kit.array(PROBS), kit.array(FLIP)

    def model(x):
        s = kit.ppl.sample("s", dist.Bernoulli(kit.array(0.4)), infer=MARK)
        with kit.ppl.plate("data", 4):
            t = kit.ppl.sample("t", dist.Bernoulli(kit.array(0.5)))
            a = kit.ppl.sample("a", dist.Categorical(probs), infer=MARK)
            b = kit.ppl.sample("b", dist.Categorical(flip[a]), infer=MARK)
            kit.ppl.deterministic("all", 100.0 * s + 10.0 * a + 1.0 * b + 0 * t)
            kit.ppl.sample("x", dist.Normal(means[b] + s - 0.5, 1.0), obs=x)
            kit.ppl.sample("y", dist.Normal(means[a], 2.0), obs=x)

    def guide(x):
        with kit.ppl.plate("data", 4):
            kit.ppl.sample("t", dist.Bernoulli(kit.array(0.5)))

    drawn = kit(model, guide)["posterior"]["all"].values[0]
    s, a, b = np.arange(2)[:, None, None], np.arange(3)[:, None], np.arange(3)
    each = (PROBS[:, None] * FLIP)[..., None] * density(
        X, MEANS[b][:, None] + s[..., None] - 0.5, 1.0
    )
    each = each * density(X, MEANS[a][..., None], 2.0)
    of_switch = np.array([0.6, 0.4]) * each.sum((1, 2)).prod(-1)
    of_switch = of_switch / of_switch.sum()
    probs = of_switch[:, None, None, None] * each / each.sum((1, 2), keepdims=True)
    codes = 100 * s + 10 * a + b
    found = (drawn[..., None, None, None] == codes).mean(0)
    expected = np.moveaxis(probs, -1, 0)
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(found - expected) < 5 * error + 1e-3).all()
    switched = (drawn >= 100).all(1) | (drawn < 100).all(1)
    assert switched.all()  # one switch for all data


@pytest.mark.slow
def test_steps_of_a_scan_are_left_out_with_a_word():
    numpyro, jax = pytest.importorskip("numpyro"), pytest.importorskip("jax")
    pytest.importorskip("funsor")
    scan = importlib.import_module("numpyro.contrib.control_flow").scan
    kit, dist = Kit("numpyro"), numpyro.distributions
    flip, means = kit.array(FLIP), kit.array(MEANS)

    def model(x):
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.deterministic("twice", 2.0 * k)

        def step(z, value):
            z = numpyro.sample("z", dist.Categorical(flip[z]), infer=MARK)
            numpyro.sample("x", dist.Normal(means[z] + k, 1.0), obs=value)
            return z, None

        scan(step, jax.numpy.asarray(0), x)

    def guide(x):
        numpyro.sample("k", dist.Bernoulli(0.3))

    with pytest.warns(UserWarning, match="`posterior_predictive`.* are left out.*`scan`"):
        found = kit(model, guide, num_draws=30)
    assert "posterior_predictive" not in found.groups()
    with pytest.warns(UserWarning, match="deterministic sites, are left out"):
        found = kit(model, guide, num_draws=30, groups=())
    assert set(found["posterior"].data_vars) == {"k"}
