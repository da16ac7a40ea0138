"""Weights of programs whose parameters are not all of modules."""

import importlib
import warnings

import numpy as np
import pytest

X = np.array([3.1, 0.2, 2.7, -0.4, 2.2], np.float32)


@pytest.fixture
def pyro():
    pyro = pytest.importorskip("pyro")
    pyro.clear_param_store()
    yield pyro
    pyro.clear_param_store()


def pair(pyro, network=None):
    """A model and a guide that are modules, with a parameter beside each."""
    torch, dist = importlib.import_module("torch"), pyro.distributions
    positive = dist.constraints.positive

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Linear(1, 1)

        def forward(self, x):
            pyro.module("model", self)
            scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
                pyro.sample("x", dist.Normal(self.mean(z[..., None])[..., 0], scale), obs=x)

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Linear(1, 1)

        def forward(self, x):
            pyro.module("guide", self)
            if network is not None:
                pyro.module("other", network)
            offset = pyro.param("offset", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.slope(x[:, None])[:, 0] + offset))

    return Model(), Guide()


def trained(pyro, programs):
    room, infer = (importlib.import_module(f"pyro_dvae.{name}") for name in ("fit", "infer"))
    svi = pyro.infer.SVI(*programs, pyro.optim.Adam({"lr": 0.1}), infer.Exact_ELBO())
    return room.fit(svi, importlib.import_module("torch").asarray(X), num_steps=5, progress=False)


def loss_of(model, guide):
    infer, torch = (importlib.import_module(name) for name in ("pyro_dvae.infer", "torch"))
    return infer.Exact_ELBO().loss(model, guide, torch.asarray(X))


def test_parameters_beside_modules_are_in_the_file(pyro, tmp_path):
    """The loss, and what diagnostics say, are those of the trained pair, in another session."""
    room, path = importlib.import_module("pyro_dvae.fit"), tmp_path / "weights"
    result = trained(pyro, pair(pyro))
    expected = loss_of(result.model, result.guide)
    gap_of = importlib.import_module("pyro_dvae.diagnostics").posterior_gap
    torch = importlib.import_module("torch")
    data = torch.asarray(X)
    gap = gap_of(result, data).gap
    room.save_weights(path, result)
    for start in ({}, {"scale": 7.0}):
        pyro.clear_param_store()
        for name, value in start.items():
            pyro.param(name, torch.tensor(value))
        again = room.load_weights(path, pair(pyro))
        np.testing.assert_allclose(loss_of(again.model, again.guide), expected, rtol=1e-6)
        np.testing.assert_allclose(gap_of(again, data).gap, gap, atol=1e-6)
        assert pyro.param("scale") == result.params["scale"]


def test_a_result_whose_parameters_the_store_has_no_more(pyro, tmp_path):
    """It is refused, and the words say how to have them."""
    room, path = importlib.import_module("pyro_dvae.fit"), tmp_path / "weights"
    result = trained(pyro, pair(pyro))
    expected = loss_of(result.model, result.guide)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"other values than the result of \['offset', 's"):
        room.save_weights(path, result)
    loss_of(result.model, result.guide)  # as the message says
    with pytest.raises(ValueError, match=r"other values than the result of \['offset', 's"):
        room.save_weights(path, result)
    for name in ("scale", "offset"):
        pyro.get_param_store()[name] = result.params[name]
    room.save_weights(path, result)
    pyro.clear_param_store()
    again = room.load_weights(path, pair(pyro))
    np.testing.assert_allclose(loss_of(again.model, again.guide), expected, rtol=1e-6)


def test_a_network_beside_the_modules_is_named(pyro, tmp_path):
    torch, room = (importlib.import_module(name) for name in ("torch", "pyro_dvae.fit"))
    path = tmp_path / "weights"
    result = trained(pyro, pair(pyro, torch.nn.Linear(1, 1)))
    with pytest.warns(UserWarning, match=r"\['other\$\$\$weight', .* part of neither model"):
        room.save_weights(path, result)
    programs = pair(pyro)
    programs[1].net = torch.nn.Linear(1, 1)
    pyro.clear_param_store()
    with warnings.catch_warnings():  # what another fit left of names that these have is theirs
        warnings.simplefilter("error")
        first, second = (trained(pyro, programs), trained(pyro, pair(pyro)))
        for result in (first, second):
            room.save_weights(path, (result.model, result.guide))


def test_a_constraint_that_no_file_holds_is_named(pyro, tmp_path):
    room, torch = (importlib.import_module(name) for name in ("pyro_dvae.fit", "torch"))

    class Small(pyro.distributions.constraints.positive.__class__):
        pass

    transforms = torch.distributions
    transforms.transform_to.register(Small, lambda _: transforms.ExpTransform())
    programs = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    pyro.param("a", torch.tensor(1.0), constraint=Small(0.0))
    with pytest.raises(ValueError, match=r"'a' has a constraint that is none of Pyro's, Small"):
        room.save_weights(tmp_path / "weights", programs)
    assert not list(tmp_path.iterdir())


def test_a_loaded_module_of_pyro_keeps_what_was_loaded(pyro, tmp_path):
    """Though the store has a parameter of its name, which it would take."""
    torch, room = (importlib.import_module(name) for name in ("torch", "pyro_dvae.fit"))
    nn = importlib.import_module("pyro.nn")

    def make(value):
        module = nn.PyroModule("guide")
        module.logit = nn.PyroParam(torch.tensor(value))
        module.forward = lambda: module.logit
        return module

    room.save_weights(tmp_path / "weights", (torch.nn.Linear(1, 1), make(1.0)))
    assert make(2.0)() == 2.0  # now in the store
    loaded = make(3.0)
    room.load_weights(tmp_path / "weights", (torch.nn.Linear(1, 1), loaded))
    assert loaded() == 1.0


def test_tuples_of_parameters_come_back():
    """As stax makes them, in NumPyro; what no file holds is named."""
    pytest.importorskip("jax")
    weights = importlib.import_module("numpyro_dvae.fit.weights")
    tree = {"net$params": [(np.ones(2), np.zeros(3)), ()], "scale": np.float32(2.0), "none": None}
    found = weights._as_trees(weights._as_plain(tree, "params"))
    assert type(found["net$params"][0]) is tuple
    assert found["net$params"][1] == ()
    np.testing.assert_array_equal(found["net$params"][0][0], np.ones(2))
    assert found["none"] is None
    with pytest.raises(ValueError, match=r"params\['a'\]\[1\] of the result is a object, which"):
        weights._as_plain({"a": [1.0, object()]}, "params")
