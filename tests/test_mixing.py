"""Cells of a plate that lead each other share one weight: gradients have the right mean.

The right values are sums over all states by NumPy.
"""

import importlib
import itertools
import warnings

import numpy as np
import pytest

DATA = np.array([[-0.5, 0.3, 1.5], [0.9, -1.2, 2.0]])
LOGITS = np.array([[-0.5, 0.1, 0.5], [0.7, -0.3, 0.2]])
COIN = 0.3
TIMES = 150
OTHERS = "changes with the draws of others"
WAYS = {
    "centred": lambda np, z: z - z.mean(-1)[..., None],
    "normalised": lambda np, z: z / (0.3 + ((z - z.mean(-1)[..., None]) ** 2).mean(-1)[..., None]),
    "turned": lambda np, z: z[..., np.array([1, 2, 0])],
    "first": lambda np, z: z[..., :1] * z,
    "one of one": lambda np, z: z + 0.3 * z[..., 2:] * np.array([1.0, 0.0, 0.0]),
    "odd": lambda np, z: z + z.sum(-1)[..., None] % 2,
    "highest": lambda np, z: 0.0 * z + (z.sum(-1)[..., None] > 0.5),
    "lowest": lambda np, z: 0.0 * z + (z.sum(-1)[..., None] > 2.5),
}
ON_ALL_AXES = {  # in Pyro they mix particles, too, if there are some beside each other
    "by the sum": lambda np, z: z - z.sum(),
    "all of them": lambda np, z: 0.0 * z + z.prod(),
    "any of them": lambda np, z: 0.0 * z + z.max(),
    "so far": lambda np, z: z.cumsum(0),
    "by the first": lambda np, z: z * z[0],
    "by the last": lambda np, z: z + 0.3 * z[-1],
}


def turned(z):
    """The cells of one axis, each in the next one's place."""
    return [z[..., k] for k in (1, 2, 0)] if hasattr(z, "shape") else [z[k] for k in (2, 0, 1)]


APART = {
    "alone": lambda np, z: 2.0 * z,
    "turned twice": lambda np, z: np.stack([*turned(turned(z))], -1),
    "joined": lambda np, z: np.stack([z, 1 - z]).sum(0) + z,
    "of pairs": lambda np, z: (
        (z[..., None] * np.array([0.2, 0.9])).reshape(-1).reshape(-1, 2)[:, 1]
    ),
}


def programs(lab, way):
    """Data under a plate, or two rows of such, each with a coin of its own."""

    def rows(x, logits, is_model):
        cells, nested = lab.plate("cells", 3, -1), x.ndim == 2
        coin, row = 0.0, lab.plate("rows", 2, -2)
        if nested:
            with row:
                coin = lab.sample("coin", lab.dist.Bernoulli(COIN))
        with cells:
            prior = lab.dist.Bernoulli(0.4) if is_model else lab.dist.Bernoulli(logits=logits)
            z = within(row, nested, lambda: lab.sample("z", prior))
        if is_model:
            mean = way(lab.numpy, 1.0 * z) + 1.0 * coin
            with cells:
                normal = lab.dist.Normal(mean, 1.0)
                within(row, nested, lambda: lab.sample("x", normal, obs=x))

    def within(plate, nested, run):
        if not nested:
            return run()
        with plate:
            return run()

    return rows


def by_hand(way, logits, data):
    """Minus the ELBO: of each row by its own states."""
    if data.ndim == 2:
        return sum(_of_row(way, *each, coin=True) for each in zip(logits, data, strict=True))
    return _of_row(way, logits, data, coin=False)


