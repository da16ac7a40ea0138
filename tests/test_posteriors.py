"""`discrete_posterior` beside exact enumeration: the guide's own marginals, and the true ones."""

import itertools

import numpy as np
import pytest
from automatic_lab import lab as make_lab
from scipy import stats

RNG = np.random.default_rng(1)
X = RNG.normal(size=4) + 1.0
NUM_DRAWS = 2000
PRIORS = {  # of the first latent, by its family
    "bernoulli": np.array([0.4, 0.6]),
    "categorical": np.array([0.2, 0.5, 0.3]),
    "one_hot": np.array([0.3, 0.3, 0.4]),
    "binomial": stats.binom.pmf(range(3), 2, 0.4),
    "poisson": stats.poisson.pmf(range(4), 0.2),
}
TABLE = RNG.dirichlet(np.ones(3), size=4)  # of the second, given the first


@pytest.fixture(params=["pyro", "numpyro"])
def lab(request):
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return make_lab(request.param)


def program(family, *, linked):
    def model(ppl, x):
        dists = {
            "bernoulli": lambda: ppl.dist.Bernoulli(ppl.array(0.6)),
            "categorical": lambda: ppl.dist.Categorical(ppl.array(PRIORS["categorical"])),
            "one_hot": lambda: ppl.one_hot(ppl.array(PRIORS["one_hot"])),
            "binomial": lambda: ppl.dist.Binomial(2, ppl.array(0.4)),
            "poisson": lambda: ppl.dist.Poisson(ppl.array(0.2)),
        }
        with ppl.plate("data", len(x), dim=-1):
            a = ppl.sample("a", dists[family]())
            code = a @ ppl.array(np.arange(3.0)) if family == "one_hot" else a
            rows = ppl.integer(code if linked else 0 * code) % len(TABLE)  # Poisson draws any
            b = ppl.sample("b", ppl.dist.Categorical(ppl.array(TABLE)[rows]))
            ppl.sample("x", ppl.dist.Normal(code + 2.0 * b, 1.0), obs=x)

    return model


def exact(family, linked):
    """Probabilities of each joint state of each datum, ``(N, V, 3)``."""
    prior = PRIORS[family]
    a, b = np.arange(len(prior))[:, None], np.arange(3)
    joint = prior[:, None] * TABLE[a if linked else 0 * a, b]
    joint = joint * stats.norm.pdf(X[:, None, None], a + 2 * b)
    return joint / joint.sum((1, 2), keepdims=True)


def softmax(logits):
    logits = np.concatenate([0 * logits, logits], -1) if logits.shape[-1] == 1 else logits
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def fitted(lab, family, linked):
    """A pair with a guide of independent latents, at random parameters."""
    model = lab.bind(program(family, linked=linked))
    guide = lab.guide(model, num_values={"poisson": {"a": 4}}.get(family))
    start = lab.start(guide, lab.array(X))
    rng = np.random.default_rng(0)  # the same, whichever tests run
    params = {name: rng.normal(size=value.shape) for name, value in start.items()}
    return model, guide, params


def assert_within(found, expected, errors):
    assert (np.abs(found - expected) < 5 * errors + 1e-9).all()


def errors_of(posterior, name, probs):
    """Standard errors of probabilities that are shares of weighted draws."""
    weights = np.exp(posterior.log_weights - posterior.log_weights.max(0))
    weights = weights / weights.sum(0)
    hits = posterior[name].draws[..., None] == np.arange(probs.shape[-1])
    return np.sqrt((weights[..., None] ** 2 * (hits - probs) ** 2).sum(0))


LINKED = [True, False]
SLOW = [pytest.param(*p, marks=pytest.mark.slow) for p in itertools.product(PRIORS, LINKED)]
CASES = [("one_hot", True), ("poisson", True), *SLOW]


@pytest.mark.thrifty
@pytest.mark.parametrize(("family", "linked"), CASES)
def test_it_is_the_guides_own_and_corrected_the_true_one(lab, family, linked):
    model, guide, params = fitted(lab, family, linked)
    own = lab.posterior(model, guide, params, X, num_draws=50)
    for name in "ab":
        np.testing.assert_allclose(own[name].probs, softmax(params[name]), rtol=1e-6)
    assert own["b"].dims == ("data",)
    np.testing.assert_array_equal(own["a"].most_likely, softmax(params["a"]).argmax(-1))
    logs = np.log(softmax(params["b"]))
    np.testing.assert_allclose(own["b"].entropy, -(np.exp(logs) * logs).sum(-1), rtol=1e-6)
    found = lab.posterior(model, guide, params, X, num_draws=NUM_DRAWS, corrected=True)
    true = exact(family, linked)
    for name, axis in (("a", 2), ("b", 1)):
        probs = true.sum(axis)
        assert_within(found[name].probs, probs, errors_of(found, name, probs))
        assert (np.abs(softmax(params[name]) - probs).max(-1) > 0.02).any()
    a, b = found.most_likely["a"], found.most_likely["b"]
    states = true.reshape(len(X), -1).argmax(-1)
    np.testing.assert_array_equal(a * 3 + b, states)


