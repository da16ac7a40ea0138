"""Data that mix under a plate, values that grow, logits of exactly 0: the right value, or words.

The right values are sums over all states by NumPy.
"""

import importlib
import itertools
import warnings

import numpy as np
import pytest

DATA = np.array([-0.5, 0.3, 1.5])
LOGITS = np.array([-0.5, 0.1, 0.5])
WAYS = {
    "centred": lambda z: z - z.mean(),
    "turned": lambda z: z[np.array([1, 2, 0])],
    "first": lambda z: z[0] * z,
    "two of three": lambda z: z + (z.sum(-1)[..., None] == 2),
    "odd": lambda z: z * (z.sum(-1)[..., None] % 2),
    "apart": lambda z: 2 * z,
}
OTHERS = "changes with the draws of others"


class _Pyro:
    """The programs in Pyro."""

    def __init__(self):
        self.torch, self.pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
        self.dist = self.pyro.distributions
        self.package = importlib.import_module("pyro_dvae")
        self.infer = importlib.import_module("pyro_dvae.infer")
        self.diagnostics = importlib.import_module("pyro_dvae.diagnostics")
        self.pyro.clear_param_store()
        self.sample, self.array = self.pyro.sample, self.torch.tensor

    def plate(self):
        return self.pyro.plate("data", len(DATA))

    def values(self, loss, model, guide):
        self.pyro.param("logits", self.array(LOGITS))
        found = loss.loss_and_grads(model, guide, self.array(DATA))
        return float(found), self.pyro.param("logits").grad.numpy()

    def param(self):
        return self.pyro.param("logits")

    def gap(self, *pair):
        self.pyro.param("logits", self.array(LOGITS))
        return self.diagnostics.posterior_gap(pair, self.array(DATA))

    def ones(self, size):
        return self.torch.ones(size)

    def truncated(self, model):
        guide, loss = self.infer.TruncatedGuide(model, 2), self.infer.Truncated_ELBO(sweeps=0)
        return lambda num_values: float(loss.loss(model, guide, self.array(DATA), num_values))


class _NumPyro:
    """The same in NumPyro."""

    def __init__(self):
        self.jax, self.numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
        self.dist = importlib.import_module("numpyro.distributions")
        self.infer = importlib.import_module("numpyro_dvae.infer")
        self.diagnostics = importlib.import_module("numpyro_dvae.diagnostics")
        self.sample, self.array = self.numpyro.sample, self.jax.numpy.asarray
        self.key = self.jax.random.key(0)

    def plate(self):
        return self.numpyro.plate("data", len(DATA))

    def values(self, loss, model, guide):
        def of(logits, data):
            return loss.loss(self.key, {"logits": logits}, model, guide, data)

        run = self.jax.jit(self.jax.value_and_grad(of))
        return run(self.array(LOGITS), self.array(DATA))

    def param(self):
        return self.numpyro.param("logits", self.jax.numpy.zeros(len(DATA)))

    def gap(self, *pair):
        params = {"logits": self.array(LOGITS)}
        return self.diagnostics.posterior_gap(self.key, pair, self.array(DATA), params=params)

    def ones(self, size):
        return self.jax.numpy.ones(size)

    def truncated(self, model):
        guide, loss = self.infer.TruncatedGuide(model, 2), self.infer.Truncated_ELBO(sweeps=0)
        from quick_numpyro import QuickSVI

        svi = QuickSVI(model, guide, self.numpyro.optim.SGD(0.1), loss)
        state = svi.init(self.key, self.array(DATA), 2)
        evaluate = self.jax.jit(svi.evaluate, static_argnums=2)
        return lambda num_values: float(evaluate(state, self.array(DATA), num_values))


@pytest.fixture(params=[_Pyro, _NumPyro], ids=["pyro", "numpyro"])
def lab(request):
    return request.param()


