"""Modes and quantiles of an automatic guide are those of the probabilities that it has."""

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from scipy import stats

X = np.array([1.0, 2.0, 0.5])


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def trials(ppl, x):
    with ppl.plate("data", 3, dim=-1):
        n = ppl.sample("n", ppl.dist.Binomial(ppl.array(np.array([2, 4, 3])), ppl.array(0.4)))
        ppl.sample("x", ppl.dist.Normal(n * 1.0, 1.0), obs=x)


@pytest.mark.thrifty
def test_modes_and_quantiles_of_trials_that_differ_are_within_them(lab):
    """What a datum cannot have has logits, too, which count nothing."""
    guide, x = lab.guide(lab.bind(trials)), lab.array(X)
    params = {"n": np.log(np.array([[0.2, 0.1, 0.1, 0.3, 0.4]] * 3))}
    lab.start(guide, x)
    assert lab.summary(guide, "mode", params, args=(x,))["n"].tolist() == [0, 4, 3]
    found = lab.summary(guide, "quantiles", params, [0.45, 0.7, 1.0], args=(x,))["n"]
    assert found.T.tolist() == [[0, 1, 2], [3, 4, 4], [2, 3, 3]]
    probs = np.array([[0.5, 0.25, 0.25, 0, 0], [2, 1, 1, 3, 4], [2, 1, 1, 3, 0]])
    posterior = lab.posterior(lab.bind(trials), guide, params, X, num_draws=2000)["n"]
    expected = probs / probs.sum(1, keepdims=True)
    np.testing.assert_allclose(posterior.probs, expected, atol=0.06)


