"""Pyro's side of `relax`: modules, their parameters, a schedule's count in a buffer."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyro  # noqa: E402
import pyro.distributions as dist  # noqa: E402
import torch.nn as nn  # noqa: E402
from pyro.infer import SVI, Trace_ELBO  # noqa: E402
from test_elbo_module import IMAGES, make_pair  # noqa: E402

from pyro_dvae.distributions import PathwiseCategorical  # noqa: E402
from pyro_dvae.fit import fit  # noqa: E402
from pyro_dvae.infer import Reinforce_ELBO, relax  # noqa: E402


def relaxed_pair(**options):
    model, guide = make_pair()
    return relax(model, "reinmax"), relax(guide, "reinmax", **options)


def test_a_module_has_the_parameters_of_the_program():
    model, guide = relaxed_pair()
    elbo = Trace_ELBO()(model, guide)
    elbo(IMAGES).backward()
    found = list(elbo.parameters())
    assert len(found) == 9
    assert all(parameter.grad is not None for parameter in found)


def test_a_vector_of_codes_is_relaxed_in_both_programs():
    """Torch's density of a one-hot vector has no slope, so that the prior would not train q."""
    prior = torch.tensor([0.3, 0.7])

    def model():
        pyro.sample("z", dist.OneHotCategorical(prior))

    def guide():
        logits = pyro.param("logits", torch.zeros(2))
        pyro.sample("z", dist.OneHotCategorical(logits=logits))

    half = model, relax(guide, "straight_through")
    with pytest.raises(ValueError, match="'z' is relaxed in the guide and not in the model"):
        Reinforce_ELBO(1).loss(*half)
    with pytest.raises(ValueError, match="site 'z' is relaxed in the guide, but not in the model"):
        Trace_ELBO().loss_and_grads(*half)  # Pyro's own: the gradient would be log q's alone

    def own():
        pyro.sample("z", PathwiseCategorical(prior.log(), method="straight_through"))

    for whole in (relax(model, "straight_through"), own):
        pyro.set_rng_seed(0)
        elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
        pyro.param("logits", torch.zeros(2)).grad = None
        elbo.loss_and_grads(whole, half[1])
        # Straight-through is exact where all is linear in z: 1/4 of log q/p, code against code.
        right = 0.25 * np.log(0.7 / 0.3) * np.array([1.0, -1.0])
        np.testing.assert_allclose(pyro.param("logits").grad, right, atol=0.02)


def test_a_schedule_counts_training_calls_and_is_saved():
    seen = []
    model, guide = relaxed_pair(temperature=lambda calls: seen.append(int(calls)) or 1.0)
    for _ in range(3):
        guide(IMAGES)
    with torch.no_grad():
        guide(IMAGES)
    assert seen == [0, 1, 2, 3]
    twin = copy.deepcopy(guide)
    assert int(twin.calls) == int(guide.calls) == 3
    assert "calls" in guide.state_dict()
    assert "calls" not in model.state_dict()


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    """The count of a schedule is part of the checkpoint."""

    def run(num_steps, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        model, guide = relaxed_pair(temperature=lambda calls: 1.0 / (1.0 + calls))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO(max_plate_nesting=1))
        settings = {"batch_size": 4, "progress": False, "checkpoint_every": 3} | options
        return fit(svi, IMAGES, num_steps=num_steps, **settings).losses

    whole = run(6)
    first = run(3, folder=tmp_path)
    resumed = run(6, folder=tmp_path, resume=True)
    np.testing.assert_allclose([*first, *resumed][-6:], whole, rtol=1e-6)


def test_a_method_of_a_module_brings_its_parameters():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(3))

        def guide(self):
            return pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))

    owner = Owner()
    program = relax(owner.guide)
    assert list(program.parameters()) == list(owner.parameters())
    assert program().requires_grad
