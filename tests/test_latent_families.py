"""Usage, activity and rates of every family of discrete latents, under plates, by enumeration."""

import functools

import numpy as np
import pytest
from scipy import stats
from test_diagnostics import diagnose, program_of

ROWS, WORDS = 6, 2
CHANCE = np.linspace(0.2, 0.7, ROWS)  # of successes, under the guide
TABLE = np.stack([np.linspace(0.1, 0.6, ROWS), np.full(ROWS, 0.2), np.linspace(0.7, 0.2, ROWS)], 1)
RATE = np.linspace(0.5, 3.0, ROWS)
PARAMS = {"chance": CHANCE, "table": TABLE, "rate": RATE, "shift": np.linspace(-1, 1, ROWS)}


def program(one_hot):
    def model(ppl, data):
        with ppl.plate("data", ROWS, dim=-2):
            ppl.sample("n", ppl.dist.Binomial(3, 0.5))
            ppl.sample("o", one_hot(probs=ppl.zeros(3) + 1 / 3))
            ppl.sample("c", ppl.dist.Poisson(1.0))
            ppl.sample("r", ppl.dist.Normal(0.0, 1.0))
            with ppl.plate("words", WORDS, dim=-1):
                ppl.sample("b", ppl.dist.Bernoulli(0.5))
            ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    def guide(ppl, data):
        chance, table, rate, shift = (ppl.param(name, data) for name in PARAMS)
        with ppl.plate("data", ROWS, dim=-2):
            ppl.sample("n", ppl.dist.Binomial(3, chance[:, None]))
            ppl.sample("o", one_hot(probs=table[:, None]))
            ppl.sample("c", ppl.dist.Poisson(rate[:, None]))
            ppl.sample("r", ppl.dist.Normal(shift[:, None], 1.0))
            with ppl.plate("words", WORDS, dim=-1):
                ppl.sample("b", ppl.dist.Bernoulli(chance[:, None] + ppl.zeros(WORDS)))

    return program_of(model, guide, PARAMS, {"x": np.zeros((ROWS, 1))})


@functools.cache
def case_of(shim):
    return shim.Case(program(shim.module("distributions").OneHotCategorical))


def divergence(q, p):
    return float((q * np.log(q / p)).sum())


def expected_rates():
    counts, even = np.arange(4), stats.binom(3, 0.5).pmf(np.arange(4))
    coins = [divergence(np.array([1 - c, c]), np.full(2, 0.5)) for c in CHANCE]
    return {
        "n": np.mean([divergence(stats.binom(3, c).pmf(counts), even) for c in CHANCE]),
        "o": np.mean([divergence(row, np.full(3, 1 / 3)) for row in TABLE]),
        "c": np.mean(RATE * np.log(RATE) - RATE + 1.0),
        "r": np.mean(PARAMS["shift"] ** 2) / 2,
        "b": np.full(WORDS, np.mean(coins)),
    }


@pytest.mark.thrifty
def test_rates_are_exact(shim):
    found = diagnose(shim, "latent_rates", case_of(shim), num_draws=2)
    for name, expected in expected_rates().items():
        assert np.max(found[name].error) < 1e-12
        np.testing.assert_allclose(found[name].rate, np.atleast_1d(expected), rtol=1e-6)
        assert not found[name].collapsed.any()


@pytest.mark.thrifty
def test_usage(shim):
    found = diagnose(shim, "code_usage", case_of(shim), num_draws=500)
    assert found.keys() == {"n", "o", "c", "b"}
    shapes = {name: each.counts.shape for name, each in found.items() if name != "c"}
    assert shapes == {"n": (4,), "o": (3,), "b": (WORDS, 2)}
    expected = {
        "n": stats.binom(3, CHANCE[:, None]).pmf(np.arange(4)).mean(0),
        "o": TABLE.mean(0),
        "b": np.stack([1 - CHANCE, CHANCE], -1).mean(0),
    }
    for name, shares in expected.items():
        counts = found[name].counts
        assert (np.abs(counts / (500 * ROWS) - shares) < 5 * 0.5 / np.sqrt(500 * ROWS)).all()
        assert not found[name].is_open
    poisson = found["c"].counts
    assert found["c"].is_open
    assert poisson.sum() == 500 * ROWS
    assert poisson[-1] > 0
    assert "of no largest one" in str(found["c"])


