"""What each latent carries, rate and distortion, and the exact gap, against enumeration."""

import functools

import numpy as np
import oracles
import pytest
from test_diagnostics import VAE, assert_near, diagnose, program_of
from zoo import PROGRAMS, VAE_DATA, draw, log_softmax, vae_terms

NUM_DRAWS = 2000
STORES = {}


@pytest.fixture(autouse=True)
def one_run(request, monkeypatch):
    """Programs are run once, for all that is read of them: what a diagnostic wants is among it."""
    names = {"shim", "thrifty_shim"} & set(request.fixturenames)
    shim = request.getfixturevalue(names.pop())
    collect = shim.module("diagnostics.collect").collect
    readings = shim.module("diagnostics.labels").READINGS

    def collect_all(*args, batch_size, **kwargs):
        *_, (model, _), _, num_draws, _ = args
        key = shim.__name__, id(model), num_draws
        if key not in STORES:  # with the programs, so that their id is not given again
            STORES[key] = args, collect(*args[:-1], readings, **kwargs)
        return STORES[key][1]

    for name in ("latents", "accuracy"):
        monkeypatch.setattr(shim.module(f"diagnostics.{name}"), "collect", collect_all)


@functools.cache
def case_of(shim, program):
    return CASES[program](shim)


def vae_tables():
    """Log q, log p(z) and log p(x | z) of the four states, of both data: (4, 2)."""
    terms = [vae_terms(VAE.params, x) for x in VAE_DATA["x"]]
    return [np.stack(part, 1) for part in zip(*terms, strict=True)]


def vae_probs():
    """Of both data: q of each latent's codes, and the rate of each latent."""
    prior, encoder = (VAE.params[name] for name in ("prior", "encoder"))
    log_q = log_softmax(np.stack([VAE_DATA["x"] @ encoder[0], VAE_DATA["x"] @ encoder[1]], 1))
    return np.exp(log_q), (np.exp(log_q) * (log_q - log_softmax(prior))).sum(-1)


# Codes that are known for sure: data by latents, of three codes each


CODES = np.array([[0, 1], [1, 1], [0, 1], [1, 1], [2, 1]])


def sure_model(ppl, data):
    with ppl.plate("data", len(data["x"])):
        z = ppl.sample("z", ppl.dist.Categorical(logits=ppl.zeros(6).reshape(2, 3)).to_event(1))
        ppl.sample("x", ppl.dist.Normal(z[..., 0] + 0.0 * data["x"], 1.0), obs=data["x"])


def sure_guide(ppl, data):
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Categorical(logits=ppl.param("logits", data)).to_event(1))


# Posteriors that are uniform whatever the data: what varies is the draws


def idle_guide(ppl, data):
    with ppl.plate("data", len(data["x"])):
        logits = ppl.zeros(len(data["x"]) * 6).reshape(-1, 2, 3)
        ppl.sample("z", ppl.dist.Categorical(logits=logits).to_event(1))


SURE = {"logits": 60.0 * np.eye(3)[CODES]}, {"x": CODES[:, 0] + 0.5}
IDLE = {}, {"x": np.zeros(100)}
CASES = {
    "vae": lambda shim: shim.Case(VAE),
    "sure": lambda shim: shim.Case(program_of(sure_model, sure_guide, *SURE)),
    "idle": lambda shim: shim.Case(program_of(sure_model, idle_guide, *IDLE)),
}


def found(shim, name, program, **kwargs):
    return diagnose(shim, name, case_of(shim, program), **kwargs)


def test_usage_counts_codes(thrifty_shim):
    usage = found(thrifty_shim, "code_usage", "sure", num_draws=2)["z"]
    np.testing.assert_array_equal(usage.counts, [[4, 4, 2], [0, 10, 0]])
    np.testing.assert_allclose(usage.share_used, [1.0, 1 / 3])
    assert usage.table_share_used == 1.0
    shares = np.array([0.2, 0.7, 0.1])
    assert usage.table_perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    entropy = -(0.8 * np.log(0.4) + 0.2 * np.log(0.2))
    np.testing.assert_allclose(usage.perplexity, [np.exp(entropy), 1.0])
    assert str(usage).startswith("67% of 3 codes occur in the mean of 2 latents (least 33%)")


