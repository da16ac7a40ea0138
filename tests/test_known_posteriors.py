"""Every number and sentence of the reports, on models whose posterior is known."""

import functools
import re

import numpy as np
import pytest
from known_zoo import (
    ZOO,
    distortion,
    distortion_of_draw,
    elbo,
    evidence,
    inverse_size,
    rate,
    rate_of_draw,
    reachable,
    true_gap_of_shared,
)
from test_diagnostics import diagnose

BY_NAME = {known.name: known for known in ZOO}
SHARING = [known.name for known in ZOO if known.q]
LOCAL = [known.name for known in ZOO if not known.q]
K = 500


@functools.cache
def report_of(shim, name, seed=0):
    case = shim.Case(BY_NAME[name].program)
    options = {"num_particles": K, "num_shared": 100, "seed": seed}
    return diagnose(shim, "importance_diagnostics", case, **options)


def assert_within(found, exact, error, floor=1e-6):
    """Five standard errors; and the errors are such that this says something."""
    assert np.shape(found) == np.shape(exact)
    np.testing.assert_array_less(np.abs(found - exact), 5 * error + floor)
    assert np.max(error) < 1


@pytest.mark.parametrize("name", BY_NAME)
def test_bounds_of_each_datum_of_what_they_share_and_of_the_whole(thrifty_shim, name):
    known, found = BY_NAME[name], report_of(thrifty_shim, name)
    assert_within(found.elbo, known.datum(elbo) + known.part, found.elbo_error)
    bias = 2 * known.datum(inverse_size) / K if name != "missed mode" else 0.01
    assert_within(found.given.elbo, known.datum(elbo), found.elbo_error)
    assert_within(found.given.iwae, known.datum(reachable), found.iwae_error, 1e-6 + bias)
    assert_within(found.whole.elbo, known.whole_elbo, found.whole.elbo_error)
    sums = [known.scale * bound.sum() for bound in (found.elbo, found.iwae)]
    np.testing.assert_allclose(sums, [found.whole.elbo, found.whole.iwae], rtol=1e-6)
    assert found.whole.iwae < known.whole_evidence + 5 * found.whole.iwae_error + 1e-4
    assert found.whole.iwae > found.whole.elbo - 1e-6
    if known.q:
        assert found.shared.sites == ("mu",)
        assert_within(found.shared.elbo, known.shared_elbo, found.shared.elbo_error)
    else:
        assert found.shared is None


@pytest.mark.parametrize("name", LOCAL)
def test_the_sample_size_is_that_of_the_exact_weights(thrifty_shim, name):
    if name == "missed mode":
        return
    expected = 1 / BY_NAME[name].datum(inverse_size)
    np.testing.assert_allclose(report_of(thrifty_shim, name).ess / K, expected, atol=0.12)


@pytest.mark.thrifty
@pytest.mark.parametrize("name", LOCAL)
def test_the_gap_is_exact_where_states_are_listed(shim, name):
    known = BY_NAME[name]
    found = diagnose(shim, "posterior_gap", shim.Case(known.program))
    np.testing.assert_allclose(found.log_evidence, known.datum(evidence), rtol=1e-6)
    np.testing.assert_allclose(found.elbo, known.datum(elbo), rtol=1e-6, atol=1e-6)
    assert found.is_bound.all()
    text = f"Log evidence {known.datum(evidence).mean():.3f}, ELBO {known.datum(elbo).mean():.3f}"
    assert str(found).startswith(text)
    assert ("per datum" in str(found)) == bool(known.plates)


@pytest.mark.parametrize("name", BY_NAME)
def test_rates_and_distortions_sum_to_the_loss(thrifty_shim, name):
    known, case = BY_NAME[name], thrifty_shim.Case(BY_NAME[name].program)
    found = diagnose(thrifty_shim, "rate_distortion", case, num_draws=K)
    errors = [known.spread(of) / K**0.5 for of in (rate_of_draw, distortion_of_draw)]
    noise = 0.0 if found.shared is None else found.shared.rate_error
    assert_within(found.rate, known.datum(rate) - known.part / np.log(2), errors[0] + noise)
    assert_within(found.distortion, known.datum(distortion), errors[1])
    np.testing.assert_allclose(found.distortion_error, errors[1], rtol=0.5, atol=0.05)
    assert_within(found.whole.elbo, known.whole_elbo, found.whole.elbo_error)
    cost = np.log(2) * found.whole.rate + found.whole.distortion
    np.testing.assert_allclose(-cost, found.whole.elbo, rtol=1e-6)
    sums = [known.scale * found.rate.sum(), known.scale * found.distortion.sum()]
    np.testing.assert_allclose(sums, [found.whole.rate, found.whole.distortion], rtol=1e-6)
    assert ("What the data share, 'mu'" in str(found)) == bool(known.q)
    if known.q:
        error = found.shared.rate_error * np.log(2)
        assert_within(-np.log(2) * found.shared.rate, known.shared_elbo, error)
        assert f"bits (± {found.shared.rate_error:.2f})" in str(found)