@pytest.mark.thrifty
def test_activity(shim):
    found = diagnose(shim, "active_latents", case_of(shim), num_draws=2000)
    binomial = stats.binom(3, CHANCE[:, None]).pmf(np.arange(4))
    expected = {
        "n": binomial.var(0, ddof=1).sum() / 2,
        "o": TABLE.var(0, ddof=1).sum() / 2,
        "c": RATE.var(ddof=1),
        "r": PARAMS["shift"].var(ddof=1),
        "b": np.full(WORDS, CHANCE.var(ddof=1)),
    }
    assert found.keys() == expected.keys()
    for name, variance in expected.items():
        np.testing.assert_allclose(found[name].variance, variance, rtol=0.15)


# Counts whose chances are at the ends, of other numbers of trials for each row


TRIALS = np.array([0, 2, 3, 3, 1, 2])
ENDS = np.array([0.4, 0.0, 1.0, 0.7, 1.0, 0.3])


def counting(geometric, chance):
    def program(ppl, data):
        with ppl.plate("data", ROWS):
            ppl.sample("n", ppl.dist.Binomial(data["trials"], probs=data[chance]))
            ppl.sample("g", geometric(probs=data[f"{chance}_of_last"]))
            if chance == "half":
                ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    return program


def test_rates_of_counts_are_exact(shim):
    name = "Geometric" if shim.__name__ == "pyro_shim" else "GeometricProbs"
    geometric = getattr(shim.Case.__init__.__globals__["ppl"].__globals__["dist"], name)
    last = np.array([0.3, 0.5, 0.6, 0.7, 0.9, 1.0])
    data = {"x": np.zeros(ROWS), "trials": TRIALS, "ends": ENDS, "half": np.full(ROWS, 0.5)}
    data |= {"ends_of_last": last, "half_of_last": np.full(ROWS, 0.5)}
    case = shim.Case(program_of(counting(geometric, "half"), counting(geometric, "ends"), {}, data))
    found = diagnose(shim, "latent_rates", case, num_draws=2)

    def of_trial(c):
        return sum(p * np.log(2 * p) for p in (c, 1 - c) if p > 0)

    exact = {
        "n": np.mean([n * of_trial(c) for n, c in zip(TRIALS, ENDS, strict=True)]),
        "g": np.mean([of_trial(c) / c for c in last]),
    }
    for each, expected in exact.items():
        np.testing.assert_allclose(found[each].rate, [expected], rtol=1e-5)
        assert np.max(found[each].error) < 1e-12


# Rates of draws: a chain of two signs, whose second depends on the first


def chain_model(ppl, data):
    with ppl.plate("data", 200):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=ppl.zeros(1)[0]))
        ppl.sample("b", ppl.dist.Bernoulli(logits=2.0 * a - 1.0))
        ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])


def chain_guide(ppl, data):
    with ppl.plate("data", 200):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=ppl.zeros(200)))
        ppl.sample("b", ppl.dist.Bernoulli(logits=1.8 * a - 1.0))


