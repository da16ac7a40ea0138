"""Diagnostics of guides whose distance from the posterior is known, in both packages."""

import functools
import itertools

import numpy as np
import oracles
import pytest
from scipy.special import gammaln
from truncated_zoo import CAUSES_DATA, CAUSES_PROGRAM, NESTED_PROGRAM
from zoo import PROGRAMS, VAE_DATA, Program, vae_terms

BY_NAME = {program.name: program for program in PROGRAMS}
VAE = BY_NAME["vae"]


def program_of(model, guide, params, data):
    return Program("diagnosed", model, guide, None, params, data, ("data",), 0)


def diagnose(shim, name, case, *args, **kwargs):
    return shim.diagnose(getattr(shim.module("diagnostics"), name), case, *args, **kwargs)


def vae_tables():
    """Log q and log weights of the four states, of both data: (4, 2)."""
    terms = [vae_terms(VAE.params, x) for x in VAE_DATA["x"]]
    log_q, log_prior, log_likelihood = (np.stack(part, 1) for part in zip(*terms, strict=True))
    return log_q, log_prior + log_likelihood - log_q


def assert_near(found, expected, spread, num_draws, floor=1e-12):
    """Within five standard errors of the exact value."""
    assert (np.abs(found - expected) < 5 * spread / np.sqrt(num_draws) + floor).all()


# Importance weights


@functools.cache
def vae_weights(shim, num_particles=4000):
    case = shim.Case(VAE)
    return diagnose(shim, "importance_diagnostics", case, num_particles=num_particles)


def test_bounds_and_sample_size_tend_to_the_exact_ones(thrifty_shim):
    log_q, log_weights = vae_tables()
    found = vae_weights(thrifty_shim)
    q, weights = np.exp(log_q), np.exp(log_weights)
    elbo = oracles.expect(q, log_weights)
    spread = np.sqrt(oracles.expect(q, (log_weights - elbo) ** 2))
    assert_near(found.elbo, elbo, spread, 4000)
    evidence = oracles.expect(q, weights)
    spread = np.sqrt(oracles.expect(q, (weights - evidence) ** 2)) / evidence
    assert_near(found.iwae, np.log(evidence), spread, 4000, floor=1e-3)
    square = oracles.expect(q, weights**2)
    spread = np.sqrt(oracles.expect(q, (weights**2 / square - 2 * weights / evidence + 1) ** 2))
    assert_near(found.ess / 4000, evidence**2 / square, spread, 4000)
    assert (found.num_states == 4).all()


def expected_bound(log_q, log_weights, num_particles):
    """Mean and spread of the bound over all draws of K states: by how often each is drawn."""
    num_states = len(log_q)
    bars = itertools.combinations(range(num_particles + num_states - 1), num_states - 1)
    ends = np.array([(-1, *each, num_particles + num_states - 1) for each in bars])
    counts = np.diff(ends, axis=1) - 1
    ways = gammaln(num_particles + 1) - gammaln(counts + 1).sum(1)
    probs = np.exp(ways[:, None] + counts @ log_q)
    np.testing.assert_allclose(probs.sum(0), 1.0)
    bound = np.log(counts @ np.exp(log_weights) / num_particles)
    mean = oracles.expect(probs, bound)
    return mean, np.sqrt(oracles.expect(probs, (bound - mean) ** 2))


def test_the_bound_of_few_draws_is_below_the_evidence_by_as_much_as_it_should(thrifty_shim):
    """The test above has it at 4000 draws, where it is the evidence."""
    log_q, log_weights = vae_tables()
    program = VAE._replace(data={"x": np.repeat(VAE_DATA["x"], 200, axis=0)})
    case = thrifty_shim.Case(program)
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=25)
    mean, spread = expected_bound(log_q, log_weights, 25)
    assert_near(found.iwae.reshape(2, 200).mean(1), mean, spread, 200)
    bounds = [expected_bound(log_q, log_weights, k)[0] for k in (1, 5, 25)]
    np.testing.assert_allclose(bounds[0], oracles.expect(np.exp(log_q), log_weights))
    evidence = oracles.log_evidence(log_q + log_weights)
    missing = evidence - np.stack(bounds)
    assert (missing[1:] < missing[:-1] / 2).all()
    assert (missing > 0).all()
    with pytest.raises(AssertionError):  # negative control: the ELBO is another number
        assert_near(found.elbo.reshape(2, 200).mean(1), mean, spread, 200)


