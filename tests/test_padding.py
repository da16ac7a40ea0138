"""What verdicts, counts of states and masses say of latents under a mask on which nothing depends.

Padding has no states: neither does a guide leave any out there, nor do draws of it hide that the
guide has one state of what counts.
"""

import itertools

import numpy as np
import pytest
from test_diagnostics import diagnose, program_of

KNOWN = np.array([[True, True, False], [True, False, False], [False, False, False]])
X = np.array([[0.3, 1.4, 5.0], [2.0, -3.0, 0.0], [1.0, 1.0, 1.0]])
PRIOR = np.array([0.2, -0.4, 0.1])
NEVER, EVEN = -1e30, np.zeros(3)
FIRST = np.array([0.0, NEVER, NEVER])
SURE = np.array([60.0, 0.0, 0.0])
TWO = np.array([0.3, NEVER, 0.0])


def program(counted, padding, *, depends=False):
    """Three codes of each datum; the guide's logits where a code counts, and where it is padding.

    What is seen of a datum may depend on its last code, which is padding everywhere.
    """

    def model(ppl, data):
        with ppl.plate("data", 3):
            logits = data["prior"] + ppl.zeros(3)[:, None, None] + ppl.zeros(3)[:, None]
            z = ppl.sample("z", ppl.dist.Categorical(logits=logits).mask(data["known"]).to_event(1))
            far = ppl.dist.Normal(1.0 * z, 1.0).mask(data["known"]).to_event(1)
            ppl.sample("x", far, obs=data["x"])
            if depends:
                ppl.sample("y", ppl.dist.Normal(1.0 * z[..., 2], 1.0), obs=data["x"][:, 0])

    def guide(ppl, data):
        with ppl.plate("data", 3):
            codes = ppl.dist.Categorical(logits=data["logits"])
            ppl.sample("z", codes.mask(data["known"]).to_event(1))

    logits = np.where(KNOWN[..., None], counted, padding)
    data = {"known": KNOWN, "x": X, "prior": PRIOR, "logits": logits}
    return program_of(model, guide, {}, data)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def exact(counted, padding, *, depends):
    """Gap and mass of what the guide can draw, of each datum, by a sum over all states."""
    prior, gaps, masses = softmax(PRIOR), [], []
    for x, known in zip(X, KNOWN, strict=True):
        probs = [softmax(counted if each else padding) for each in known]
        joint, elbo, drawn = 0.0, 0.0, 0.0
        for z in map(np.array, itertools.product(range(3), repeat=3)):
            log_p = np.sum(known * (np.log(prior[z]) - (x - z) ** 2 / 2))
            log_p += depends * -((x[0] - z[2]) ** 2) / 2
            q = np.array([each[code] for each, code in zip(probs, z, strict=True)])
            p = np.exp(log_p) * np.prod(prior[z][~known])
            joint += p
            if q.prod():
                elbo += q.prod() * (log_p - np.sum(known * np.log(q)))
            if (q > 0)[known | (np.arange(3) == 2) & depends].all():
                drawn += p
        gaps.append(np.log(joint) - elbo)
        masses.append(drawn / joint)
    return np.array(gaps), np.array(masses)


CASES = {  # logits where codes count, logits of padding, verdicts, states that the guide can draw
    "pinned padding": (EVEN, FIRST, ["close", "close", "close"], [9, 3, 1]),
    "padding of one state": (EVEN, SURE, ["close", "close", "close"], [9, 3, 1]),
    "one state beside padding": (SURE, EVEN, ["one state", "one state", "close"], [9, 3, 1]),
    "restricted": (TWO, FIRST, ["restricted", "restricted", "close"], [4, 2, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_padding_has_no_states(thrifty_shim, name):
    counted, padding, verdicts, possible = CASES[name]
    case = thrifty_shim.Case(program(counted, padding))
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=200)
    if name != "restricted":  # the others may be "off", which comes first
        assert list(found.verdicts) == verdicts
    assert list(found.restricted) == [each == "restricted" for each in verdicts]
    np.testing.assert_array_equal(found.num_possible, possible)
    assert (found.num_states <= possible).all()
    gap, mass = exact(counted, padding, depends=False)
    found = diagnose(thrifty_shim, "posterior_gap", case)
    np.testing.assert_allclose(found.gap, gap, atol=1e-10)
    np.testing.assert_allclose(found.support_mass, mass, atol=1e-10)


def test_what_is_under_a_mask_has_states_if_it_matters(thrifty_shim):
    case = thrifty_shim.Case(program(EVEN, FIRST, depends=True))
    found = diagnose(thrifty_shim, "importance_diagnostics", case, num_particles=200)
    assert found.restricted.all()
    np.testing.assert_array_equal(found.num_possible, [9, 3, 1])
    gap, mass = exact(EVEN, FIRST, depends=True)
    found = diagnose(thrifty_shim, "posterior_gap", case)
    np.testing.assert_allclose(found.gap, gap, atol=1e-10)
    prior = softmax(PRIOR)
    of_last = prior * np.exp(-((X[:, :1] - np.arange(3)) ** 2) / 2)
    middle = np.array([1.0, prior[0], prior[0]])  # padding, too: with it all is what is meant
    first = np.array([1.0, 1.0, prior[0]])
    np.testing.assert_allclose(mass, of_last[:, 0] / of_last.sum(1), atol=1e-12)
    np.testing.assert_allclose(found.support_mass, mass * middle * first, atol=1e-10)


@pytest.mark.thrifty
def test_arviz_data_tell_which_codes_count(shim):
    case = shim.Case(program(EVEN, FIRST))
    stats = diagnose(shim, "to_arviz", case, num_draws=25, groups=("vi_stats",))["vi_stats"]
    assert stats["z_counted"].dims == stats["z_most_likely"].dims == ("data", "z_dim_0")
    np.testing.assert_array_equal(stats["z_counted"], KNOWN)