def programs(lab, way):
    def model(x):
        plate = lab.plate()
        with plate:
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
        mean = WAYS[way](1.0 * z)
        with plate:
            lab.sample("x", lab.dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        with lab.plate():
            lab.sample("z", lab.dist.Bernoulli(logits=lab.param()))

    return model, guide


def by_hand(way, logits):
    """Minus the ELBO, by all states of all data."""
    loss, probs = 0.0, 1 / (1 + np.exp(-logits))
    for row in itertools.product((0.0, 1.0), repeat=len(DATA)):
        z = np.array(row)
        log_q = np.log(np.where(z == 1, probs, 1 - probs)).sum()
        log_p = np.log(np.where(z == 1, 0.4, 0.6)).sum()
        log_p += (-0.5 * (DATA - WAYS[way](z)) ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        loss -= np.exp(log_q) * (log_p - log_q)
    return loss


def slopes(function, at):
    steps = 1e-5 * np.eye(len(at))
    return np.array([(function(at + s) - function(at - s)) / 2e-5 for s in steps])


@pytest.mark.parametrize("way", WAYS)
def test_sets_of_states_are_refused_where_data_mix(lab, way):
    model, _ = programs(lab, way)
    if way == "apart":
        found = lab.truncated(lambda x, _: model(x))(2)
        z = np.array([[0.0], [1.0]])
        terms = np.log([[0.6], [0.4]]) - 0.5 * (DATA - 2 * z) ** 2 - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(found, -np.logaddexp.reduce(terms).sum(), rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=rf"{OTHERS}.* use Exact_ELBO with a guide"):
            lab.truncated(lambda x, _: model(x))(2)


@pytest.mark.parametrize("way", WAYS)
def test_states_of_data_that_mix_are_those_of_all_together(lab, way):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, gradient = lab.values(lab.infer.Exact_ELBO(), *programs(lab, way))
    np.testing.assert_allclose(found, by_hand(way, LOGITS), rtol=1e-5)
    wanted = slopes(lambda at: by_hand(way, at), LOGITS)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5)
    assert any(OTHERS in str(warning.message) for warning in told) == (way != "apart")


def test_data_that_mix_have_no_posterior_each(lab):
    refused = pytest.raises(ValueError, match=rf"under plate \['data'\].*{OTHERS}")
    with pytest.warns(UserWarning, match=OTHERS), refused:
        lab.gap(*programs(lab, "centred"))
    lab.gap(*programs(lab, "apart"))


def test_data_that_mix_in_a_later_call_are_refused(lab):
    """The guide looked at its first call alone."""

    def model(x, setting):
        way = "apart" if setting == 2 else "centred"
        programs(lab, way)[0](x)

    loss = lab.truncated(model)
    first = loss(2)
    with pytest.raises(ValueError, match=OTHERS):
        loss(3)
    np.testing.assert_allclose(loss(2), first, rtol=1e-10)


def test_a_guide_of_states_looks_again_at_networks_that_begin_to_train():
    lab = _Pyro()
    norm = lab.torch.nn.BatchNorm1d(1, dtype=lab.torch.float64).eval()

    def model(x, _):
        with lab.plate():
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
            normalised = norm(1.0 * z.reshape(-1, 1).to(lab.torch.float64)).reshape(z.shape)
            lab.sample("x", lab.dist.Normal(normalised, 1.0), obs=x)

    loss = lab.truncated(model)
    first = loss(2)
    norm.train()
    with pytest.raises(ValueError, match=OTHERS):
        loss(2)
    norm.eval()
    assert loss(2) == first


def test_a_guide_of_states_looks_again_at_whether_a_program_broadcasts():
    """It read the first of the states of all particles, in a later call."""
    lab = _Pyro()

    def model(x, setting):
        with lab.plate():
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
            mean = 1.0 * z + (z[0] if z.dim() > 1 and setting == 3 else 0.0)
            lab.sample("x", lab.dist.Normal(mean, 1.0), obs=x)

    loss = lab.truncated(model)
    first = loss(2)
    with pytest.warns(UserWarning, match="once per particle"):
        assert loss(3) == pytest.approx(first, rel=1e-6)


def test_what_a_known_program_raises_is_its_own(tmp_path):
    """It was run again, and the second error was shown; what breaks it is nowhere among values."""
    lab, raised, file, returns = _Pyro(), [], tmp_path / "file", tmp_path / "returns"

    def model(x):
        if not file.exists():
            raised.append(RuntimeError(f"the file is gone, {len(raised)}"))
            if returns.exists():
                file.touch()
            raise raised[-1]
        programs(lab, "apart")[0](x)

    file.touch()
    loss, guide = lab.infer.Reinforce_ELBO(4), programs(lab, "apart")[1]
    lab.values(loss, model, guide)
    file.unlink()
    with pytest.raises(RuntimeError, match="the file is gone, 0") as found:
        lab.values(loss, model, guide)
    assert found.value.__cause__ is raised[0]  # Pyro has added the shapes
    returns.touch()
    with pytest.raises(RuntimeError, match="the file is gone"):
        lab.values(loss, model, guide)


def test_what_a_program_raises_where_data_have_other_states_is_shown():
    """It was taken for data that keep apart: all in one state run through."""
    lab = _Pyro()

    def model(x):
        plate = lab.plate()
        with plate:
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
        others = (z[..., None] - z[..., None, :]).abs()  # no covariance, unless all are alike
        factor = lab.torch.linalg.cholesky(lab.torch.eye(len(DATA)) + 3 * others)
        with plate:
            scale = lab.torch.diagonal(factor, dim1=-2, dim2=-1)
            lab.sample("x", lab.dist.Normal(1.0 * z, scale), obs=x)

    _, guide = programs(lab, "apart")
    with pytest.raises(RuntimeError, match="cholesky"):
        lab.values(lab.infer.Exact_ELBO(), model, guide)
    with pytest.raises(RuntimeError, match="cholesky"):
        lab.truncated(lambda x, _: model(x))(2)


def test_steps_of_a_scan_may_mix_their_data():
    """What leads the batch dims there hid it: the states of each series were listed apart."""
    lab = _NumPyro()
    scan = importlib.import_module("numpyro.contrib.control_flow").scan
    series = np.array([[0.3, -1.0], [1.2, 0.4]])

    def program(x):
        def step(carry, now):
            with lab.numpyro.plate("series", 2):
                z = lab.sample("z", lab.dist.Bernoulli(0.4))
                if x is not None:
                    lab.sample("x", lab.dist.Normal(z - z.mean(), 1.0), obs=now)
            return carry, None

        scan(step, None, x if x is not None else lab.array(series))

    def of_states():
        weights, values = [], []
        for row in itertools.product((0.0, 1.0), repeat=4):
            z = np.array(row).reshape(2, 2)
            weights.append(np.where(z == 1, 0.4, 0.6).prod())
            errors = series - (z - z.mean(1, keepdims=True))
            values.append((0.5 * errors**2 + 0.5 * np.log(2 * np.pi)).sum())
        return np.dot(weights, values)

    def loss(x):
        return lab.infer.Exact_ELBO().loss(lab.key, {}, program, lambda x: program(None), x)

    with pytest.warns(UserWarning, match=OTHERS):
        found = lab.jax.jit(loss)(lab.array(series))
    np.testing.assert_allclose(found, of_states(), rtol=1e-6)


@pytest.mark.parametrize("family", ["Categorical", "Binomial"])
def test_states_of_fewer_values_are_refused(lab, family):
    def model(x, num_values):
        counts = lab.dist.Binomial(num_values - 1, 0.5 * lab.ones(()))
        codes = lab.dist.Categorical(lab.ones(num_values) / num_values)
        with lab.plate():
            z = lab.sample("z", {"Categorical": codes, "Binomial": counts}[family])
            lab.sample("x", lab.dist.Normal(1.0 * z, 1.0), obs=x)

    loss = lab.truncated(model)
    assert np.isfinite(loss(2))
    with pytest.raises(ValueError, match=r"'z' had 2 values(.|\n)* now has 3(.|\n)*-inf"):
        loss(3)


@pytest.mark.parametrize("family", ["Bernoulli", "Binomial"])
def test_gradients_at_logits_of_exactly_0(lab, family):
    """Where parameters often start; NumPyro's own densities have another slope there."""
    options = {} if family == "Bernoulli" else {"total_count": 1}

    def model(x):
        with lab.plate():
            z = lab.sample("z", lab.dist.Bernoulli(0.4))
            lab.sample("x", lab.dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        logits = lab.param() - lab.array(LOGITS)
        with lab.plate():
            lab.sample("z", getattr(lab.dist, family)(logits=logits, **options))

    _, gradient = lab.values(lab.infer.Exact_ELBO(), model, guide)
    wanted = slopes(lambda at: by_hand("apart", at), np.zeros(len(DATA)))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5)
