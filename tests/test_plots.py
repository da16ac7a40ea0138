"""Each picture draws what its report holds, and complains of nothing.

Plots and reports are one file in both packages, as `test_identical` sees.
"""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def reports(thrifty_shim):
    return thrifty_shim.module("diagnostics.reports")


@pytest.fixture
def uniformity(thrifty_shim):
    return thrifty_shim.module("diagnostics.uniformity")


@pytest.fixture
def verdicts(thrifty_shim):
    return thrifty_shim.module("diagnostics.verdicts")


@pytest.fixture(scope="module")
def plots(thrifty_shim):
    return thrifty_shim.module("diagnostics.plots")


def drawn(figure, tmp_path):
    """The figure's panels, once it has been written to a file."""
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    return figure.axes


def test_history(plots, tmp_path):
    history = [
        {"step": 10, "mean_loss": 5.0, "beta": 1.0, "seconds": 1.0},
        {"step": 20, "mean_loss": 4.0, "beta": 0.1, "eval_loss": 2.0, "seconds": 2.0},
    ]
    axes = drawn(plots.plot_history(history), tmp_path)
    titles = [axis.get_title() for axis in axes if axis.lines]
    assert titles == ["loss of a step, nats", "beta", "loss on held-out data, per datum"]
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[10, 5.0], [20, 4.0]])
    assert axes[1].get_yscale() == "log"
    assert len(drawn(plots.plot_history(history, ["beta"]), tmp_path)) == 1
    sets = [{"step": 1, "ess": 2.3, "replaced": 0.1}]  # of truncated posteriors
    titles = [axis.get_title() for axis in plots.plot_history(sets).axes if axis.lines]
    assert titles == ["effective number of states", "share of a set replaced"]
    with pytest.raises(ValueError, match="`history` is empty"):
        plots.plot_history([])
    with pytest.raises(ValueError, match=r"`keys` must be entries.*'eval_loss'.*got \['loss_'\]"):
        plots.plot_history(history, ["loss_"])
    nothing = [{"step": 1, "mean_loss": 5.0, "eval_loss": np.nan}]
    assert [axis.get_title() for axis in plots.plot_history(nothing).axes] == [
        "loss of a step, nats"
    ]


def importance(verdicts, **changes):
    size = 50
    values = {
        "elbo": RNG.normal(size=size),
        "iwae": RNG.normal(size=size) + 3,
        "ess": RNG.uniform(1, 100, size),
        "khat": np.where(np.arange(size) < 10, np.nan, RNG.normal(0.5, 0.2, size)),
        "largest_weight": RNG.uniform(0.01, 0.3, size),
        "num_tail_weights": np.full(size, 20),
        "num_states": np.full(size, 50),
        "restricted": np.zeros(size, bool),
        "elbo_error": np.full(size, 0.1),
        "iwae_error": np.full(size, 0.1),
        "whole": verdicts.WholeBounds(-50.0, 1.0, -40.0, 1.0),
        "given": verdicts.Given(RNG.normal(size=size), RNG.normal(size=size) + 3),
        "num_particles": 100,
        "khat_threshold": 0.5,
    }
    return verdicts.ImportanceDiagnostics(**(values | changes))


def test_importance(plots, verdicts, tmp_path):
    report = importance(verdicts)
    axes = drawn(plots.plot_importance(report), tmp_path)
    assert sum(len(line.get_xdata()) for line in axes[1].lines[:-1]) == 40
    assert "40 of 50 data have one" in axes[1].get_title()
    heights = Counter()
    for bar in axes[2].patches:
        heights[bar.get_facecolor()] += int(bar.get_height())
    counts = np.unique(report.verdicts, return_counts=True)[1]
    assert len(counts) > 1
    assert sorted(heights.values()) == sorted(counts)


def test_importance_where_nothing_can_be_said(plots, verdicts, tmp_path):
    nothing = np.full(50, np.nan)
    given = verdicts.Given(np.full(50, -np.inf), np.full(50, -np.inf))
    broken = importance(verdicts, ess=nothing, khat=nothing, given=given)
    drawn(plots.plot_importance(broken), tmp_path)
    axes = plots.plot_importance(broken).axes
    assert all("without 50 of 50 data" in axes[i].get_title() for i in (0, 2))
    tied = importance(verdicts, khat=nothing, num_states=np.ones(50))
    assert (
        "within 0.001 nats" in drawn(plots.plot_importance(tied), tmp_path)[1].texts[0].get_text()
    )
    exact = importance(verdicts, given=verdicts.Given(np.zeros(50), RNG.normal(size=50) * 1e-14))
    heights = [bar.get_height() for bar in plots.plot_importance(exact).axes[2].patches]
    assert sum(height > 0 for height in heights) == len(np.unique(exact.verdicts))  # no rounding