@pytest.mark.thrifty
def test_a_table_tells_of_each_site_and_of_the_guide(lab):
    model, guide, params = fitted(lab, "bernoulli", True)
    posterior = lab.posterior(model, guide, params, X, sites=["b"])
    head, columns, line, *report = str(posterior).splitlines()
    assert head.startswith("Posterior of the discrete latents by the guide;")
    assert columns.split() == ["site", "places", "values", "entropy", "mean", "probabilities"]
    assert line.split()[:3] == ["b", "4", "3"]
    assert report == str(posterior.report).splitlines()
    assert "Verdict, the worst first:" in report
    assert set(posterior.sites) == {"b"}


def alone(ppl, x):
    z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
    ppl.sample("x", ppl.dist.Normal(z, 1.0), obs=x[0])


@pytest.mark.thrifty
def test_of_a_model_without_plates(lab):
    """All that it tells is of one place, as arrays without dims."""
    model = lab.bind(alone)
    guide = lab.guide(model)
    params = lab.start(guide, lab.array(X))
    posterior = lab.posterior(model, guide, params, X, num_draws=50)
    site = posterior["z"]
    np.testing.assert_allclose(site.probs, [0.6, 0.4], rtol=1e-6)
    for value in (site.most_likely, site.entropy, site.mean, posterior.most_likely["z"]):
        assert isinstance(value, np.ndarray)
        assert value.shape == ()
    assert repr(site) == "SitePosterior((): 1 places of 2 values)"
    assert repr(posterior) == str(posterior)
    certain = site._replace(probs=np.array([1.0, 0.0]))
    assert not np.signbit(certain.entropy)


def mixed(ppl, x):
    with ppl.plate("data", len(x), dim=-1):
        z = ppl.sample("z", ppl.dist.Bernoulli(ppl.array(0.4)))
        u = ppl.sample("u", ppl.dist.Normal(z, 1.0))
        ppl.sample("x", ppl.dist.Normal(u, 1.0), obs=x)


@pytest.mark.thrifty
def test_beside_continuous_latents_and_with_dependence(lab):
    """Given u, the guide draws z by the model's own dependence; x tells of both."""
    model = lab.bind(mixed)
    guides = lab.primitives.list(model, ["z"])
    guides.append(lab.guide(model))
    # As wide as the posterior: the weights of draws from NumPyro's narrow start are of no use.
    rest = lab.primitives.block(model, hide=["z"])
    guides.append(lab.primitives.normal(rest, init_scale=1.0))
    result = lab.initial(guides, model, lab.array(X))
    posterior = lab.posterior(*result, X, corrected=True, num_draws=NUM_DRAWS)
    ones = 0.4 * stats.norm.pdf(X, 1.0, np.sqrt(2))
    ones = ones / (ones + 0.6 * stats.norm.pdf(X, 0.0, np.sqrt(2)))
    probs = np.stack([1 - ones, ones], -1)
    assert_within(posterior["z"].probs, probs, errors_of(posterior, "z", probs))
    assert posterior.most_likely is None
    assert set(posterior.sites) == {"z"}
    for names, message in [
        (["u"], r"'u' has no discrete .support.*discrete sites, \['z'\]"),
        (["v"], r"'v' is not a latent site.*\['u', 'z'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            lab.posterior(*result, X, sites=names)


@pytest.mark.thrifty
def test_of_a_truncated_guide_and_of_relaxed_programs(lab):
    infer = lab.module("infer")
    model, guide, params = fitted(lab, "categorical", True)
    truncated = infer.TruncatedGuide(model, 9)
    found = lab.posterior(*lab.initial(truncated, model, lab.array(X)), X, num_draws=NUM_DRAWS)
    true = exact("categorical", True)
    for name, axis in (("a", 2), ("b", 1)):
        probs = true.sum(axis)
        assert_within(found[name].probs, probs, np.sqrt(probs * (1 - probs) / NUM_DRAWS))
    model, guide, params = fitted(lab, "one_hot", False)
    relaxed = infer.relax(model, sites=["a"]), infer.relax(guide, sites=["a"])
    found = lab.posterior(*relaxed, params, X, inner=guide)
    np.testing.assert_allclose(found["a"].probs, softmax(params["a"]), rtol=1e-6)
    assert set(found.most_likely) == {"a", "b"}  # as of the programs, whose draws are codes
    weighted = lab.posterior(*relaxed, params, X, inner=guide, corrected=True)
    plain = lab.posterior(model, guide, params, X, corrected=True)
    np.testing.assert_allclose(weighted["a"].probs, plain["a"].probs, atol=0.3)


@pytest.mark.thrifty
def test_too_few_draws_are_refused(lab):
    model, guide, params = fitted(lab, "bernoulli", True)
    with pytest.raises(ValueError, match="`num_draws` must be at least 25"):
        lab.posterior(model, guide, params, X, num_draws=10)
    for sites in ("ab", []):
        with pytest.raises(ValueError, match="`sites` must be a sequence of names, at least one"):
            lab.posterior(model, guide, params, X, num_draws=30, sites=sites)


def without_latents(ppl, x):
    with ppl.plate("data", len(x), dim=-1):
        ppl.sample("b", ppl.dist.Bernoulli(ppl.array(0.5)))


def test_a_guide_that_lacks_a_latent_is_refused_by_name(lab):
    model, guide = lab.bind(program("bernoulli", linked=True)), lab.bind(without_latents)
    with pytest.raises(ValueError, match=r"\['a'\] of the model .* which has \['b'\]\. Sample"):
        lab.posterior(model, guide, {}, X)