def test_a_latent_that_follows_the_data_is_active(thrifty_shim):
    few = found(thrifty_shim, "active_latents", "sure", num_draws=2)["z"]  # may agree by chance
    assert str(few) == "0 of 2 latents are active, 2 may be (more draws tell)."
    active = found(thrifty_shim, "active_latents", "sure", num_draws=8)["z"]
    expected = np.var(np.eye(3)[CODES[:, 0]], axis=0, ddof=1).sum() / 2
    np.testing.assert_allclose(active.variance, [expected, 0.0], atol=1e-12)
    np.testing.assert_array_equal(active.active, [True, False])
    assert str(active) == "1 of 2 latents are active."


def test_noise_of_the_draws_is_not_activity(thrifty_shim):
    active = found(thrifty_shim, "active_latents", "idle", num_draws=2)["z"]
    assert_near(active.variance, 0.0, 1 / 3, 100)
    assert not active.active.any()
    assert "may be (more draws tell)" in str(active)
    store = STORES[thrifty_shim.__name__, id(case_of(thrifty_shim, "idle").model), 2][1]
    means = (store["latent"]["z"].values[..., None] == np.arange(3)).mean(0)
    naive = means.var(0, ddof=1).sum(-1) / 2  # negative control: it is of what varies
    assert (naive > 0.1).all()


def test_rates_are_the_divergences_of_the_latents(shim):
    log_q, log_prior, _ = vae_tables()
    rates = found(shim, "latent_rates", "vae", num_draws=NUM_DRAWS)["z"]
    spread = np.abs(log_q - log_prior).max()
    assert_near(rates.rate, vae_probs()[1].mean(0), spread, 2 * NUM_DRAWS)


def test_a_latent_without_information_has_collapsed(thrifty_shim):
    rates = found(thrifty_shim, "latent_rates", "idle", num_draws=2)["z"]
    np.testing.assert_allclose(rates.rate, 0.0, atol=1e-12)
    assert rates.collapsed.all()
    sure = found(thrifty_shim, "latent_rates", "sure", num_draws=2)["z"]
    np.testing.assert_allclose(sure.rate, np.log(3))
    assert str(sure).startswith("0 of 2 latents have collapsed; rates from 1.58 to 1.58 bits")
    whole = type(sure)(np.full(1, 0.5), 0.01)  # of one latent, or of several together
    assert str(whole).startswith("As a whole, it has not collapsed; rates from 0.72 to 0.72 bits")
    assert str(whole._replace(rate=np.zeros(1))).startswith("As a whole, it has collapsed")
    unclear = whole._replace(rate=np.full(1, 0.01), error=np.full(1, 0.1))
    assert str(unclear).startswith("As a whole, it may have collapsed (more draws tell)")