def mixed_guides_model(ppl, data):
    """Latents whose posterior is their prior, as the observation does not depend on them."""
    logits, bits = ppl.param("p_logits", data), ppl.param("p_bits", data)
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Categorical(logits=logits))
        ppl.sample("bits", ppl.dist.Bernoulli(logits=bits).to_event(1))
        ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])


def mixed_guides(ppl, data):
    logits, bits = ppl.param("q_logits", data), ppl.param("q_bits", data)
    with ppl.plate("data", len(data["x"])):
        ppl.sample("z", ppl.dist.Categorical(logits=logits))
        ppl.sample("bits", ppl.dist.Bernoulli(logits=bits).to_event(1))


SURE = 60.0  # a logit whose code is always drawn
SHIFTS = 0.25 * np.random.default_rng(1).normal(size=30)
EXACT = np.log([0.3, 0.7]), np.zeros(30)
GUIDES = {  # verdict, and posterior and guide of a categorical, of 30 bits
    "perfect": ("close", (EXACT[0], EXACT[0]), (EXACT[1], EXACT[1])),
    "two weights": ("off", (np.log([0.999, 0.001]), np.log([0.25, 0.75])), (EXACT[1], EXACT[1])),
    "stuck": ("one state", (EXACT[0], np.array([SURE, 0.0])), (EXACT[1] + SURE, EXACT[1] + SURE)),
    "dominated": ("unreliable", (np.log([0.999, 0.001]), np.log([0.003, 0.997])), (EXACT[1],) * 2),
    "Gaussian": ("close", (EXACT[0], EXACT[0]), (EXACT[1], SHIFTS)),
    "Gaussian, wide": ("off", (EXACT[0], EXACT[0]), (EXACT[1], 2.0 * SHIFTS)),
}


@functools.cache
def judged(shim):
    columns = list(zip(*(guide[1:] for guide in GUIDES.values()), strict=True))
    params = {
        f"{side}_{name}": np.stack([pair[i] for pair in column])
        for name, column in zip(("logits", "bits"), columns, strict=True)
        for i, side in enumerate("pq")
    }
    data = {"x": np.zeros(len(GUIDES))}
    case = shim.Case(program_of(mixed_guides_model, mixed_guides, params, data))
    return diagnose(shim, "importance_diagnostics", case, num_particles=1000)


@pytest.mark.parametrize("name", GUIDES)
def test_the_verdict_is_right_where_a_plain_khat_is_not(shim, name):
    found, i = judged(shim), list(GUIDES).index(name)
    assert found.verdicts[i] == GUIDES[name][0]
    assert np.isfinite(found.khat[i]) == name.startswith("Gaussian")
    if name in ("perfect", "stuck"):
        np.testing.assert_allclose(found.ess[i], 1000)
    if name == "two weights":
        assert 0.2 < found.ess[i] / 1000 < 0.3


def test_the_lines_say_so(shim):
    first, bounds, worth, tails, title, *found, unseen = str(judged(shim)).splitlines()
    assert first == "6 data, 1000 draws each."
    assert bounds.startswith("ELBO ")
    assert worth.startswith("The draws are worth ")
    assert tails.startswith("k̂ applies to 2 data")
    assert title == "Verdict, the worst first:"
    starts = ["1 unreliable", "2 off by more than 0.69 nats by these draws, though", "1 undecided"]
    for line, start in zip(found, [*starts, "2 close to the posterior"], strict=True):
        assert line.strip().startswith(start)
        assert len(line) < 140
    assert unseen.startswith("Draws cannot show a mode or tail that the guide hardly ever draws")


def test_a_heavy_tail_is_unreliable(thrifty_shim):
    """Guides of a sixth of the posterior's width: k = 1 - 1/36, known to a tenth or two."""

    def program(width):
        def run(ppl, data):
            with ppl.plate("data", 40):
                ppl.sample("c", ppl.dist.Normal(0.0, ppl.param(width, data)))
                if width == "p":
                    ppl.sample("x", ppl.dist.Normal(0.0, 1.0), obs=data["x"])

        return run

    params = {"p": np.ones(40), "q": np.repeat([1 / 6, 1.2], 20)}
    case = thrifty_shim.Case(program_of(program("p"), program("q"), params, {"x": np.zeros(40)}))
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=1000)
    assert (found.verdicts[:20] == "unreliable").sum() > 12
    assert (found.verdicts[20:] == "close").all()
    assert (found.num_states == 1000).all()
    np.testing.assert_allclose(found.khat[:20].mean(), 35 / 36, atol=0.25)


