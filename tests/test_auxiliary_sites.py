"""Sites that the guide alone draws: the ELBO is called no bound, and weights leave them out."""

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of
from zoo import bernoulli, normal

X = np.array([1.3, 0.2, 2.4, -0.5])
SAYS = "The guide alone draws 'u': the ELBO, which is minus the loss, and rates count log q"
MARK = {"is_auxiliary": True}
NODES, MASSES = np.polynomial.hermite_e.hermegauss(60)
MASSES = MASSES / MASSES.sum()


def rows(ppl):
    return ppl.plate("data", len(X))


def model(ppl, data):
    """A bit of each datum."""
    with rows(ppl):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])


def of_bits(ppl, data):
    """The bit leans to one side or the other, as a bit of the guide's own says."""
    with rows(ppl):
        u = ppl.sample("u", ppl.dist.Bernoulli(logits=0.3 + 0.0 * data["x"]), infer=dict(MARK))
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"] - 2.4 + u))


def of_noise(ppl, data):
    with rows(ppl):
        u = ppl.sample("u", ppl.dist.Normal(0.0 * data["x"], 0.3), infer=dict(MARK))
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"] - 2.4 + u))


def of_shared_noise(ppl, data):
    u = ppl.sample("u", ppl.dist.Normal(data["zero"], 0.3), infer=dict(MARK))
    with rows(ppl):
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"] - 2.4 + u))


def bits():
    log_q = [bernoulli(u, 0.3) for u in (0, 1)]
    return np.array([0.0, 1.0]), np.exp(log_q), np.array(log_q)


def noise():
    u = 0.3 * NODES
    return u, MASSES, normal(u, 0.0, np.log(0.3))


def exact(grid):
    """Evidence, the loss's ELBO, and the bound that leaves log q of `u` out, of each datum."""
    u, share, log_q_u = grid
    z, x = np.arange(2)[:, None, None], X[:, None]
    log_p = bernoulli(z, -0.4) + normal(x, 2.0 * z)
    log_q = bernoulli(z, 2.0 * x - 2.4 + u)
    bound = (np.exp(log_q) * (log_p - log_q)).sum(0) @ share
    evidence = np.logaddexp.reduce(np.broadcast_to(log_p, log_q.shape)[..., 0], axis=0)
    return evidence, bound - share @ log_q_u, bound


def case_of(shim, guide, of=model, **data):
    return shim.Case(program_of(of, guide, {}, {"x": X, "zero": np.zeros(()), **data}))


@pytest.mark.thrifty
@pytest.mark.parametrize(
    ("guide", "grid"), [(of_bits, bits), (of_noise, noise), (of_shared_noise, noise)]
)
def test_weights_bound_the_evidence_and_the_loss_does_not(shim, guide, grid):
    evidence, loss, bound = exact(grid())
    shared = guide is of_shared_noise
    total = bound.sum() + (loss - bound)[0] * (1 if shared else len(X))
    found = diagnose(shim, "importance_diagnostics", case_of(shim, guide), num_particles=800)
    assert found.auxiliary == ("u",)
    assert not found.is_bound.any()
    part = (loss - bound) / len(X) if shared else loss - bound
    np.testing.assert_array_less(np.abs(found.elbo - bound - part), 5 * found.elbo_error + 1e-6)
    assert abs(found.whole.elbo - total) < 5 * found.whole.elbo_error
    np.testing.assert_allclose(found.elbo.sum(), found.whole.elbo, rtol=1e-6)
    if guide is of_bits:  # the fault: what the loss sums is above the evidence
        assert total > evidence.sum() + 1
        assert found.whole.elbo > evidence.sum() + 1
    np.testing.assert_array_less(np.abs(found.given.iwae - evidence), 5 * found.iwae_error + 2e-3)
    assert abs(found.whole.iwae - evidence.sum()) < 5 * found.whole.iwae_error + 0.01
    np.testing.assert_allclose(found.gap, evidence - bound, atol=0.1)
    check_words(found, evidence, bound)


