"""`make bench` names what has become slower, and nothing else."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))

import bench  # noqa: E402

KEPT = {"pyro": {"DAPS_ELBO": 1.0, "E-step": 1.6}, "numpyro": {"DAPS_ELBO": 1.1}}


def test_slower_steps_are_named():
    found = {"pyro": {"DAPS_ELBO": 1.3, "E-step": 1.7, "new": 9.0}, "numpyro": {"DAPS_ELBO": 1.2}}
    assert bench.slower(found, KEPT, slack=0.25) == ["pyro: DAPS_ELBO: 1.30, kept 1.00"]
    assert bench.slower(KEPT, KEPT, slack=0.0) == []


def test_the_page_is_of_the_kept_ratios():
    kept = json.loads(bench.KEPT.read_text(encoding="utf-8"))
    assert set(kept) == {"pyro", "numpyro"}
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(kept)


def test_ratios_of_both_kinds_of_benchmark(monkeypatch):
    rows = [{"step": "DAPS_ELBO", "ratio": 1.2}, {"step": "by hand", "ratio": 1.0}]
    line = json.dumps({"rows": rows})
    made = bench.subprocess.CompletedProcess([], 0, stdout=f"table\n{line}\n", stderr="")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: made)
    assert bench.ratios_of("any.py", []) == {"DAPS_ELBO": 1.2}
    steps = [{"step": "E-step", "ratio": 1.5}]
    made.stdout = json.dumps({"generations": 4, "latents": {"64": {"rows": steps}}}) + "\n"
    assert bench.ratios_of("any.py", []) == {"E-step, 64 latents": 1.5}
