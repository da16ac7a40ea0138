"""Chains that NumPyro's `scan` writes, summed out beside what is drawn, and Python's loops."""

import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("funsor")
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.contrib.control_flow import scan  # noqa: E402

from numpyro_dvae.diagnostics import discrete_posterior  # noqa: E402
from numpyro_dvae.infer import Exact_ELBO, Reinforce_ELBO  # noqa: E402

SUM = {"enumerate": "parallel"}  # copied, as `scan` writes into what it is given
TABLE = np.array([[0.9, 0.1], [0.3, 0.7]])
PARAMS = {"q": np.array(0.4), "slope": np.array(0.8)}
KEY = jax.random.key(0)


def guide(x):
    numpyro.sample("wide", dist.Bernoulli(logits=numpyro.param("q")))


def chain(x, *, reverse=False):
    """Columns of `x` are chains of their own."""
    wide = numpyro.sample("wide", dist.Bernoulli(logits=-0.3))
    slope, table = numpyro.param("slope"), jnp.asarray(TABLE)

    def step(z, y):
        with numpyro.plate("chains", x.shape[1]):
            z = numpyro.sample("z", dist.Categorical(table[z]), infer=dict(SUM))
            numpyro.sample("x", dist.Normal(slope * z, 0.5 + wide), obs=y)
        return z, None

    scan(step, jnp.zeros(x.shape[1], int), x, reverse=reverse)


def log_evidence(x, wide, slope):
    """Of one chain, by all its paths."""
    paths = []
    for path in itertools.product(range(2), repeat=len(x)):
        steps = zip((0, *path), path, x, strict=False)
        scale = 0.5 + wide
        paths.append(
            sum(
                np.log(TABLE[a, b])
                - 0.5 * ((y - slope * b) / scale) ** 2
                - np.log(scale * np.sqrt(2 * np.pi))
                for a, b, y in steps
            )
        )
    return np.logaddexp.reduce(paths)


def brute_force(x, q=0.4, slope=0.8):
    """Minus the ELBO."""
    prob, prior, total = 1 / (1 + np.exp(-q)), 1 / (1 + np.exp(0.3)), 0.0
    for wide, weight, log_p in ((0, 1 - prob, np.log(1 - prior)), (1, prob, np.log(prior))):
        evidence = sum(log_evidence(column, wide, slope) for column in x.T)
        total += weight * (np.log(weight) - log_p - evidence)
    return total


def value_and_slopes(model, x, elbo):
    def loss(params, key):
        return elbo.loss(key, params, model, guide, x)

    with jax.enable_x64(True):
        return jax.jit(jax.value_and_grad(loss))(PARAMS, KEY)


@pytest.mark.parametrize(
    "num_steps", [pytest.param(n, marks=pytest.mark.slow if n < 5 else ()) for n in (1, 2, 5)]
)
def test_a_scan_is_summed(num_steps):
    x = np.random.default_rng(0).normal(size=(num_steps, 2))
    value, slopes = value_and_slopes(chain, x, Exact_ELBO())
    np.testing.assert_allclose(value, brute_force(x), rtol=1e-10)
    for name in PARAMS:
        ends = [brute_force(x, **{**PARAMS, name: PARAMS[name] + d}) for d in (-1e-5, 1e-5)]
        np.testing.assert_allclose(slopes[name], (ends[1] - ends[0]) / 2e-5, rtol=1e-7)


def test_a_scan_under_no_plate_with_what_the_marked_site_leaves_alone():
    """The first steps of a scan stand by themselves, without a dim of steps."""
    x, y = np.random.default_rng(0).normal(size=(2, 3))

    def model(x, y):
        wide = numpyro.sample("wide", dist.Bernoulli(logits=-0.3))

        def step(z, seen):
            numpyro.sample("y", dist.Normal(1.0 * wide, 1.0), obs=seen[1])
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(TABLE)[z]), infer=dict(SUM))
            numpyro.sample("x", dist.Normal(0.8 * z, 0.5 + wide), obs=seen[0])
            return z, None

        scan(step, 0, (x, y))

    def loss(params):
        return Exact_ELBO().loss(KEY, params, model, lambda x, y: guide(x), x, y)

    with jax.enable_x64(True):
        value = jax.jit(loss)({"q": jnp.array(0.4)})
    prob = 1 / (1 + np.exp(-0.4))
    beside = [0.5 * (y - w) ** 2 + 0.5 * np.log(2 * np.pi) for w in (0, 1)]
    expected = brute_force(x[:, None]) + (1 - prob) * beside[0].sum() + prob * beside[1].sum()
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_a_scan_from_the_end_is_refused():
    """The host's sum of it is wrong, as `log_density` is."""
    with pytest.raises(ValueError, match=r"`scan` with reverse=True .* Turn its inputs round"):
        value_and_slopes(lambda x: chain(x, reverse=True), np.zeros((5, 2)), Exact_ELBO())