def test_rates_that_depend_on_draws_have_an_error(thrifty_shim):
    case = thrifty_shim.Case(program_of(chain_model, chain_guide, {}, {"x": np.zeros(200)}))
    found = diagnose(thrifty_shim, "latent_rates", case, num_draws=10)
    assert found["a"].error == 0.0
    assert found["a"].collapsed.all()
    one, two = (1 / (1 + np.exp(-each)) for each in (0.8, 1.0))
    exact = 0.5 * divergence(np.array([1 - one, one]), np.array([1 - two, two]))
    assert abs(found["b"].rate - exact) < 5 * found["b"].error
    assert 0 < found["b"].error < exact / 10
    near = found["b"]._replace(threshold=exact)
    assert near.undecided.all()
    assert not near.collapsed.any()
    assert "may have collapsed (more draws tell)" in str(near)
    assert found["b"]._replace(threshold=10 * exact).collapsed.all()
    single = diagnose(thrifty_shim, "latent_rates", case, num_draws=1)["b"]
    assert not single.collapsed.any()  # nothing is known of one draw


# Under a mask: of what is in use alone


LABELLED = np.arange(ROWS) % 3 > 0


def masked(chance):
    def program(ppl, data):
        with ppl.plate("data", ROWS):
            coins = ppl.stack([ppl.param(chance, data), ppl.param("half", data)], -1)
            fn = ppl.dist.Bernoulli(probs=coins).mask(data["labelled"]).to_event(1)
            ppl.sample("z", fn)
            if chance == "half":
                ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    return program


@pytest.mark.thrifty
def test_what_is_masked_has_no_say(shim):
    data = {"x": np.zeros(ROWS), "labelled": np.stack([LABELLED, np.zeros(ROWS, bool)], -1)}
    params = {"chance": CHANCE, "half": np.full(ROWS, 0.5)}
    case = shim.Case(program_of(masked("half"), masked("chance"), params, data))
    found = diagnose(shim, "latent_rates", case, num_draws=2)["z"]
    each = np.array([divergence(np.array([1 - c, c]), np.full(2, 0.5)) for c in CHANCE])
    np.testing.assert_allclose(found.rate, [(each * LABELLED).mean(), 0.0], atol=1e-9)
    threshold = (found.rate[0] + each[LABELLED].mean()) / 2  # diluted, it would have collapsed
    assert not found._replace(threshold=threshold).collapsed.any()
    assert not found._replace(threshold=threshold).undecided.any()
    assert found._replace(threshold=1.0).collapsed.tolist() == [True, False]
    variance = diagnose(shim, "active_latents", case, num_draws=4000)["z"].variance
    np.testing.assert_allclose(variance, [CHANCE[LABELLED].var(ddof=1), 0.0], rtol=0.15)
    counts = diagnose(shim, "code_usage", case, num_draws=100)["z"].counts
    assert counts.sum(1).tolist() == [100 * LABELLED.sum(), 0]


@pytest.mark.slow
def test_numbers_from_three_on_have_no_codes_before():
    """NumPyro's DiscreteUniform, four values."""
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    from numpyro_dvae.diagnostics import code_usage, evaluate, to_arviz

    def program(high, observes):
        def run(x):
            with numpyro.plate("data", 50):
                z = numpyro.sample("z", numpyro.distributions.DiscreteUniform(3, high))
                if observes:
                    numpyro.sample("x", numpyro.distributions.Normal(z, 1.0), obs=x)

        return run

    programs, x = (program(6, True), program(6, False)), jax.numpy.zeros(50)
    found = code_usage(jax.random.key(0), programs, x, num_draws=100)["z"]
    np.testing.assert_array_equal(found.codes, [3, 4, 5, 6])
    assert found.counts.sum() == 5000
    assert (np.abs(found.counts - 1250) < 5 * np.sqrt(1250 * 0.75)).all()
    assert str(found) == f"100% of 4 codes occur in the mean of 1 latents (least 100%); {EVEN}."
    assert "codes in use                  100.00 %" in str(
        evaluate(jax.random.key(0), programs, x, num_particles=30)
    )
    idata = to_arviz(jax.random.key(0), programs, x, num_draws=50, groups=("vi_stats",))
    np.testing.assert_array_equal(idata["vi_stats"]["z_code"], [3, 4, 5, 6])


EVEN = "perplexity 4.0 (least 4.0)"