def check_words(found, evidence, bound):
    text = str(found)
    assert SAYS in text
    assert text.endswith("and the ELBO is a bound.")
    assert ": the guide misses" not in text
    far = np.maximum(evidence - bound, 0) > np.log(2) + 0.3
    assert not (found.verdicts == "close")[far].any()


@pytest.mark.thrifty
def test_all_reports_say_so(shim):
    evidence, loss, _ = exact(bits())
    case = case_of(shim, of_bits)
    table = diagnose(shim, "evaluate", case, num_particles=400)
    cost = diagnose(shim, "rate_distortion", case, num_draws=400)
    for report in (table, cost):
        assert report.auxiliary == ("u",)
        assert SAYS in str(report)
    assert abs(table.elbo - loss.mean()) < 5 * table.elbo_error
    assert table.importance_weighted_bound < evidence.mean() + 5 * table.bound_error + 0.01
    total = -np.log(2) * cost.whole.rate - cost.whole.distortion
    np.testing.assert_allclose(total, cost.whole.elbo, rtol=1e-6)
    assert SAYS in str(diagnose(shim, "discrete_posterior", case, num_draws=100))
    idata = diagnose(shim, "to_arviz", case, num_draws=400)
    assert idata["vi_stats"].attrs["auxiliary"] == "u"
    marginal = idata["log_likelihood"]["marginal"].values
    np.testing.assert_allclose(marginal.mean((0, 1)), evidence, atol=0.1)


@pytest.mark.thrifty
def test_in_the_model_as_well_it_has_its_part_in_a_bound(shim):
    """What the sentence advises."""

    def extended(ppl, data):
        with rows(ppl):
            z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
            ppl.sample("u", ppl.dist.Bernoulli(logits=0.3 + 0.5 * z))
            ppl.sample("x", ppl.dist.Normal(2.0 * z, 1.0), obs=data["x"])

    found = diagnose(shim, "posterior_gap", case_of(shim, of_bits, extended))
    evidence, _, _ = exact(bits())
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-6)
    assert (found.gap > 0).all()
    report = diagnose(shim, "importance_diagnostics", case_of(shim, of_bits, extended))
    assert report.auxiliary == ()
    assert report.is_bound.all()


def split_model(ppl, data):
    with rows(ppl):
        a = ppl.sample("a", ppl.dist.Bernoulli(logits=0.2 + 0.0 * data["x"]))
        b = ppl.sample("b", ppl.dist.Bernoulli(logits=0.7 - a))
        ppl.sample("x", ppl.dist.Normal(a + 2.0 * b, 1.0), obs=data["x"])