@pytest.mark.slow
def test_a_scan_that_looks_two_steps_back():
    x = np.random.default_rng(0).normal(size=5)
    table = np.random.default_rng(1).dirichlet(np.ones(2), (2, 2))

    def model(x):
        wide = numpyro.sample("wide", dist.Bernoulli(logits=-0.3))
        numpyro.param("slope")

        def step(carry, y):
            a, b = carry
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(table)[a, b]), infer=dict(SUM))
            numpyro.sample("x", dist.Normal(1.0 * z, 0.5 + wide), obs=y)
            return (b, z), None

        scan(step, (0, 0), x, history=2)

    value, _ = value_and_slopes(model, x, Exact_ELBO())
    expected = 0.0
    prob, prior = 1 / (1 + np.exp(-0.4)), 1 / (1 + np.exp(0.3))
    for wide, weight, log_p in ((0, 1 - prob, np.log(1 - prior)), (1, prob, np.log(prior))):
        paths = []
        for path in itertools.product(range(2), repeat=5):
            full = (0, 0, *path)
            paths.append(
                sum(
                    np.log(table[full[t], full[t + 1], full[t + 2]])
                    - 0.5 * ((x[t] - full[t + 2]) / (0.5 + wide)) ** 2
                    - np.log((0.5 + wide) * np.sqrt(2 * np.pi))
                    for t in range(5)
                )
            )
        expected += weight * (np.log(weight) - log_p - np.logaddexp.reduce(paths))
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_draws_beside_a_scan_have_the_mean_of_brute_force():
    x = np.random.default_rng(0).normal(size=(4, 2))
    elbo = Reinforce_ELBO(num_particles=64)

    def loss(params, key):
        return elbo.loss(key, params, chain, guide, x)

    with jax.enable_x64(True):
        keys = jax.random.split(KEY, 400)
        step = jax.value_and_grad(loss)
        values, slopes = jax.jit(lambda keys: jax.lax.map(lambda k: step(PARAMS, k), keys))(keys)
    values, slope = np.asarray(values), np.asarray(slopes["slope"])
    ends = [brute_force(x, slope=0.8 + d) for d in (-1e-5, 1e-5)]
    for draws, exact in ((values, brute_force(x)), (slope, (ends[1] - ends[0]) / 2e-5)):
        error = 5 * draws.std(ddof=1) / len(draws) ** 0.5 + 1e-9
        assert abs(draws.mean() - exact) < error
        assert abs(draws.mean() - exact - 0.1) > error  # what is wrong by a tenth is noticed


def test_a_site_of_the_guide_within_the_scan_is_refused():
    x = np.zeros(3)

    def model(x):
        def step(z, y):
            z = numpyro.sample("z", dist.Bernoulli(0.3 + 0.2 * z), infer=dict(SUM))
            w = numpyro.sample("w", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(1.0 * z + w, 1.0), obs=y)
            return z, None

        scan(step, 0, x)

    def its_guide(x):
        with numpyro.plate("steps", 3):
            numpyro.sample("w", dist.Bernoulli(logits=numpyro.param("q")))

    with pytest.raises(ValueError, match=r"site 'w' is drawn by the guide in a `scan`"):
        Reinforce_ELBO(2).loss(KEY, {"q": jnp.zeros(3)}, model, its_guide, x)


def test_values_that_are_no_range_are_refused_in_a_scan():
    def model(x):
        wide = numpyro.sample("wide", dist.Bernoulli(logits=-0.3))

        def step(z, y):
            z = numpyro.sample("z", dist.DiscreteUniform(3, 4), infer=dict(SUM))
            numpyro.sample("x", dist.Normal(1.0 * z, 0.5 + wide), obs=y)
            return z, None

        scan(step, 3, x)

    with pytest.raises(ValueError, match=r"'z' \(DiscreteUniform\) is enumerated in a `scan`"):
        Exact_ELBO().loss(KEY, {"q": jnp.array(0.4)}, model, guide, np.zeros(3))


def two_steps_back():
    from numpyro.contrib.funsor import markov

    table, z = jnp.asarray(TABLE), [jnp.array(0), jnp.array(1)]
    for t in markov(range(4)):
        z.append(numpyro.sample(f"z{t}", dist.Categorical(table[z[-2]]), infer=dict(SUM)))
        numpyro.sample(f"x{t}", dist.Normal(1.0 * z[-1], 1.0), obs=0.3)


def over_all():
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=dict(SUM))
        numpyro.sample("x", dist.Normal(z.mean(), 1.0), obs=jnp.array([0.2, 0.1]))


def from_the_left():
    with numpyro.plate("data", 2):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=dict(SUM))
        numpyro.sample("x", dist.Normal(z[0], 1.0), obs=jnp.array([0.2, 0.1]))


@pytest.mark.parametrize("model", [over_all, from_the_left, two_steps_back])
def test_programs_that_mix_all_values_are_refused(model):
    with pytest.raises(ValueError, match=r"(depends on|all values of) .*'?z.* at once"):
        Exact_ELBO().loss(KEY, {}, model, lambda: None)


@pytest.mark.slow
def test_the_posterior_of_the_steps_of_a_scan():
    """By all paths of each chain, given the scale, in the mean over its draws."""
    x = np.random.default_rng(0).normal(size=(4, 2))
    with jax.enable_x64(True):
        found = discrete_posterior(KEY, (chain, guide), x, params=PARAMS, num_draws=50)
    assert found["z"].dims == ("chains", "z_step")
    expected = np.zeros((2, 4, 2))
    for wide in (0, 1):
        share = (found["wide"].draws == wide).mean()
        for n, column in enumerate(x.T):
            probs = {}
            for path in itertools.product(range(2), repeat=4):
                steps = list(zip((0, *path), path, column, strict=False))
                errors = [((y - 0.8 * b) / (0.5 + wide)) ** 2 for _, b, y in steps]
                probs[path] = np.prod([TABLE[a, b] for a, b, _ in steps]) * np.exp(
                    -0.5 * sum(errors)
                )
            for path, prob in probs.items():
                expected[n, range(4), path] += share * prob / sum(probs.values())
    np.testing.assert_allclose(found["z"].probs, expected, rtol=1e-5)
