"""Diagnostics of programs with marked sites are those of the programs that are summed by hand."""

import importlib

import numpy as np
import pytest
from enumerated_zoo import BY_HAND, PROGRAMS, SUM, by_states
from host_zoo import Host, X, bernoulli, seen
from scipy import stats


@pytest.fixture(params=["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def kit(request):
    library = pytest.importorskip({"pyro": "torch", "numpyro": "funsor"}[request.param])
    if request.param == "pyro":
        library.set_default_dtype(library.float64)
    yield Kit(request.param)
    if request.param == "pyro":
        library.set_default_dtype(library.float32)


class Kit:
    """Each diagnostic of a package, of a pair by name, marked or summed by hand."""

    def __init__(self, package):
        self.host = importlib.import_module(f"host_{package}")
        self.diagnostics = importlib.import_module(f"{package}_dvae.diagnostics")
        self.key = ()
        if package == "numpyro":
            self.key = (importlib.import_module("jax").random.key(0),)

    def __call__(self, name, pair, *, by_hand=False, **options):
        marked, summed, guide, params = BY_HAND[pair]
        arrays = {key: np.asarray(value, dtype=float) for key, value in params.items()}
        host = Host(pair, summed if by_hand else marked, guide, arrays, {}, 9)
        return self.of(host, name, **options)

    def of(self, host, name, **options):
        model, guide, leaves = self.host.programs(host)
        if self.key:
            options["params"] = leaves
        else:
            importlib.import_module("pyro").set_rng_seed(0)
        return getattr(self.diagnostics, name)(*self.key, (model, guide), **options)


def test_the_gap_is_that_of_a_sum_by_hand(kit):
    found, expected = (kit("posterior_gap", "upstream", by_hand=b) for b in (False, True))
    for name in ("log_evidence", "elbo"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`posterior`, and `marg")  # a rough guide of what is shared
def test_arviz_has_the_data_and_what_the_sum_says_of_them(kit):
    groups = ("posterior", "log_likelihood", "observed_data", "posterior_predictive")
    options = {"num_draws": 40, "groups": groups}
    found, expected = (kit("to_arviz", "halves", by_hand=b, **options) for b in (False, True))
    assert set(found["posterior"].data_vars) == {"loc", "u"}
    np.testing.assert_array_equal(found["posterior"]["u"], expected["posterior"]["u"])
    likelihoods = (each["log_likelihood"]["x"] for each in (found, expected))
    np.testing.assert_allclose(*likelihoods, rtol=1e-4)
    np.testing.assert_allclose(found["observed_data"]["x"], [-0.5, 2.0])
    assert "x" in found["posterior_predictive"]


def test_the_guide_is_weighed_as_by_hand(kit):
    found, expected = (
        kit("importance_diagnostics", "halves", by_hand=b, num_particles=100) for b in (False, True)
    )
    np.testing.assert_allclose(found.elbo, expected.elbo, rtol=1e-4)
    np.testing.assert_allclose(found.ess, expected.ess, rtol=1e-3)


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits)))


def states_of_upstream():
    """Log joint of each datum of `upstream` at u and z, ``(2, 2, 2)``: no package has its part."""
    u, z = np.arange(2.0)[:, None], np.arange(2.0)
    odds, codes = sigmoid(0.2), sigmoid(1.5 * z - 0.4)
    log_prior = np.log(np.where(z, odds, 1 - odds)) + np.log(np.where(u, codes, 1 - codes))
    return log_prior + stats.norm.logpdf(np.array(X)[:, None, None], 2.0 * z - u)


def test_what_depends_on_a_marked_site_is_weighed_as_by_hand(kit):
    found = kit("importance_diagnostics", "upstream", num_particles=200)
    joint, q = states_of_upstream(), sigmoid([0.4, -0.3])
    q = np.stack([1 - q, q], -1)
    weights = np.logaddexp.reduce(joint, -1) - np.log(q)
    elbo, error = (q * weights).sum(-1), np.sqrt((q * weights**2).sum(-1) / 200)
    assert (np.abs(found.elbo - elbo) < 5 * error).all()
    assert (np.abs(found.iwae - np.logaddexp.reduce(joint, (1, 2))) < 5 * found.iwae_error).all()
    assert not np.any(found.restricted)


def test_the_posterior_of_marked_sites_is_given_draws_in_the_mean(kit):
    probs = np.exp(states_of_upstream())
    given = probs / probs.sum(-1, keepdims=True)  # of z, given u
    true = probs / probs.sum((1, 2), keepdims=True)
    found = kit("discrete_posterior", "upstream", num_draws=400)
    assert found["z"].dims == ("data",)
    assert found["z"].draws is None
    shares = np.stack([(found["u"].draws == u).mean(0) for u in (0, 1)], -1)
    np.testing.assert_allclose(found["z"].probs, (shares[..., None] * given).sum(1), rtol=1e-4)
    found = kit("discrete_posterior", "upstream", num_draws=400, corrected=True)
    error = 5 / np.sqrt(found.report.ess.min())
    np.testing.assert_allclose(found["z"].probs, true.sum(1), atol=0.5 * error)
    np.testing.assert_allclose(found["u"].probs, true.sum(2), atol=0.5 * error)
    assert "z" in str(found)


def test_the_posterior_of_marked_sites_beside_what_data_share(kit):
    """By the draws of locations and codes that the report has kept, with its weights."""
    found = kit("discrete_posterior", "halves", num_draws=50, corrected=True)
    draws = found.report.draws
    assert set(draws.values) == {"loc", "u"}
    loc, u, z = draws.values["loc"][:, None, None], draws.values["u"][..., None], np.arange(2.0)
    odds = sigmoid(0.2 + u)
    probs = np.where(z, odds, 1 - odds)
    probs = probs * stats.norm.pdf(np.array(X)[:, None], loc + 2.0 * z - u)
    weights = np.exp(draws.log_weights - draws.log_weights.max())
    expected = np.average(probs / probs.sum(-1, keepdims=True), 0, weights)
    np.testing.assert_allclose(found["z"].probs, expected, rtol=1e-4)
    assert list(found.sites) == ["u", "z"]


@pytest.mark.parametrize("name", ["mixture", "chain", "nested", "masked", "shared", "all_marked"])
def test_marked_sites_are_told_whatever_their_structure(kit, name):
    """One joint state after the other."""
    host = next(each for each in PROGRAMS if each.name == name)
    found = kit.of(host, "discrete_posterior", num_draws=25)
    for site, expected in by_states(host, found).items():
        np.testing.assert_allclose(found[site].probs, expected, atol=1e-5)


def test_arviz_has_the_probabilities_of_marked_sites(kit):
    """Given draws, in the mean over these; where all is marked, those of a sum over states."""
    probs = np.exp(states_of_upstream())
    given = probs / probs.sum(-1, keepdims=True)  # of z, given u
    expected = (coin([0.4, -0.3])[..., None] * given).sum(1)
    groups = {"groups": ("vi_stats",)}
    table = kit("to_arviz", "upstream", num_draws=2000, **groups)["vi_stats"]
    assert table["z_probs"].dims == ("data", "z_code")
    error = np.ptp(given, 1) / 2 / np.sqrt(2000)
    assert (np.abs(table["z_probs"].values - expected) < 5 * error + 1e-6).all()
    np.testing.assert_allclose(table["z_code_share"], table["z_probs"].mean("data"), rtol=1e-6)
    np.testing.assert_array_equal(table["z_most_likely"], expected.argmax(-1))
    host = next(each for each in PROGRAMS if each.name == "all_marked")
    found = kit.of(host, "discrete_posterior", num_draws=25)
    table = kit.of(host, "to_arviz", num_draws=25, **groups)["vi_stats"]
    for site, each in by_states(host, found).items():
        np.testing.assert_allclose(table[f"{site}_probs"], each, atol=1e-5)


def kl(q, p):
    return (q * np.log(q / p)).sum(-1)


def coin(logits):
    """Of zero and one, on the last axis."""
    return np.stack([sigmoid(-np.asarray(logits)), sigmoid(logits)], -1)


def test_the_rate_of_what_depends_on_a_marked_site_is_of_the_sum(kit):
    found = kit("latent_rates", "upstream", num_draws=2000)
    assert set(found) == {"u"}
    prior = coin(0.2) @ coin([-0.4, 1.1])
    assert 0 < found["u"].error < 0.01
    assert abs(found["u"].rate - kl(coin([0.4, -0.3]), prior).mean()) < 5 * found["u"].error


def below(ppl):
    """Two drawn codes below a marked one, and one that is above it."""
    with ppl.plate("data", 2):
        v = bernoulli(ppl, "v", 0.3)
        z = bernoulli(ppl, "z", v - 0.2, infer=dict(SUM))
        for name, slope in (("u", 1.5), ("w", -2.0)):
            bernoulli(ppl, name, slope * z - 0.4)
        seen(ppl, "x", 2.0 * z - v, X)


def below_guide(ppl):
    with ppl.plate("data", 2):
        for name in "wuv":  # the last is the first of the model
            bernoulli(ppl, name, ppl.param(f"logit_{name}"))


LOGITS = {"v": [0.7, -0.5], "u": [0.4, -0.3], "w": [-1.0, 0.2]}


def test_latents_that_depend_on_the_same_marked_sites_have_one_rate(kit):
    arrays = {f"logit_{name}": np.array(logits) for name, logits in LOGITS.items()}
    found = kit.of(Host("below", below, below_guide, arrays, {}, 9), "latent_rates", num_draws=2000)
    assert set(found) == {"v", "u, w"}
    v, u, w = (coin(LOGITS[name]) for name in "vuw")
    prior = np.einsum("vz,zu,zw->vuw", coin([-0.2, 0.8]), coin([-0.4, 1.1]), coin([-0.4, -2.4]))
    q = np.einsum("nv,nu,nw->nvuw", v, u, w)
    expected = (q * np.log(u[:, None, :, None] * w[:, None, None] / prior)).sum((1, 2, 3)).mean()
    rate = found["u, w"]
    assert 0 < rate.error < 0.03
    assert abs(rate.rate - expected) < 5 * rate.error
    assert abs(found["v"].rate - kl(v, coin(0.3)).mean()) < 1e-6
    assert "tells no collapse" in str(rate)