def test_modes_and_quantiles_are_within_the_trials_of_their_call():
    """Those of the first call had been kept: two successes of one trial. NumPyro's take no data."""
    pytest.importorskip("torch")
    lab = make_lab("pyro")

    def counts(ppl, x, trials):
        with ppl.plate("data", 3, dim=-1):
            n = ppl.sample("n", ppl.dist.Binomial(trials, ppl.array(0.4)))
            ppl.sample("x", ppl.dist.Normal(n * 1.0, 1.0), obs=x)

    guide, x = lab.guide(lab.bind(counts)), lab.array(X)
    lab.start(guide, x, lab.array([2.0, 4.0, 3.0]))
    params = {"n": np.log(np.array([[0.2, 0.1, 0.1, 0.3, 0.4]] * 3))}
    other = (x, lab.array([4.0, 1.0, 0.0]))
    assert lab.summary(guide, "mode", params, args=other)["n"].tolist() == [4, 0, 0]
    found = lab.summary(guide, "quantiles", params, [0.45, 0.7, 1.0], args=other)["n"]
    assert found.T.tolist() == [[3, 4, 4], [0, 1, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="'n' now has numbers up to 5"):
        lab.summary(guide, "mode", params, args=(x, lab.array([5.0, 1.0, 0.0])))


def below(ppl, x):
    with ppl.plate("data", len(x), dim=-1):
        b = ppl.sample("b", ppl.dist.Bernoulli(ppl.array(0.3)))
        k = ppl.sample("k", ppl.dist.Poisson(ppl.array(1.0) + 3.0 * b))
        ppl.sample("x", ppl.dist.Normal(k * 1.0, 1.0), obs=x)


@pytest.mark.thrifty
@pytest.mark.filterwarnings("ignore:`num_values`")
@pytest.mark.parametrize("structure", ["mean_field", "model"])
def test_the_mass_that_is_cut_off_is_the_priors(lab, structure):
    """Not that of the draw that leaves most out; given its parents, if it has any."""
    few, many = stats.poisson.sf(4, [1.0, 4.0])
    guide = lab.guide(lab.bind(below), structure=structure, num_values={"k": 5})
    lab.start(guide, lab.array(np.zeros(1)))
    expected, error = many, 1e-5
    if structure == "mean_field":
        expected, error = 0.7 * few + 0.3 * many, 5 * np.sqrt(0.3 * 0.7 / 64) * (many - few)
        assert error < many - expected
    assert abs(guide.cut_off["k"] - expected) < error


LARGE = {
    "Poisson": (lambda ppl: ppl.dist.Poisson(ppl.array(np.float32(1000))), stats.poisson(1000)),
    "Geometric": (
        lambda ppl: ppl.dist.Geometric(ppl.array(np.float32(0.01))),
        stats.geom(np.float32(0.01), -1),
    ),
}


@pytest.mark.thrifty
@pytest.mark.filterwarnings("ignore:`num_values`")
@pytest.mark.parametrize("family", LARGE)
def test_the_mass_that_is_cut_off_is_no_rounding_of_many_probabilities(lab, family):
    prior, known = LARGE[family]

    def model(ppl, x):
        k = ppl.sample("k", prior(ppl))
        ppl.sample("x", ppl.dist.Normal(k * 1.0, 10.0), obs=x)

    guide = lab.guide(lab.bind(model), num_values={"k": 1100})
    lab.start(guide, lab.array(np.float32(1000)))
    np.testing.assert_allclose(guide.cut_off["k"], known.sf(1099), rtol=2e-3)
    least = int(known.isf(1e-6)) + 1
    enough = next(2**n for n in range(30) if 2**n >= least)
    with pytest.raises(ValueError, match=f"V such as {enough}, beyond"):
        lab.start(lab.guide(lab.bind(model)), lab.array(np.float32(1000)))


def test_what_is_traced_is_not_known_to_have_all_values():
    jax = pytest.importorskip("jax")
    lab = make_lab("numpyro")

    def flip(ppl, x):
        z = ppl.sample("z", ppl.dist.Bernoulli(x[0]))
        ppl.sample("x", ppl.dist.Normal(z * 1.0, 1.0), obs=x[1])

    model, elbo = lab.bind(flip), lab.module("infer").Reinforce_ELBO(2)
    guide = lab.guide(model)
    svi = lab.module("infer").SVI(model, guide, lab.numpyro.optim.Adam(0.1), elbo)
    jax.eval_shape(lambda x: svi.init(jax.random.key(0), x), lab.array(np.array([0.3, 1.0])))
    with pytest.raises(NotImplementedError, match=r"'z' was first seen under jax\.jit \(call svi"):
        guide.mode({"z_auto_logits": np.zeros(1)})


RARE = {
    "Binomial": (lambda ppl: ppl.dist.Binomial(60, ppl.array(np.float32(1e-6))), 60, {}),
    "Poisson": (lambda ppl: ppl.dist.Poisson(ppl.array(np.float32(1e-5))), 60, {"z": 61}),
    "Bernoulli": (lambda ppl: ppl.dist.Bernoulli(logits=ppl.array(np.float32(-1000.0))), 1, {}),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("family", RARE)
def test_values_too_rare_for_any_precision_are_possible_all_the_same(lab, family):
    """The prior of the last is e^-829, e^-879 and e^-1000: the guide can have it."""
    prior, most, num_values = RARE[family]

    def model(ppl, x):
        z = ppl.sample("z", prior(ppl))
        ppl.sample("x", ppl.dist.Normal(z * 1.0, 1.0), obs=x)

    guide, x = lab.guide(lab.bind(model), num_values=num_values), lab.array(np.float32(most))
    start = lab.start(guide, x)["z"]
    low = start if most == 1 else start - start.max()
    assert low[-1] < -65
    logits = np.array([4.0] if most == 1 else [0.0] * most + [8.0], np.float32)
    found = lab.summary(guide, "quantiles", {"z": logits}, [0.005, 0.5], args=(x,))["z"]
    share = np.exp(8.0) / (np.exp(8.0) + most) if most > 1 else 1 / (1 + np.exp(-4.0))
    first = int(np.searchsorted(np.cumsum([(1 - share) / most] * most), 0.005))
    assert found.tolist() == [first, most]
    drawn = lab.posterior(lab.bind(model), guide, {"z": logits}, np.float32(most), num_draws=500)
    assert abs(drawn["z"].probs[..., -1] - share) < 5 * np.sqrt(share * (1 - share) / 500)