def split_guide(ppl, data):
    """Two bits at once, as one code: the bits tell it, or, of more codes, do not."""
    with rows(ppl):
        logits = 0.5 * data["x"][:, None] * data["codes"]
        u = ppl.sample("u", ppl.dist.Categorical(logits=logits), infer=dict(MARK))
        ppl.sample("a", ppl.dist.Delta(1.0 * (u % 2)))
        ppl.sample("b", ppl.dist.Delta(1.0 * (u // 2 % 2)))


@pytest.mark.thrifty
@pytest.mark.parametrize("num_codes", [4, 8])
def test_a_code_that_the_latents_tell_is_their_own(shim, num_codes):
    a, b = (np.array(bits)[:, None] for bits in ([0, 1, 0, 1], [0, 0, 1, 1]))
    log_p = bernoulli(a, 0.2) + bernoulli(b, 0.7 - a) + normal(X, a + 2.0 * b)
    evidence = np.logaddexp.reduce(log_p, axis=0)
    case = case_of(shim, split_guide, split_model, codes=0.5 * np.arange(num_codes))
    found = diagnose(shim, "importance_diagnostics", case, num_particles=2000)
    assert found.auxiliary == (() if num_codes == 4 else ("u",))
    assert (found.iwae < evidence + 5 * found.iwae_error + 0.01).all()
    if num_codes == 4:
        assert not found.restricted.any()
        np.testing.assert_array_less(np.abs(found.iwae - evidence), 5 * found.iwae_error + 0.01)


@pytest.mark.thrifty
def test_a_code_that_cannot_be_drawn_restricts_what_is_computed_of_it(shim):
    codes = np.array([0.0, 0.0, 0.0, -1e30])
    case = case_of(shim, split_guide, split_model, codes=codes)
    found = diagnose(shim, "importance_diagnostics", case, num_particles=50)
    assert found.restricted[X > 0].all()


def centred(ppl, data):
    """What the data share is continuous, and computed of noise."""
    mu = ppl.sample("mu", ppl.dist.Normal(data["zero"], 1.0))
    with rows(ppl):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(mu + 2.0 * z, 1.0), obs=data["x"])


def computed(of, *spreads):
    def guide(ppl, data):
        noise = [
            ppl.sample(f"u{i}", ppl.dist.Normal(data["zero"], spread), infer=dict(MARK))
            for i, spread in enumerate(spreads)
        ]
        ppl.sample("mu", ppl.dist.Delta(of(*noise)))
        with rows(ppl):
            ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"] - 2.4))

    return guide


@pytest.mark.thrifty
def test_noise_that_a_latent_is_computed_of_has_its_density(shim):
    one = case_of(shim, computed(lambda u: 0.5 + u, 0.4), centred)
    assert diagnose(shim, "evaluate", one, num_particles=30).auxiliary == ()
    two = case_of(shim, computed(lambda u, v: 0.5 + u + v, 0.4, 0.3), centred)
    with pytest.raises(ValueError, match=r"sites \['u0', 'u1'\] of the guide alone are 2 numbers"):
        diagnose(shim, "evaluate", two, num_particles=30)
    rest = case_of(shim, computed(lambda u, v: 0.5 + u, 0.4, 0.3), centred)
    found = diagnose(shim, "importance_diagnostics", rest, num_particles=100, num_shared=25)
    assert found.auxiliary == ("u1",)
    assert SAYS.replace("'u'", "'u1'") in str(found)


def rates_of(shim, guide, of):
    case = case_of(shim, guide, of)
    rates = diagnose(shim, "latent_rates", case, num_draws=400)
    cost = diagnose(shim, "rate_distortion", case, num_draws=400)
    return rates, cost


def pair_model(ppl, data):
    mu = ppl.sample("mu", ppl.dist.Normal(data["zero"], 1.0))
    nu = ppl.sample("nu", ppl.dist.Normal(mu, 1.0))
    with rows(ppl):
        z = ppl.sample("z", ppl.dist.Bernoulli(logits=-0.4 + 0.0 * data["x"]))
        ppl.sample("x", ppl.dist.Normal(nu + 2.0 * z, 1.0), obs=data["x"])


def pair_guide(ppl, data):
    """Both of one draw, as automatic guides of a joint normal."""
    noise = ppl.dist.Normal(data["zero"] + ppl.zeros(2), 0.4).to_event(1)
    u = ppl.sample("u", noise, infer=dict(MARK))
    ppl.sample("mu", ppl.dist.Delta(u[..., 0]))
    ppl.sample("nu", ppl.dist.Delta(u[..., 1] + 0.5 * u[..., 0]))
    with rows(ppl):
        ppl.sample("z", ppl.dist.Bernoulli(logits=2.0 * data["x"] - 2.4))


@pytest.mark.thrifty
def test_rates_of_computed_latents_have_the_density_of_what_they_are_computed_of(shim):
    """KL(q ‖ p) in closed form: it was log q of a point, 0, less log p."""
    rates, cost = rates_of(shim, computed(lambda u: 0.5 + u, 0.4), centred)
    exact = -np.log(0.4) + (0.4**2 + 0.5**2 - 1) / 2
    assert abs(rates["mu"].rate - exact) < 5 * rates["mu"].error
    assert set(rates) == {"mu", "z"}
    rates, cost = rates_of(shim, pair_guide, pair_model)
    assert set(rates) == {"mu, nu", "z"}
    squares = 0.4**2 * (1.0 + 1.0 + 0.5**2)  # of mu, and of nu - mu: of u1 - u0 / 2
    exact = -2 * np.log(0.4) - 1 + squares / 2
    assert abs(rates["mu, nu"].rate - exact) < 5 * rates["mu, nu"].error
    assert abs(cost.shared.rate * np.log(2) - exact) < 5 * cost.shared.rate_error
