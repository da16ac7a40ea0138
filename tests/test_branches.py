"""Arguments that choose another branch than all before have the structure of that branch.

The sites stay alike; what is under the branch mixes the data.
The right values are sums over all states by NumPy.
"""

import importlib
import itertools
import warnings
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

DATA, LOGITS, TIMES = np.array([-0.5, 0.3, 1.5]), np.array([-0.5, 0.1, 0.5]), 100
OTHERS = "changes with the draws of others"
FLAGS = {
    "int": int,
    "float": float,
    "np.int64": np.int64,
    "np.float32": np.float32,
    "array": np.array,
    "data": lambda n: np.full(3, 1.0 * n),
    "of a tuple": lambda n: ({"at": n},),
    "attribute": lambda n: SimpleNamespace(at=n),
}


def is_fifth(flag):
    while isinstance(flag, tuple | dict | SimpleNamespace):
        flag = (
            flag[0]
            if isinstance(flag, tuple)
            else dict(vars(flag) if hasattr(flag, "at") else flag)["at"]
        )
    return flag.max() >= 5 if hasattr(flag, "max") else flag >= 5


def by_hand(logits, mean=lambda z: z - z.mean()):
    """Minus the ELBO where latents are centred, or have other means."""
    loss, probs = 0.0, 1 / (1 + np.exp(-logits))
    for z in map(np.array, itertools.product((0.0, 1.0), repeat=3)):
        log_q = np.log(np.where(z == 1, probs, 1 - probs)).sum()
        log_p = np.log(np.where(z == 1, 0.4, 0.6)).sum()
        log_p += (-0.5 * (DATA - mean(z)) ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        loss += np.exp(log_q) * (log_q - log_p)
    return loss


class _Pyro:
    def __init__(self):
        torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
        from pyro_dvae.infer import Reinforce_ELBO

        dist = pyro.distributions
        pyro.clear_param_store()
        pyro.set_rng_seed(0)

        def model(flag):
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
                mean = z - z.mean(-1, keepdim=True) if is_fifth(flag) else z
                pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(DATA))

        def guide(flag):
            logits = pyro.param("logits", torch.tensor(LOGITS))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Bernoulli(logits=logits))

        self.loss, self.pair, self.pyro = Reinforce_ELBO(50), (model, guide), pyro
        self.tensor = torch.as_tensor

    def draw(self, flag):
        flag = self.tensor(flag) if isinstance(flag, np.ndarray) else flag
        value = float(self.loss.loss_and_grads(*self.pair, flag))
        leaf = self.pyro.param("logits")
        found, leaf.grad = leaf.grad.numpy().copy(), None
        return value, found


class _NumPyro:
    def __init__(self):
        jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
        from numpyro_dvae.infer import Reinforce_ELBO

        dist = numpyro.distributions

        def model(flag):
            with numpyro.plate("data", 3):
                z = 1.0 * numpyro.sample("z", dist.Bernoulli(0.4))
                mean = z - z.mean(-1, keepdims=True) if is_fifth(flag) else z
                numpyro.sample("x", dist.Normal(mean, 1.0), obs=jax.numpy.array(DATA))

        def guide(flag):
            logits = numpyro.param("logits", jax.numpy.array(LOGITS))
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Bernoulli(logits=logits))

        loss = Reinforce_ELBO(50)
        start = jax.numpy.array(LOGITS)
        self.draw = lambda flag: loss.loss(jax.random.key(0), {"logits": start}, model, guide, flag)


@pytest.fixture(params=[_Pyro, _NumPyro], ids=["pyro", "numpyro"])
def lab(request):
    return request.param()


class _Place:
    flag = 0


def settings():
    """Ways to have a flag that is no argument: how to read it, and how to set it."""
    global FLAG
    FLAG, held, place, entries, by_name = 0, 0, _Place(), {"at": 0}, {}

    def of_global():
        return FLAG

    def enclosed():
        return held

    def set_global(n):
        global FLAG
        FLAG = n

    def set_enclosed(n):
        nonlocal held
        held = n

    by_name["global"] = of_global, set_global
    by_name["enclosed"] = enclosed, set_enclosed
    by_name["attribute"] = partial(_read, place), lambda n: setattr(place, "flag", n)
    by_name["entry"] = lambda: entries["at"], lambda n: entries.update(at=n)
    many = {str(n): n for n in range(40)}
    by_name["entry of many"] = lambda: many["7"] - 7, lambda n: many.update({"7": n + 7})
    kind = type("Kind", (), {"flag": 0})
    by_name["class"] = lambda: kind().flag, lambda n: setattr(kind, "flag", n)
    module = ModuleType("settings")
    by_name["module"] = lambda: getattr(module, "flag", 0), lambda n: setattr(module, "flag", n)
    deep = SimpleNamespace(of=SimpleNamespace(it=SimpleNamespace(flag=0)))
    by_name["nested"] = lambda: deep.of.it.flag, lambda n: setattr(deep.of.it, "flag", n)
    by_name["inner function"] = lambda: (lambda: FLAG)(), set_global
    return by_name


def _read(place):
    return place.flag


KINDS = "global enclosed attribute entry class module nested".split()