def test_rate_and_distortion(thrifty_shim):
    report = found(thrifty_shim, "rate_distortion", "sure", num_draws=2, data_range=10.0)
    np.testing.assert_allclose(report.rate, np.full(5, 2 * np.log2(3)))
    np.testing.assert_allclose(report.distortion, 0.125 + 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(report.mse, 0.25)
    np.testing.assert_allclose(report.psnr, 10 * np.log10(100 / 0.25))
    assert str(report).startswith("Rate 3.17 bits")


def test_averages_of_random_codes(shim):
    """Usage, activity, rate and distortion of a guide that is sure of nothing."""
    probs, rates = vae_probs()
    usage = found(shim, "code_usage", "vae", num_draws=NUM_DRAWS)["z"]
    shares = usage.counts / usage.counts.sum(-1, keepdims=True)
    assert_near(shares, probs.mean(0), 0.5, 2 * NUM_DRAWS)
    active = found(shim, "active_latents", "vae", num_draws=NUM_DRAWS)["z"]
    expected = probs.var(0, ddof=1).sum(-1) / 2
    spread = np.abs(probs[0] - probs[1]).max(-1)
    assert_near(active.variance, expected, spread, NUM_DRAWS, floor=1e-3)
    log_q, _, log_likelihood = vae_tables()
    average = found(shim, "rate_distortion", "vae", num_draws=NUM_DRAWS)
    np.testing.assert_allclose(average.rate.mean(), rates.sum(-1).mean() / np.log(2), atol=0.1)
    distortion = -oracles.expect(np.exp(log_q), log_likelihood)
    spread = np.sqrt(oracles.expect(np.exp(log_q), (log_likelihood + distortion) ** 2))
    assert_near(average.distortion, distortion, spread, NUM_DRAWS)


def test_the_exact_gap(shim):
    report = shim.diagnose(shim.module("diagnostics").posterior_gap, shim.Case(VAE))
    log_q, log_prior, log_likelihood = vae_tables()
    evidence = oracles.log_evidence(log_prior + log_likelihood)
    np.testing.assert_allclose(report.log_evidence, evidence, rtol=1e-10)
    divergence = oracles.kl(np.exp(log_q), oracles.posterior(log_prior + log_likelihood))
    np.testing.assert_allclose(report.gap, divergence, rtol=1e-8)
    np.testing.assert_allclose(report.elbo.sum(), -VAE.loss(VAE.params), rtol=1e-10)
    np.testing.assert_allclose(report.support_mass, 1.0)
    assert str(report).startswith("Log evidence ")


def test_the_exact_gap_with_masks_and_sites_outside_of_the_data(thrifty_shim):
    program = {each.name: each for each in PROGRAMS}["nested"]
    case = thrifty_shim.Case(program)
    report = thrifty_shim.diagnose(thrifty_shim.module("diagnostics").posterior_gap, case)
    loss = program.loss(program.params)  # a site outside is split among the documents
    np.testing.assert_allclose([report.elbo.sum(), report.whole_elbo], -loss, rtol=1e-10)
    np.testing.assert_allclose(report.support_mass, 1.0)


def test_the_gap_of_a_truncated_posterior_is_the_mass_it_lacks(thrifty_shim):
    """A guide that is the posterior restricted to a set: gap = -log of the set's mass."""
    logits = draw(2, 4)
    kept = np.array([[True, True, False, True], [False, True, True, False]])
    categorical = thrifty_shim.module("distributions").Categorical

    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", categorical(logits=ppl.param("logits", data)))
            ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", categorical(logits=ppl.param("truncated", data)))

    params = {"logits": logits, "truncated": np.where(kept, logits, -np.inf)}
    case = thrifty_shim.Case(program_of(model, guide, params, {"x": np.zeros(2)}))
    report = thrifty_shim.diagnose(thrifty_shim.module("diagnostics").posterior_gap, case)
    mass = np.where(kept, oracles.softmax(logits, axis=1), 0.0).sum(1)
    np.testing.assert_allclose(report.support_mass, mass, rtol=1e-10)
    np.testing.assert_allclose(report.gap, -np.log(mass), rtol=1e-8)
    np.testing.assert_allclose(report.log_evidence, -0.5 * np.log(2 * np.pi), rtol=1e-10)


def test_continuous_latents_cannot_be_listed(shim):
    program = {each.name: each for each in PROGRAMS}["mixed"]
    with pytest.raises(ValueError, match=r"sites \['c'\] are continuous"):
        shim.diagnose(shim.module("diagnostics").posterior_gap, shim.Case(program))


@pytest.mark.thrifty
def test_sites_of_the_guide_alone_cannot_be_listed(shim):
    """Weights of draws take them; the mixture of two guides is the posterior, at a distance."""

    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(logits=ppl.zeros(2)))
            ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 2):
            half = ppl.dist.Bernoulli(logits=ppl.zeros(2))
            h = ppl.sample("h", half, infer={"is_auxiliary": True})
            ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * h - 1.0))

    case = shim.Case(program_of(model, guide, {}, {"x": np.zeros(2)}))
    with pytest.raises(ValueError, match=r"sites \['h'\] are the guide's alone.*`importance_diag"):
        shim.diagnose(shim.module("diagnostics").posterior_gap, case)
    found = shim.diagnose(shim.module("diagnostics").importance_diagnostics, case)
    p = 1 / (1 + np.exp(-1.0))
    entropy = np.log(2) - p * np.log(p) - (1 - p) * np.log(1 - p)
    elbo = -np.log(2) - 0.5 * np.log(2 * np.pi) + entropy
    np.testing.assert_array_less(np.abs(found.elbo - elbo), 5 * found.elbo_error)