def _of_row(way, logits, data, coin):
    loss, probs = 0.0, 1 / (1 + np.exp(-logits))
    for *z, c in itertools.product((0.0, 1.0), repeat=4):
        if c and not coin:
            continue
        weight = np.where(np.array(z) == 1, probs, 1 - probs).prod()
        log_p = np.log(np.where(np.array(z) == 1, 0.4, 0.6)).sum() - np.log(weight)
        mean = way(np, np.array(z)) + c
        log_p += (-0.5 * (data - mean) ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        loss -= weight * (1 if not coin else COIN if c else 1 - COIN) * log_p
    return loss


def slopes(function, at):
    steps = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
    found = [(function(at + s) - function(at - s)) / 2e-5 for s in steps]
    return np.array(found).reshape(at.shape)


class _Pyro:
    name = "pyro"

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.pyro = pytest.importorskip("pyro")
        self.dist, self.sample = self.pyro.distributions, self.pyro.sample
        self.numpy = _Namespace(stack=self.torch.stack, array=self.torch.tensor)
        self.pyro.clear_param_store()
        self.pyro.set_rng_seed(0)
        self.array = self.torch.as_tensor

    def plate(self, name, size, dim):
        return self.pyro.plate(name, size, dim=dim)

    def draws(self, loss, rows, logits, data, times):
        data, start, found = self.array(data), self.array(logits), []

        def program(is_model):
            return lambda: rows(data, self.pyro.param("logits", start), is_model)

        model, guide = program(True), program(False)
        for _ in range(times):
            value = float(loss.loss_and_grads(model, guide))
            leaf = self.pyro.param("logits")
            found.append((value, leaf.grad.numpy().copy()))
            leaf.grad = None
        return tuple(map(np.array, zip(*found, strict=True)))

    def importance(self, rows, logits, data):
        from pyro_dvae.diagnostics import importance_diagnostics

        logits, data = self.array(logits), self.array(data)
        pair = [
            lambda is_model=is_model: rows(data, logits, is_model) for is_model in (True, False)
        ]
        return importance_diagnostics(tuple(pair), num_particles=4000)

    def plates(self, rows, logits, data):
        from pyro_dvae.programs.sites import Pair

        logits, data = self.array(logits), self.array(data)
        guide = lambda: rows(data, logits, False)  # noqa: E731
        loss = importlib.import_module("pyro_dvae.infer").Reinforce_ELBO(2)
        return loss.find_layout(Pair(lambda: rows(data, logits, True), guide, (), {}))[0].plates


class _NumPyro:
    name = "numpyro"

    def __init__(self):
        self.jax, self.numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
        self.dist = importlib.import_module("numpyro.distributions")
        self.sample, jnp = self.numpyro.sample, self.jax.numpy
        self.numpy = _Namespace(stack=jnp.stack, array=jnp.array)
        self.key = self.jax.random.key(0)

    def plate(self, name, size, dim):
        return self.numpyro.plate(name, size, dim=dim)

    def _programs(self, rows, logits, data):
        array = self.jax.numpy.asarray

        def program(is_model):
            return lambda: rows(array(data), self.numpyro.param("logits", array(logits)), is_model)

        return program(True), program(False)

    def draws(self, loss, rows, logits, data, times):
        model, guide = self._programs(rows, logits, data)

        def of(key, logits):
            return loss.loss(key, {"logits": logits}, model, guide)

        run = self.jax.jit(self.jax.vmap(self.jax.value_and_grad(of, 1), (0, None)))
        keys = self.jax.random.split(self.key, times)
        return tuple(map(np.asarray, run(keys, self.jax.numpy.asarray(logits))))

    def importance(self, rows, logits, data):
        from numpyro_dvae.diagnostics import importance_diagnostics

        pair = self._programs(rows, logits, data)
        return importance_diagnostics(self.key, pair, num_particles=4000, params={"logits": logits})

    def plates(self, rows, logits, data):
        from numpyro_dvae.programs.sites import Pair

        loss = importlib.import_module("numpyro_dvae.infer").Reinforce_ELBO(2)
        pair = Pair(*self._programs(rows, logits, data), (), {})
        return loss.find_layout(self.key, pair).plates


class _Namespace:
    def __init__(self, **names):
        vars(self).update(names)


@pytest.fixture(params=[_Pyro, _NumPyro], ids=["pyro", "numpyro"])
def lab(request):
    return request.param()


@pytest.mark.parametrize("way", [*WAYS, *ON_ALL_AXES, *APART])
def test_cells_that_lead_each_other_are_found(lab, way):
    rows = programs(lab, (WAYS | ON_ALL_AXES | APART)[way])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plates = lab.plates(rows, LOGITS[0], DATA[0])
    assert plates == (("cells",) if way in APART else ())
    assert [OTHERS in str(w.message) for w in told] == ([] if way in APART else [True])


def test_cells_that_lead_each_other_by_an_operation_that_is_not_followed_are_found():
    """Trials tell, of each pair of cells: the last one leads the first one alone."""
    lab = _Pyro()
    fft, pad = lab.torch.fft, lab.torch.nn.functional.pad

    def way(np, z):
        kept = fft.ifft(fft.fft(z.double())).real
        return kept + 0.3 * pad(kept[..., 2:], (0, 2))

    with pytest.warns(UserWarning, match=OTHERS):
        assert lab.plates(programs(lab, way), LOGITS[0], DATA[0]) == ()


def test_most_programs_of_pyro_are_looked_at_in_few_runs():
    """What takes a particle axis has several trials in one run: 25 runs made a first step slow."""
    lab, runs = _Pyro(), []

    def rows(x, logits, is_model):
        runs.append(is_model)
        with lab.plate("cells", len(x), -1):
            prior = lab.dist.Categorical(logits=logits)
            z = lab.sample("z", prior)
            if is_model:
                lab.sample("x", lab.dist.Normal(1.0 * z, 1.0), obs=x)

    assert lab.plates(rows, np.zeros((256, 5)), np.zeros(256)) == ("cells",)
    assert sum(runs) <= 10


def test_rows_of_cells_that_mix_stay_apart(lab):
    with pytest.warns(UserWarning, match=r"under plate \['cells'\].*" + OTHERS):
        assert lab.plates(programs(lab, WAYS["centred"]), LOGITS, DATA) == ("rows",)


def test_cells_that_another_latent_gathers_are_no_news(lab):
    """A latent outside of the plate leads on to all cells: that has been seen to."""

    def rows(x, logits, is_model):
        cells = lab.plate("cells", 3, -1)
        with lab.plate("rows", 2, -2):
            with cells:
                z = lab.sample("z", lab.dist.Bernoulli(logits=logits))
            mean = (0.0 if is_model else 1.0) * z.sum(-1)[..., None]
            w = lab.sample("w", lab.dist.Normal(mean, 1.0))
            if is_model:
                with cells:
                    lab.sample("x", lab.dist.Normal(w, 1.0), obs=x)

    assert lab.plates(rows, LOGITS, DATA) == ("rows",)


@pytest.mark.parametrize("nested", [False, True])
def test_gradients_have_the_right_mean(lab, nested, monkeypatch):
    way = WAYS["centred"]
    logits, data = (LOGITS, DATA) if nested else (LOGITS[0], DATA[0])
    infer = importlib.import_module(f"{lab.name}_dvae.infer")
    elbo = importlib.import_module(f"{lab.name}_dvae.infer.elbo")
    wanted = by_hand(way, logits, data), slopes(lambda at: by_hand(way, at, data), logits)

    def far(loss):
        """How far the means are from the right ones, in standard errors."""
        found = lab.draws(loss, programs(lab, way), logits, data, TIMES)
        pairs = zip(found, wanted, strict=True)
        return [np.abs((f.mean(0) - w) / (f.std(0) / TIMES**0.5)).max() for f, w in pairs]

    with pytest.warns(UserWarning, match=OTHERS):
        value, gradient = far(infer.Reinforce_ELBO(50))
    assert value < 5
    assert gradient < 5
    monkeypatch.setattr(elbo, "with_mixed_together", lambda *args: args[-1].layout)
    value, gradient = far(infer.Reinforce_ELBO(50))  # a cell's credit alone
    assert value < 5
    assert gradient > 10


def test_the_evidence_of_data_that_mix_is_that_of_all_together(lab):
    """Each had weights of its own, whose bounds have another sum."""
    way, data, evidence = WAYS["centred"], DATA[0], -np.inf
    for row in itertools.product((0.0, 1.0), repeat=3):
        errors = data - way(np, np.array(row))
        log_p = np.log(np.where(np.array(row) == 1, 0.4, 0.6)) - 0.5 * np.log(2 * np.pi)
        evidence = np.logaddexp(evidence, (log_p - 0.5 * errors**2).sum())
    with pytest.warns(UserWarning, match=OTHERS):
        found = lab.importance(programs(lab, way), LOGITS[0], data).whole
    assert abs(found.iwae - evidence) < 5 * found.iwae_error
    assert found.iwae_error < 0.02


@pytest.mark.parametrize("loss", ["Reinforce_ELBO", "Exact_ELBO"])
@pytest.mark.parametrize(
    "way",
    [
        lambda z: z - z.mean(-1)[..., None],
        lambda z: z.roll(1, -1),
        lambda z: 0.0 * z + z[..., -1:],
        lambda z: z - z.sum(),
        lambda z: 0.0 * z + z.prod(),
        lambda z: 0.0 * z + z.max(),
        lambda z: z.cumsum(0),
        lambda z: z.flip(0),
        lambda z: z * z[0],
        lambda z: 2.0 * z,
    ],
)
def test_many_cells_that_lead_each_other_are_found_in_few_runs(way, loss):
    """Trials are particles there; what mixes particles is not taken for what keeps them apart."""
    lab = _Pyro()
    from pyro_dvae.programs.sites import Pair

    def rows(is_model):
        def program():
            with lab.plate("cells", 12, -1):
                z = lab.sample("z", lab.dist.Bernoulli(0.4))
                if is_model:
                    mean = way(1.0 * z)
                    lab.sample("x", lab.dist.Normal(mean, 1.0), obs=lab.torch.zeros(12))

        return program

    found = getattr(importlib.import_module("pyro_dvae.infer"), loss)()
    pair = Pair(rows(True), rows(False), (), {})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plates = found.find_layout(pair)[0].plates
    is_apart = float((way(lab.torch.ones(12)) - 2.0).abs().sum()) == 0
    assert plates == (("cells",) if is_apart else ())
    assert [OTHERS in str(w.message) for w in told] == ([] if is_apart else [True])


@pytest.mark.parametrize(
    "way", [lambda z: z + (z.sum() == 2), lambda z: z * (z.sum() % 2), lambda z: z + z.sum() % 2]
)
def test_a_count_over_particles_is_no_count_of_one(way):
    """The particles that were tried had a sum of the same parity as all together."""
    lab = _Pyro()

    def rows(x, logits, is_model):
        with lab.plate("cells", 3, -1):
            z = lab.sample("z", lab.dist.Bernoulli(logits=logits))
            if is_model:
                lab.sample("x", lab.dist.Normal(way(z), 1.0), obs=x)

    data, logits = lab.array(DATA[0]), lab.array(LOGITS[0])
    wanted = 0.0
    for row in itertools.product((0.0, 1.0), repeat=3):
        z = lab.torch.tensor(row, dtype=data.dtype)
        weight = lab.dist.Bernoulli(logits=logits).log_prob(z).sum().exp()
        wanted -= float(weight * lab.dist.Normal(way(z), 1.0).log_prob(data).sum())
    loss = importlib.import_module("pyro_dvae.infer").Exact_ELBO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = loss.loss(lambda: rows(data, logits, True), lambda: rows(data, logits, False))
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    assert any("does not broadcast" in str(w.message) for w in told)


@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "OneHotCategorical", "Binomial"])
def test_draws_under_no_plate_are_run_at_once(family):
    """No warning, which would be an error here, and one run of the model a step."""
    lab, runs = _Pyro(), []
    probs = 0.3 if family in ("Bernoulli", "Binomial") else [0.3, 0.7]

    def program(is_model):
        z = lab.sample("z", getattr(lab.dist, family)(probs=lab.torch.tensor(probs)))
        if is_model:
            runs.append([])  # no number, which could be a setting
            z = z[..., 0] if family == "OneHotCategorical" else z
            lab.sample("x", lab.dist.Normal(2.0 * z, 1.0), obs=lab.torch.tensor(0.5))

    loss = importlib.import_module("pyro_dvae.infer").Reinforce_ELBO(10)
    pair = (lambda: program(True)), (lambda: program(False))
    loss.loss(*pair)
    runs.clear()
    loss.loss(*pair)
    assert len(runs) == 1
