"""The parameters of a result are used whatever Pyro's store holds, which is left as it was."""

import numpy as np
import pytest

pytest.importorskip("torch")

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

from pyro_dvae.diagnostics import evaluate, gradient_variance, importance_diagnostics, posterior_gap
from pyro_dvae.fit import FitResult, fit
from pyro_dvae.infer import Exact_ELBO, Reinforce_ELBO

X = torch.randn(6, generator=torch.Generator().manual_seed(0))


def mixture(classes, constraint):
    """Programs with a parameter that both declare, and one that the guide asks for by name."""

    def model(x):
        loc = pyro.param("loc", torch.linspace(0.5, 1.5, classes), constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(classes) / classes))
            pyro.sample("x", dist.Normal(loc[..., z], 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc")
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            logits = -((x[:, None] - loc) ** 2) / (2 * scale)
            pyro.sample("z", dist.Categorical(logits=logits))

    return model, guide


def result_of(classes, constraint, loc):
    params = {"loc": torch.tensor(loc), "scale": torch.tensor(0.8)}
    return FitResult(*mixture(classes, constraint), params, np.zeros(0))


RESULTS = {
    "two, real": result_of(2, constraints.real, [-1.0, 1.0]),
    "three, positive": result_of(3, constraints.positive, [0.2, 1.0, 3.0]),
}


def expected_evidence(result):
    loc = result.params["loc"]
    log_p = dist.Normal(loc, 1.0).log_prob(X[:, None]) - np.log(len(loc))
    return log_p.logsumexp(-1).numpy()


def fill_store(result):
    """Leave the store as a fit of these programs would."""
    pyro.clear_param_store()
    if result is None:
        return
    constraint = constraints.real if len(result.params["loc"]) == 2 else constraints.positive
    pyro.param("loc", result.params["loc"] + 0.125, constraint=constraint)
    pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("last", [*RESULTS, None])
def test_a_result_does_not_depend_on_what_was_fitted_last(name, last):
    fill_store(RESULTS.get(last))
    store, result = pyro.get_param_store(), RESULTS[name]
    before = {key: value.unconstrained() for key, value in store.items()}
    values = {key: value.detach().clone() for key, value in before.items()}
    handed = store["loc"] if before else None
    given = {key: value.clone() for key, value in result.params.items()}
    found = posterior_gap(result, X)
    np.testing.assert_allclose(found.log_evidence, expected_evidence(result), rtol=1e-5)
    assert store.keys() == before.keys()
    assert all(store[key].unconstrained() is tensor for key, tensor in before.items())
    assert all(torch.equal(before[key], values[key]) for key in before)
    assert handed is None or handed.unconstrained() is before["loc"]
    assert all(torch.equal(result.params[key], given[key]) for key in given)
    assert not any(value.requires_grad for value in result.params.values())


def test_two_fits_are_compared():
    results, first = [], []
    for classes in (2, 3):
        pyro.clear_param_store()
        pyro.set_rng_seed(classes)
        svi = SVI(*mixture(classes, constraints.real), pyro.optim.Adam({"lr": 0.05}), Exact_ELBO())
        # the guide asks for a parameter that the model declares
        svi.model(X)
        results.append(fit(svi, X, num_steps=3, progress=False))
        first.append(posterior_gap(results[-1], X).elbo)
    for result, elbo in zip(results, first, strict=True):
        np.testing.assert_allclose(posterior_gap(result, X).elbo, elbo, rtol=1e-5)
    assert not np.allclose(*first)


class Module(PyroModule):
    """Computes with its own tensors, constrained and not."""

    def __init__(self, size):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(size))
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(len(self.loc)) / len(self.loc)))
            pyro.sample("x", dist.Normal(self.loc[z] + mu, self.scale), obs=x)


def module_result(size):
    model = Module(size)
    normal = AutoNormal(pyro.poutine.block(model, hide=["z", "x"]))

    def guide(x):
        normal(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), size) / size))

    pyro.clear_param_store()
    guide(X)
    model(X)
    params = {name: value.detach() + 0.5 for name, value in pyro.get_param_store().items()}
    return FitResult(model, guide, params, np.zeros(0)), normal


def test_modules_get_back_what_they_had():
    result, normal = module_result(2)
    module_result(3)  # whose parameters, of the same names, are now the store's
    own = {**dict(result.model.named_parameters()), **dict(normal.named_parameters())}
    before = {name: value.detach().clone() for name, value in own.items()}
    for value in own.values():
        value.grad = torch.full_like(value, 7.0)
    found = evaluate(result, X, num_particles=400)
    pyro.set_rng_seed(1)
    gradients = gradient_variance(result, X, losses={"r": Reinforce_ELBO(4)}, num_repeats=3)
    assert {"loc", "scale", "AutoNormal.locs.mu"} <= gradients.variance.keys()
    after = {**dict(result.model.named_parameters()), **dict(normal.named_parameters())}
    assert after.keys() == own.keys()
    assert all(after[name] is own[name] for name in own)
    assert all(torch.equal(own[name], before[name]) for name in own)
    assert all((value.grad == 7.0).all() for value in own.values())
    # at loc 0.5 and scale 1.5, with mu ~ N(0.5, .): far from the values that the modules keep
    mean = result.params["AutoNormal.locs.mu"] + 0.5
    spread = 1.5**2, result.params["AutoNormal.scales.mu"] ** 2
    expected = ((X - mean) ** 2 + spread[1]).mean() / (2 * spread[0])
    expected = float(expected + 0.5 * np.log(2 * np.pi * spread[0]))
    assert abs(found.distortion - expected) < 0.15


def test_what_is_missing_or_of_another_shape_is_refused():
    result, _ = module_result(2)
    lacking = {name: value for name, value in result.params.items() if name != "scale"}
    with pytest.raises(ValueError, match=r"`params` lacks \['scale'\]"):
        evaluate(FitResult(result.model, result.guide, lacking, np.zeros(0)), X)
    with pytest.raises(ValueError, match=r"'loc' has shape \(3,\), but the module .* has \(2,\)"):
        evaluate(result, X, params={"loc": torch.zeros(3)})


def test_repeats_are_of_other_draws():
    result = RESULTS["two, real"]
    pyro.set_rng_seed(0)
    first, second = (importance_diagnostics(result, X, num_particles=25) for _ in range(2))
    pyro.set_rng_seed(0)
    again = importance_diagnostics(result, X, num_particles=25)
    assert (first.elbo != second.elbo).any()
    np.testing.assert_array_equal(first.elbo, again.elbo)
