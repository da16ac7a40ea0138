"""Plates that draw rows of their own, around data that are passed: whose parameters are trained."""

import numpy as np
import pytest
from automatic_lab import lab as make_lab

X = np.array([1.3, -0.4, 0.2, 2.1], dtype=np.float32)


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def observe(ppl, x, shift=0.0):
    z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
    ppl.sample("x", ppl.dist.Normal(2.0 * z + shift, ppl.array(1.0)), obs=x)


def drawn(ppl, x):
    """The rows are drawn, the data are passed."""
    with ppl.plate("data", 4, subsample_size=len(x)):
        observe(ppl, x)


def taken(ppl, x):
    """The data are those of the rows."""
    with ppl.plate("data", 4, subsample_size=2) as rows:
        observe(ppl, x[rows])


def given(ppl, x, rows):
    """The rows are passed along with the data; the model has a parameter, which changes nothing."""
    shift = 0.0 * ppl.param("shift", [1.0], "positive")[0]
    with ppl.plate("data", 4, subsample=rows):
        observe(ppl, x, shift)


def factored(ppl, x):
    """The data of the rows are in a factor, whose value is empty."""
    with ppl.plate("data", 4, subsample_size=2) as rows:
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        ppl.factor("x", ppl.dist.Normal(2.0 * z, ppl.array(1.0)).log_prob(x[rows]))


def alike(ppl, x):
    """Of rows that do not differ, too."""
    with ppl.plate("data", 4, subsample_size=2) as rows:
        observe(ppl, 0.0 * x[rows])


def guides_of(lab, model):
    yield lab.module("guides").AutoDiscrete(model), lab.module("infer").Reinforce_ELBO(2)
    infer = lab.module("infer")
    yield infer.TruncatedGuide(model, num_states=2), infer.Truncated_ELBO()


@pytest.mark.parametrize("first", [2, 4])
def test_rows_that_a_plate_draws_around_data_that_are_passed_are_refused(lab, first):
    model = lab.bind(drawn)
    for guide, elbo in guides_of(lab, model):
        said = f"plate 'data' draws 2 of 4 rows by itself, but 'x' .*{type(guide).__name__} would"
        with pytest.raises(ValueError, match=said):
            lab.look(elbo, model, guide, (lab.array(X[:first]),), (lab.array(X[:2]),))


@pytest.mark.parametrize("program", [taken, factored, alike])
def test_rows_that_say_which_data_are_seen_are_taken(lab, program):
    model = lab.bind(program)
    for guide, elbo in guides_of(lab, model):
        lab.look(elbo, model, guide, (lab.array(X),), (lab.array(X),))


def test_rows_that_are_passed_along_train_the_parameters_of_their_data(lab):
    """After steps on rows 3 and 1 alone, these have the posterior, and the others the prior."""
    model = lab.bind(given)
    guide = lab.module("guides").AutoDiscrete(model)
    rows = lab.array(np.array([3, 1]))
    trained = lab.steps(lab.exact(), model, guide, [(lab.array(X[[3, 1]]), rows)] * 150)
    prior, exact = np.log(0.4 / 0.6), np.log(0.4 / 0.6) + 2.0 * X - 2.0
    found = trained["z"].squeeze(-1)
    np.testing.assert_allclose(found[[3, 1]], exact[[3, 1]], atol=0.02)
    np.testing.assert_allclose(found[[0, 2]], prior, atol=1e-5)


def test_networks_take_such_a_plate_for_its_scale(lab):
    """A guide that reads the datum itself has nothing of its row."""
    model = lab.bind(drawn)

    def amortised(ppl, x):
        slope = ppl.param("slope", 0.0, "real")
        with ppl.plate("data", 4, subsample_size=len(x)):
            ppl.sample("z", ppl.dist.Bernoulli(logits=slope * x))

    elbo = lab.module("infer").Reinforce_ELBO(2)
    lab.look(elbo, model, lab.bind(amortised), (lab.array(X[:2]),), (lab.array(X[:2]),))
