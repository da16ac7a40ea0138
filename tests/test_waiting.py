"""Progress bars of reports that take long, and of none else."""

import numpy as np
import pytest
from test_diagnostics import VAE, diagnose

CALLS = {
    "simulation_based_calibration": ({"num_simulations": 5}, "simulations"),
    "posterior_gap": ({"batch_size": 1}, "batches"),
    "importance_diagnostics": ({"num_particles": 30, "batch_size": 1}, "batches"),
}


def test_steps_have_a_bar_once_they_take_long(backend, capsys, monkeypatch):
    waiting = backend.module("diagnostics.waiting")
    assert list(waiting.waited(range(3), "steps")) == [0, 1, 2]
    assert not capsys.readouterr().err
    monkeypatch.setattr(waiting, "_SILENT", 0.0)
    assert list(waiting.waited(iter("ab"), "letters", 2)) == ["a", "b"]
    assert "letters:" in capsys.readouterr().err
    assert list(waiting.waited([5], "one")) == [5]
    assert not capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_reports_show_how_far_they_are(thrifty_shim, capsys, monkeypatch, name):
    options, what = CALLS[name]
    case = thrifty_shim.Case(VAE._replace(data={"x": np.repeat(VAE.data["x"], 2, axis=0)}))
    waiting = thrifty_shim.module("diagnostics.waiting")
    monkeypatch.setattr(waiting, "_SILENT", 1e6)  # however slow the machine is
    diagnose(thrifty_shim, name, case, **options)
    assert not capsys.readouterr().err
    monkeypatch.setattr(waiting, "_SILENT", 0.0)
    diagnose(thrifty_shim, name, case, **options)
    assert f"{what}:" in capsys.readouterr().err
