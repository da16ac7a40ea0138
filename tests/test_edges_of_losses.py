"""Losses and evaluation where an algorithm, a program or data are not what they are of."""

import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def site(backend, values):
    """A site over these values, summed out with probabilities (2, V)."""
    probs = backend.asarray(np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]))
    support = backend.asarray(np.array(values))
    base = SimpleNamespace(enumerate_support=lambda expand: support, event_shape=())
    found = SimpleNamespace(name="z", own_name="z", base=base, infer={}, is_scanned=False)
    found.infer["_probs"] = lambda: [(found, probs)]
    return found


def test_values_that_are_summed_are_numbers_from_0_on(backend):
    read = backend.module("programs.summing.values").probs_of_summed
    message = "site 'z' has the value -1, but values are numbers from 0 on. Leave it out"
    with pytest.raises(ValueError, match=message):
        read({"z": site(backend, [-1, 0, 1])})
    _, probs = read({"z": site(backend, [2, 0, 3])})["z"]
    np.testing.assert_allclose(np.asarray(probs), [[0.2, 0, 0.5, 0.3], [0.6, 0, 0.1, 0.3]])


GAINS = [
    (lambda make, p: make(p.log_p), r"value for each datum, of shape \(2,\); got \(3, 2\)\. Red"),
    (lambda make, p: make(p.log_p.mean()), r"of shape \(2,\); got \(\)"),
    (lambda make, p: make(p.log_p.mean(0), {"mine": 1.0}), r"scalars \['mine'\].*info_type\(__nam"),
    (lambda make, p: make(p.log_p.mean(0), memory=(1,)), "a memory, but init_memory returns None"),
]


@pytest.mark.parametrize("backend", ["numpyro"], indirect=True)  # Pyro's: test_protocols_pyro
@pytest.mark.parametrize(("gain", "message"), GAINS)
def test_a_gain_that_breaks_the_contract_is_refused(backend, gain, message):
    objective = backend.module("infer.objective")
    log_p = backend.asarray(np.zeros((3, 2)))

    class Broken_ELBO(backend.module("infer.elbo").ParticleELBO):
        def gain(self, particles, objective, beta, memory):
            raise NotImplementedError

    made = gain(objective.Gain, SimpleNamespace(log_p=log_p))
    with pytest.raises(ValueError, match=f"Broken_ELBO.gain.*{message}"):
        Broken_ELBO(3)._check_gain(made, (2,), None)
    Broken_ELBO(3)._check_gain(objective.Gain(log_p.mean(0)), (2,), None)


def test_a_program_that_fails_of_itself_says_so(backend):
    """Without a relaxed vector, an error is the program's own."""

    def program():
        raise TypeError("of the program")

    relaxed = backend.module("infer").relax(program)
    with pytest.raises(TypeError, match="of the program"):
        relaxed()


def module_program():
    return None


def test_a_relaxed_program_is_pickled(backend):
    relaxed = backend.module("infer").relax(module_program, temperature=0.5)
    again = pickle.loads(pickle.dumps(relaxed))
    assert again.program is module_program
    assert again.temperature == 0.5
    with pytest.raises(AttributeError, match="program"):
        type(relaxed).__new__(type(relaxed)).__getattr__("program")


def test_a_loss_of_others_names_no_impossible_rows(backend):
    rows = backend.module("fit.impossible").impossible_rows
    svi = SimpleNamespace(loss=SimpleNamespace(), loss_and_grads=None)
    given = (svi,) if backend.name == "pyro" else (None, svi, None)
    assert rows(*given, [(0, None)]) == ([], [])


@dataclass
class Step:
    """A site of a `scan`, all of whose values are summed."""

    name: str
    probs: Any
    has_steps: bool
    is_scanned: bool = True
    own_name: str = "z"

    @property
    def base(self):
        return SimpleNamespace(enumerate_support=lambda expand: np.arange(3), event_shape=())

    @property
    def infer(self):
        return {"_probs": lambda: [(self, self.probs)]}


@pytest.mark.parametrize("backend", ["numpyro"], indirect=True)
def test_steps_of_a_scan_follow_one_another(backend):
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5))
    steps = [Step("z", probs[:, 2:], True), Step("_PREV_z", probs[:, 1], False)]
    steps.append(Step("_PREV__PREV_z", probs[:, 0], False))
    found = backend.module("programs.summing.values").probs_of_summed({s.name: s for s in steps})
    assert list(found) == ["z"]
    assert found["z"][0].name == "z"
    np.testing.assert_allclose(np.asarray(found["z"][1]), probs, rtol=1e-6)


def test_weights_of_states_are_those_of_the_weighted_rate(backend):
    names = "log_likelihood", "log_prior", "log_q_pathwise"
    terms = dict(zip(names, np.random.default_rng(0).normal(size=(3, 4, 2)), strict=True))
    particles = SimpleNamespace(**{n: backend.asarray(v) for n, v in terms.items()})
    likelihood, prior, log_q = terms.values()
    log_weights = backend.module("infer.truncated.scoring").log_weights
    for beta in (0.5, backend.asarray(np.array(0.5))):
        found = log_weights(particles, beta)
        np.testing.assert_allclose(np.asarray(found), 2 * likelihood + prior - log_q, rtol=1e-12)