def test_latents_of_no_datum_vary_over_none(shim):
    """Of students and items, whose plates cross; it returned nothing."""

    def latents(ppl):
        for name, dim in (("student", -2), ("item", -1)):
            with ppl.plate(f"{name}s", 2, dim=dim):
                ppl.sample(name, ppl.dist.Bernoulli(logits=ppl.zeros(2)[0]))

    def model(ppl, x):
        latents(ppl)

    def guide(ppl, x):
        latents(ppl)

    case = shim.Case(program_of(model, guide, {}, {"x": np.zeros(2)}))
    refused = pytest.raises(ValueError, match=r"latents \['item', 'student'\] are under no plate")
    with pytest.warns(UserWarning, match="no plate"), refused:
        shim.diagnose(shim.module("diagnostics").active_latents, case)


@pytest.mark.thrifty
@pytest.mark.parametrize("crossed", [False, True])
def test_a_switch_that_the_data_share_is_no_latent_of_theirs(shim, crossed):
    """Beside it active latents were refused, as under no plate."""
    logits = np.array([-60.0, 60.0, -60.0, 60.0])

    def latents(ppl, logits):
        ppl.sample("switch", ppl.dist.Bernoulli(logits=ppl.zeros(2)[0]))
        data, other = ppl.plate("data", 4, dim=-1), ppl.plate("other", 2, dim=-2)
        with data:
            ppl.sample("z", ppl.dist.Bernoulli(logits=logits))
        with other:
            if crossed:
                ppl.sample("row", ppl.dist.Bernoulli(logits=ppl.zeros((2, 1))))
        return data, other

    def model(ppl, inputs):
        data, other = latents(ppl, ppl.zeros(4))
        with data, other:
            ppl.sample("x", ppl.dist.Normal(ppl.zeros(4), 1.0), obs=inputs["x"])

    def guide(ppl, inputs):
        latents(ppl, inputs["logits"])

    case = shim.Case(program_of(model, guide, {}, {"x": np.zeros((2, 4)), "logits": logits}))
    function = shim.module("diagnostics").active_latents
    if crossed:
        with pytest.raises(ValueError, match=r"\['row', 'switch', 'z'\] are under no plate"):
            shim.diagnose(function, case)
        return
    found = shim.diagnose(function, case)
    assert list(found) == ["z"]
    np.testing.assert_allclose(found["z"].variance, 1 / 3)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("active_latents", {"num_draws": 1}, "`num_draws` must be at least 2"),
        ("rate_distortion", {"data_range": 0.0}, "`data_range` must be positive; got 0"),
        ("posterior_gap", {"max_states": 3}, r"needs 4 states per datum .*`max_states` is 3"),
    ],
)
def test_arguments_are_checked(shim, name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        found(shim, name, "vae", **kwargs)


@pytest.mark.thrifty
def test_a_model_without_latents_is_its_own_evidence(shim):
    """It ended in an error of Python's in Pyro."""

    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("x", ppl.dist.Normal(0.0 * data["x"], 1.0), obs=data["x"])

    x = np.array([0.3, -1.2])
    case = shim.Case(program_of(model, lambda ppl, data: None, {}, {"x": x}))
    found = shim.diagnose(shim.module("diagnostics").posterior_gap, case)
    expected = -0.5 * x**2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_evidence, expected, rtol=1e-6)
    np.testing.assert_allclose(found.gap, 0.0, atol=1e-9)