def test_an_impossible_datum_is_broken(thrifty_shim):
    def model(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(0.5 + ppl.zeros(2)))
            ppl.sample("x", ppl.dist.Delta(ppl.zeros(2)), obs=data["x"])

    def guide(ppl, data):
        with ppl.plate("data", 2):
            ppl.sample("z", ppl.dist.Bernoulli(0.5 + ppl.zeros(2)))

    case = thrifty_shim.Case(program_of(model, guide, {}, {"x": np.array([0.0, 1.0])}))
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=30)
    assert list(found.verdicts) == ["close", "broken"]
    assert "1 broken" in str(found)


def test_draws_where_the_posterior_has_nothing_are_not_close(shim):
    """Their weight is 0, which the effective sample size does not mind; the ELBO does."""
    lower = np.array([-0.1, -0.5, -0.8, -9, -40, -0.6])
    given = shim.module("diagnostics.verdicts").Given(lower, np.zeros(6))
    report = judged(shim)._replace(ess=np.full(6, 900.0), given=given)
    report = report._replace(khat=np.full(6, np.nan), largest_weight=np.full(6, 0.01))
    report = report._replace(num_states=np.full(6, 2), restricted=np.arange(6) > 4)
    assert list(report.verdicts) == ["close", "close", "off", "off", "off", "restricted"]


def test_few_particles_are_refused(shim):
    with pytest.raises(ValueError, match=r"`num_particles` must be at least 25.*got 8"):
        vae_weights(shim, num_particles=8)


def test_a_truncated_guide_is_not_called_close(thrifty_shim):
    """Its weights are equal whatever its sets lack, which the exact gap knows."""
    program = CAUSES_PROGRAM
    found = thrifty_shim.diagnose_sets(program, num_states=5, name="importance_diagnostics")
    np.testing.assert_allclose(found.ess, found.num_particles, rtol=1e-6)
    assert (found.verdicts == "restricted").all()
    assert "6 undecided, the weights being even on a set" in str(found)
    assert "`posterior_gap` tells" in str(found)  # which lists the model's states
    gap = thrifty_shim.diagnose_sets(program, num_states=5, name="posterior_gap")
    evidence = oracles.log_evidence(program.log_joint(program.params, CAUSES_DATA))
    np.testing.assert_allclose(gap.log_evidence, evidence, rtol=1e-8)
    np.testing.assert_allclose(gap.gap, -np.log(gap.support_mass), rtol=1e-6)
    np.testing.assert_allclose(gap.elbo, found.elbo, rtol=1e-6)
    assert (gap.gap > 0).all()
    assert gap.gap.max() > 0.1  # of sets that are drawn


def test_where_cells_lead_each_other_the_gap_is_not_named(thrifty_shim):
    """`posterior_gap` refuses these, as no datum has states of its own."""
    with pytest.warns(UserWarning, match="under plate .'words'. the log-density of a cell changes"):
        found = thrifty_shim.diagnose_sets(
            NESTED_PROGRAM, num_states=2, name="importance_diagnostics"
        )
    assert not found.is_listable.any()
    assert "2 undecided, the weights being even on a set" in str(found)
    assert "posterior_gap" not in str(found)


def test_a_truncated_guide_in_arviz(thrifty_shim):
    """Draws are members of the sets, at weights that are all the bound."""
    with pytest.warns(UserWarning, match="`marginal`.* is not the evidence of 6 of 6 data"):
        idata = thrifty_shim.diagnose_sets(CAUSES_PROGRAM, num_states=5, name="to_arviz")
    gap = thrifty_shim.diagnose_sets(CAUSES_PROGRAM, num_states=5, name="posterior_gap")
    weights = idata["sample_stats"]["log_weight"].values[0]
    np.testing.assert_allclose(weights, np.broadcast_to(gap.elbo, weights.shape), rtol=1e-6)
    sites = idata["posterior"].values()
    codes = np.stack([site.values[0].reshape(len(weights), 6, -1) for site in sites], -1)
    states = [{tuple(state.ravel()) for state in codes[:, datum]} for datum in range(6)]
    assert all(len(each) <= 5 for each in states)
    assert max(map(len, states)) > 1
    assert (idata["vi_stats"]["verdict"].values == "restricted").all()
    assert codes.dtype.kind == "i"
