"""What mean square error costs where a site that is summed out has a part in the variance."""

import importlib

import numpy as np
import pytest

X = np.array([[-2.0, -1.5], [0.5, 0.1], [3.0, 2.0], [1.0, 1.2]])
MEANS, PROBS = np.array([-2.0, 0.0, 3.0]), np.array([0.5, 0.3, 0.2])
SCALES = np.array([[0.3, 1.0], [2.0, 0.6], [1.5, 0.9]])  # by z and w
CHANCE = np.array([0.2, 0.6, 0.5])  # of w, by z
MARK = {"enumerate": "parallel"}
PACKAGES = ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)]


class Kit:
    """`read_precision` of a package, of one run of a pair."""

    def __init__(self, name):
        pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[name])
        self.name, self.ppl = name, importlib.import_module(name)
        self.np = importlib.import_module({"pyro": "torch", "numpyro": "jax.numpy"}[name])

    def array(self, values):
        return self.np.asarray(np.asarray(values, np.float32))

    def __call__(self, model, guide, *args):
        readings = importlib.import_module(f"{self.name}_dvae.diagnostics.readings")
        precision = importlib.import_module(f"{self.name}_dvae.programs.readers.precision")
        keys = ()
        if self.name == "numpyro":
            keys = (importlib.import_module("jax").random.key(0),)
        pair = readings.prepare_pair(*keys, model, guide, args, {})
        run = readings.run_given(*keys, pair, {})
        found = precision.read_precision(run, pair.layout, 1)
        return np.asarray(found).reshape(-1), run


def density(x, mean, scale):
    return np.exp(-0.5 * ((x - mean) / scale) ** 2) / scale


@pytest.mark.parametrize("name", PACKAGES)
def test_states_count_as_they_are_probable(name):
    """Of two sites, one below the other, given the data and what is drawn."""
    kit = Kit(name)
    dist, means, scales = kit.ppl.distributions, kit.array(MEANS), kit.array(SCALES)
    chance = kit.array(CHANCE)

    def model(x):
        with kit.ppl.plate("data", 4):
            k = kit.ppl.sample("k", dist.Bernoulli(kit.array(0.5)))
            z = kit.ppl.sample("z", dist.Categorical(kit.array(PROBS)), infer=MARK)
            w = kit.ppl.sample("w", dist.Bernoulli(chance[z]), infer=MARK)
            scale = kit.np.where(w > 0, scales[z, 1], scales[z, 0])[..., None]
            normal = dist.Normal((means[z] + k)[..., None] + 0 * x, scale + 0 * x)
            kit.ppl.sample("x", normal.to_event(1), obs=x)

    def guide(x):
        with kit.ppl.plate("data", 4):
            kit.ppl.sample("k", dist.Bernoulli(kit.array(0.5)))

    found, run = kit(model, guide, kit.array(X))
    k = np.asarray(run.guide["k"].value).reshape(-1)
    prior = PROBS[:, None] * np.stack([1 - CHANCE, CHANCE], -1)
    likelihood = density(
        X[:, None, None], (MEANS + k[:, None])[:, :, None, None], SCALES[..., None]
    )
    weights = prior * likelihood.prod(-1)
    weights /= weights.sum((1, 2), keepdims=True)
    variances = 2 * (weights * SCALES**2).sum((1, 2))
    np.testing.assert_allclose(found, 2**2 / (2 * variances), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True])
def test_steps_of_a_scan_are_entries(marked):
    kit = Kit("numpyro")
    scan = importlib.import_module("numpyro.contrib.control_flow").scan
    numpyro, dist, jnp = kit.ppl, kit.ppl.distributions, kit.np
    scales = np.array([0.5, 1.0, 2.0])

    def model(x):
        with numpyro.plate("data", 4):
            k = numpyro.sample("k", dist.Bernoulli(0.5))

        def step(z, inputs):
            value, scale = inputs
            with numpyro.plate("data", 4):
                if marked:
                    z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.6 * z), infer=MARK)
                numpyro.sample("x", dist.Normal(z + k, scale * (1 + z)), obs=value)
            return z, None

        scan(step, jnp.zeros(4, int if marked else float), (x, kit.array(scales)))

    def guide(x):
        with numpyro.plate("data", 4):
            numpyro.sample("k", dist.Bernoulli(0.5))

    x = np.concatenate([X, X[:, :1] - 1.0], 1).T
    found, run = kit(model, guide, kit.array(x))
    expected = np.full(4, 9 / (2 * (scales**2).sum()))
    if marked:
        k = np.asarray(run.guide["k"].value)
        paths = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)
        before = np.concatenate([np.zeros((8, 1)), paths[:, :-1]], 1)
        chance = 0.2 + 0.6 * before
        prior = np.where(paths, chance, 1 - chance).prod(1)
        spread = scales * (1 + paths)
        each = density(x.T[None], paths[:, None] + k[None, :, None], spread[:, None])
        weights = prior[:, None] * each.prod(-1)
        weights /= weights.sum(0)
        expected = 9 / (2 * (weights * (spread**2).sum(1)[:, None]).sum(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_funsor_may_compute_with_torch_before():
    """Pyro's part of funsor takes its backend for all, where one process has both packages."""
    for library in ("torch", "jax"):
        pytest.importorskip(library)
    funsor = pytest.importorskip("funsor")
    importlib.import_module("numpyro.contrib.funsor")
    funsor.set_backend("torch")
    test_steps_of_a_scan_are_entries(True)