@pytest.mark.thrifty
@pytest.mark.parametrize("kind", [*KINDS, "entry of many", "inner function"])
def test_a_setting_that_changes_late_is_found(lab, kind, monkeypatch):
    get, put = settings()[kind]
    monkeypatch.setitem(globals(), "is_fifth", lambda _: get() >= 5)
    for n in (1, 2, 3, 4, 4):
        put(n)
        lab.draw(0)
    put(5)
    with pytest.warns(UserWarning, match=OTHERS):
        lab.draw(0)


@pytest.mark.parametrize("kind", FLAGS)
def test_a_branch_that_comes_late_is_found(lab, kind):
    for n in (1, 2, 3, 4, 4):
        lab.draw(FLAGS[kind](n))
    with pytest.warns(UserWarning, match=OTHERS):
        lab.draw(FLAGS[kind](5))
    with warnings.catch_warnings():  # and is known from then on
        warnings.simplefilter("error")
        lab.draw(FLAGS[kind](5))
        lab.draw(FLAGS[kind](3))


def test_gradients_in_a_branch_that_comes_late_have_the_right_mean():
    lab = _Pyro()
    for n in (1, 2, 3, 4):
        lab.draw(n)
    with pytest.warns(UserWarning, match=OTHERS):
        found = [np.concatenate([g, [v]]) for v, g in (lab.draw(5) for _ in range(TIMES))]
    steps = 1e-5 * np.eye(3)
    wanted = [(by_hand(LOGITS + s) - by_hand(LOGITS - s)) / 2e-5 for s in steps]
    errors = np.mean(found, 0) - np.array([*wanted, by_hand(LOGITS)])
    assert np.abs(errors / (np.std(found, 0) / TIMES**0.5)).max() < 5


JOINS = {
    "order": (np.arange(3), np.array([1, 2, 0]), lambda z, by: z[..., by]),
    "matrix": (np.eye(3), np.ones((3, 3)), lambda z, by: z @ by),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
@pytest.mark.parametrize("kind", JOINS)
def test_data_that_an_argument_joins_later_are_found(backend, kind):
    """An index or a matrix that keeps cells apart in the first call, and not in the next."""
    first, then, join = JOINS[kind]
    host = pytest.importorskip(backend)
    numpy = importlib.import_module("torch" if backend == "pyro" else "jax.numpy")
    loss = importlib.import_module(f"{backend}_dvae.infer").Exact_ELBO()
    dist = importlib.import_module(f"{backend}.distributions")
    key = () if backend == "pyro" else (host_key(), {})
    logits, x = numpy.asarray(LOGITS), numpy.asarray(DATA)

    def model(by):
        with host.plate("data", 3):
            z = 1.0 * host.sample("z", dist.Bernoulli(numpy.asarray([0.4] * 3)))
            host.sample("x", dist.Normal(z + join(z, by), 1.0), obs=x)

    def guide(by):
        with host.plate("data", 3):
            host.sample("z", dist.Bernoulli(logits=logits))

    def value(by):
        dtype = logits.dtype if by.dtype == float else None
        return float(loss.loss(*key, model, guide, numpy.asarray(by, dtype=dtype)))

    with pytest.warns(UserWarning, match=OTHERS):
        found = value(first), value(then)
    wanted = [by_hand(LOGITS, lambda z, by=by: z + join(z, by)) for by in (first, then)]
    assert found == pytest.approx(wanted, rel=1e-5)


def host_key():
    return importlib.import_module("jax").random.key(0)


def test_states_of_a_branch_that_comes_late_are_refused():
    torch, pyro = pytest.importorskip("torch"), pytest.importorskip("pyro")
    from pyro_dvae.infer import Truncated_ELBO, TruncatedGuide

    dist, centred = pyro.distributions, torch.tensor(0)

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            mean = z - z.mean(-1, keepdim=True) if centred.item() else z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(DATA))

    guide, loss = TruncatedGuide(model, num_states=2), Truncated_ELBO()
    log_p = [np.log([0.6, 0.4]) - 0.5 * (x - np.arange(2)) ** 2 for x in DATA]
    evidence = np.logaddexp.reduce(log_p, 1).sum() - 1.5 * np.log(2 * np.pi)
    assert loss.loss(model, guide) == pytest.approx(-evidence, rel=1e-5)
    centred.fill_(1)  # which no setting tells
    with pytest.raises(ValueError, match=OTHERS):
        loss.loss(model, guide)


def annealed(torch, model, flag):
    """A step in arithmetic: no index and no shift."""
    model(flag)
    ones = torch.ones(3)
    return ones * flag, flag - ones, ones / (1 + abs(flag)), ones.add(flag), flag**ones


@pytest.mark.parametrize("is_annealed", [False, True])
def test_numbers_that_choose_nothing_are_not_looked_at_one_by_one(monkeypatch, is_annealed):
    lab, times = _Pyro(), []
    if is_annealed:
        torch, (model, guide) = pytest.importorskip("torch"), lab.pair
        lab.pair = partial(annealed, torch, model), guide
    find = lab.loss.find_layout
    monkeypatch.setattr(lab.loss._plans, "find", lambda pair: times.append(1) or find(pair))
    for n in range(-20, 5):
        lab.draw(n)
    assert len(times) == 4
