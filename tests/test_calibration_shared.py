"""Calibration where data share latents: exact guides pass at the stated rate, wrong ones fail."""

import numpy as np
import pytest
from calibration_zoo import KNOWN, WRONG
from scipy import stats
from test_diagnostics import program_of


def calibrate(shim, known, changes=None, **options):
    def guide(ppl, data):
        known.guide(ppl, data, **(changes or {}))

    case = shim.Case(program_of(known.model, guide, {}, known.data))
    simulate = shim.module("diagnostics").simulation_based_calibration
    return shim.diagnose(simulate, case, data="data['x']", num_draws=15, num_bins=8, **options)


@pytest.mark.parametrize("name", KNOWN)
def test_exact_guides_pass(thrifty_shim, name):
    known = KNOWN[name]
    found = calibrate(thrifty_shim, known, num_simulations=40)
    assert found.miscalibrated == []
    assert found.shared == known.shared
    assert ("log_p of all" in found.ranks) == bool(known.shared)
    for shared in known.shared:
        assert f"The data share {shared}" in str(found)


@pytest.mark.thrifty
def test_what_is_shared_has_one_rank_in_each_simulation(shim):
    found = calibrate(shim, KNOWN["hierarchy"], num_simulations=20)
    assert found.ranks["mu"].shape == found.ranks["log_p of all"].shape == (20,)
    assert found.ranks["z"].shape == found.ranks["log_p"].shape == (120,)
    assert found.counts("mu").sum() == 20
    assert (found.counts("mu").size, found.counts("z").size) == (4, 8)


def test_what_a_mask_silences_has_no_rank(thrifty_shim):
    known = KNOWN["missing"]
    found = calibrate(thrifty_shim, known, num_simulations=20)
    silent = ~known.data["labelled"]
    ranks = found.ranks["z"].reshape(20, -1)
    assert (ranks[:, silent] == -1).all()
    assert (ranks[:, ~silent] >= 0).all()
    assert found.counts("z").sum() == 20 * (~silent).sum()


# All are found by default from the ranks of NumPy's draws, see `test_calibration_rates`.
HERE = {"too narrow", "blind switch"}
GUIDES = [n if n in HERE else pytest.param(n, marks=pytest.mark.slow) for n in WRONG]


@pytest.mark.parametrize("name", GUIDES)
def test_wrong_guides_are_found(thrifty_shim, name):
    model, changes, where = WRONG[name]
    count = 60 if name in HERE else 200  # of 60, a shift is found in every other run
    found = calibrate(thrifty_shim, KNOWN[model], changes, num_simulations=count)
    assert where in {each.removesuffix(" of all") for each in found.miscalibrated}
    assert "NOT calibrated" in str(found)


@pytest.mark.thrifty
def test_a_wrong_guide_of_what_is_shared_is_found(shim):
    found = calibrate(shim, KNOWN["hierarchy"], {"width": 0.4}, num_simulations=60)
    assert "mu" in found.miscalibrated


# Repeats: one long run, cut in parts, each judged as if it were all


NUM_REPEATS, EACH = 200, 20


def repeats(shim, known, monkeypatch):
    """Reports of the parts of one run."""
    module = shim.module("diagnostics.uniformity")
    kept = []

    class Recorder(module.Tally):
        def add(self, simulated):
            kept.append(simulated)
            if len(kept) <= EACH:  # for the report of the run, which is thrown away
                super().add(simulated)

    monkeypatch.setattr(shim.module("diagnostics.calibration"), "Tally", Recorder)
    calibrate(shim, known, num_simulations=NUM_REPEATS * EACH)
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    for i in range(NUM_REPEATS):
        tally = module.Tally(PLATES[known.model.__name__], known.shared, EACH, 15, 8, rng)
        for simulated in kept[i * EACH : (i + 1) * EACH]:
            tally.add(simulated)
        yield tally.report()


PLATES = {name: ("data",) for name in KNOWN} | {"groups": ("rows", "groups"), "switch": ()}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_exact_guides_fail_at_the_stated_rate(shim, monkeypatch, name):
    reports = list(repeats(shim, KNOWN[name], monkeypatch))
    failed = sum(bool(report.miscalibrated) for report in reports)
    # shared by tests that are not independent, 1 % is the most
    assert stats.binomtest(failed, NUM_REPEATS, 0.01, alternative="greater").pvalue > 1e-4
    for quantity in reports[0].p_values:
        p_values = np.array([np.ravel(report.p_values[quantity])[0] for report in reports])
        for level in (0.05, 0.2):
            below = int((p_values <= level).sum())
            assert stats.binomtest(below, NUM_REPEATS, level, "greater").pvalue > 1e-4
        # discrete p-values are below a level less often; not much less
        below = int((p_values <= 0.3).sum())
        assert stats.binomtest(below, NUM_REPEATS, 0.15, "less").pvalue > 1e-4