@pytest.mark.parametrize("name", ["perfect", "unknown means", "groups"])
def test_the_table_of_an_evaluation_has_the_whole(thrifty_shim, name):
    known, case = BY_NAME[name], thrifty_shim.Case(BY_NAME[name].program)
    found = diagnose(thrifty_shim, "evaluate", case, num_particles=200)
    assert_within(found.whole_elbo, known.whole_elbo, found.whole_elbo_error)
    assert found.whole_bound < known.whole_evidence + 5 * found.whole_bound_error + 1e-4
    assert_within(found.elbo, known.datum(elbo).mean() + known.part, found.elbo_error)
    parts = known.scale * found.per_datum.elbo.sum()
    np.testing.assert_allclose(parts, found.whole_elbo, rtol=1e-6)
    cost = np.log(2) * found.rate + found.distortion
    np.testing.assert_allclose(-cost, found.elbo, rtol=1e-6)
    assert ("all together, ELBO" in str(found)) == bool(known.q)


# What is said


def numbers_after(words, text):
    return [float(number) for number in re.findall(f"{words} (-?[0-9.]*[0-9])", text)]


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_said_is_true(thrifty_shim, name):
    known, found = BY_NAME[name], report_of(thrifty_shim, name)
    text, size = str(found), known.datum(elbo).size
    assert text.startswith(f"{size} data" if known.plates else "All data as one")
    assert ("per datum" in text) == bool(known.plates)
    true_gap = known.whole_evidence - known.whole_elbo
    misses = numbers_after("the guide misses at least", text)
    if known.q:
        assert len(misses) == 3
        error = np.hypot(found.whole.elbo_error, found.whole.iwae_error)
        assert misses[0] < true_gap + 5 * error + 0.01
        assert misses[1] < true_gap_of_shared(known) + 5 * found.shared.gap_error + 0.01
        assert (f"{misses[0]:.2f} ±" in text) == (error >= 0.005)
        own = known.datum(evidence) - known.datum(elbo)
        assert misses[2] < own.mean() + 5 * found.elbo_error.mean() + 0.01
        assert "Verdict on the data, given that, the worst first:" in text
        assert "nats per datum.\nThe draws" in text
    else:
        assert len(misses) == 1
        assert misses[0] < true_gap / size + 5 * found.elbo_error.mean() + 0.01
        together = numbers_after("[0-9], together", text)
        assert len(together) == (size > 1)
        np.testing.assert_allclose(together, [found.gap.sum()][: size > 1], atol=0.006)
    check_verdicts(known, found)


def check_verdicts(known, found):
    """Each word against the exact divergences, a quarter of a nat aside for what is drawn."""
    forward = known.datum(evidence) - known.datum(elbo)
    apart = np.maximum(forward, np.log(known.datum(inverse_size)))
    if known.name == "missed mode":  # as the sentence says, no draw can show it
        assert (found.verdicts == "close").any()
        assert (apart > 1).any()
        assert "cannot show a mode or tail that the guide hardly ever draws" in str(found)
        return
    if known.name == "truncated":  # even on what the guide can draw, which says no more
        assert (found.verdicts == "restricted").all()
        assert "7 undecided, the weights being even on a set of states beyond which" in str(found)
        return
    assert (apart[found.verdicts == "close"] < np.log(2) + 0.25).all()
    assert (apart[found.verdicts == "off"] > np.log(2) - 0.25).all()
    corrected = (found.verdicts == "off") & (found.ess >= 100)
    assert (np.abs(found.iwae - known.datum(evidence))[corrected] < 0.5).all()
    assert np.isin(known.verdict, found.verdicts)


def test_verdicts_on_what_is_shared(thrifty_shim):
    words = {name: report_of(thrifty_shim, name).shared.verdict for name in SHARING}
    gaps = {name: true_gap_of_shared(BY_NAME[name]) for name in SHARING}
    assert words["exact, shared"] == "close"
    assert gaps["unknown means, absurd guide"] > 2
    assert words["unknown means, absurd guide"] != "close"
    assert words["unknown means, over-dispersed"] in ("off", "unreliable")
    assert all(gaps[name] < np.log(2) + 0.25 for name in SHARING if words[name] == "close")


def test_a_relaxed_pair_is_judged_as_the_programs_are(thrifty_shim):
    case = thrifty_shim.Case(BY_NAME["latent classes, masked"].program)
    relax = thrifty_shim.module("infer").relax

    class Relaxed:
        model, guide = relax(case.model), relax(case.guide)
        data, params = case.data, case.params

    options = {"num_particles": 50}
    plain = diagnose(thrifty_shim, "importance_diagnostics", case, **options)
    found = diagnose(thrifty_shim, "importance_diagnostics", Relaxed, **options)
    np.testing.assert_allclose(found.elbo, plain.elbo)
    np.testing.assert_allclose(found.iwae, plain.iwae)