def test_codes_and_rates(plots, reports, tmp_path):
    usage = {"z": reports.CodeUsage(RNG.integers(0, 9, size=(3, 6)))}
    usage["b"] = reports.CodeUsage(np.array([7, 3]))
    axes = drawn(plots.plot_codes(usage), tmp_path)
    shares = np.asarray(axes[0].images[0].get_array())
    np.testing.assert_allclose(shares.sum(1), 1.0)
    assert (np.diff(shares, axis=1) <= 0).all()
    rates = {"z": reports.LatentRates(np.array([0.5, 0.001, 1.0]), 0.01)}
    rates["b"] = reports.LatentRates(np.array(0.2), 0.01)
    axes = drawn(plots.plot_rates(rates), tmp_path)
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes[0].patches], np.array([0.5, 0.001, 1.0]) / np.log(2)
    )
    assert axes[0].get_title() == "z: 1 of 3 collapsed"
    noisy = {"z": reports.LatentRates(np.array([0.5, 0.001]), 0.01, np.array([0.01, 0.02]))}
    axes = drawn(plots.plot_rates(noisy), tmp_path)
    assert axes[0].get_title() == "z: 0 of 2 collapsed, 1 undecided"
    turned = {"z": noisy["z"]._replace(reordered=True)}
    axes = drawn(plots.plot_rates(turned), tmp_path)
    assert axes[0].get_title() == "z: parts of a sum alone"
    axes = drawn(plots.plot_rates({"mu": reports.LatentRates(np.array([np.inf]), 0.01)}), tmp_path)
    assert [text.get_text() for text in axes[0].texts] == ["∞"]  # as of a point
    open_ended = {"n": reports.CodeUsage(np.array([5, 3, 1]), True)}
    axes = drawn(plots.plot_codes(open_ended), tmp_path)
    assert axes[0].get_title() == "n: values without a largest one"
    nothing = {"z": reports.CodeUsage(np.zeros((2, 3), int))}
    assert drawn(plots.plot_codes(nothing), tmp_path)[0].get_title() == "z: no latent counts"
    flat = {"z": reports.LatentRates(np.zeros(2), 0.01)}
    assert drawn(plots.plot_rates(flat), tmp_path)[0].get_ylim() == (0, 1)


def test_codes_that_are_masked_in_all_data_are_no_dead_ones(reports):
    """As the last places of sequences that are all shorter."""
    usage = reports.CodeUsage(np.array([[2, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    assert usage.mean_share_used == 0.75
    assert list(usage.in_use) == [True, True, False]
    words = "75% of 4 codes occur in the mean of 2 latents (least 50%); perplexity 3.0 (least 2.0)."
    assert str(usage).startswith(f"{words} 1 more is masked in all data.")
    assert str(usage._replace(counts=np.zeros((3, 4)))) == "All 3 latents are masked in all data."


def test_gradients(plots, reports, tmp_path):
    moments = {
        "noisy": {"w": (np.array([1.0, 0.2]), 8.0)},
        "exact": {"w": (np.array([1.0, 0.1]), 0.0)},
    }
    quality = reports.gradient_quality(moments, 50)
    axes = drawn(plots.plot_gradients(quality), tmp_path)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["noisy", "exact"]
    assert axes[1].texts[0].get_text() == " no noise"


def test_calibration(plots, uniformity, tmp_path):
    ranks = {"z": RNG.integers(0, 16, size=(400, 2)), "log_p": np.zeros(400, int)}
    p_values = {"z": np.array([0.4, 0.2]), "log_p": np.array(0.0)}
    spreads = {"z": np.full((2, 8), 6.6), "log_p": np.full(8, 6.6)}
    calibration = uniformity.Calibration(ranks, p_values, 15, spreads, 4)
    axes = drawn(plots.plot_calibration(calibration), tmp_path)
    assert [axis.get_title() for axis in axes] == ["z: no fault found", "log_p: NOT calibrated"]


def test_images(plots, tmp_path):
    rows = {"data": RNG.random((20, 5, 4)), "samples": RNG.random((3, 5, 4, 3))}
    axes = drawn(plots.plot_images(rows), tmp_path)
    assert len(axes) == 32
    assert [bool(axis.images) for axis in axes] == [True] * 19 + [False] * 13
    for wrong in ({}, {"a": RNG.random((3, 64))}, {"a": RNG.random((0, 8, 8))}):
        with pytest.raises(ValueError, match=r"`rows` must have images \(N, H, W\)"):
            plots.plot_images(wrong)
