"""Examples answer bad input with one line."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

sys.path[:0] = [str(EXAMPLES / "tools"), str(EXAMPLES / "benchmarks")]

from cli import run_main  # noqa: E402
from run_examples import run  # noqa: E402


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train.py", "--method", "magic"), "--method: invalid choice: 'magic'"),
        (("train.py", "--data", "faces"), "data 'faces': no such folder; choose one of d"),
        (("train.py", "--data", "a/faces"), "data 'a/faces': no such folder; choose one of d"),
        (("train.py", "--data", "{file}"), "is neither a .npz file nor a folder; choose one of"),
        (("train.py", "--data", "no", "--image-size", "8"), "of pictures; --data no does not exi"),
        (("train.py", "--data", "digits", "--image-size", "8"), "of pictures; --data digits is n"),
        (("train.py", "--config", "motion", "--data", "missing.npy"), "no such file: missing.npy"),
        (("denoise.py", "missing.png"), "no such file: missing.png"),
        (("train.py", "--data", "missing.npz"), "error: no such file: missing.npz"),
        (("train.py", "--data", "mnist", "--data-root", "/proc/none"), "data mnist cannot be had"),
        (("train.py", "--steps", "0"), "--steps: expected a whole number of at least 1, got '0'"),
        (("train.py", "--smoke", "--target-ess", "1.5", "--out", "{out}"), "`target_ess`"),
        (("train.py", "--method", "exact", "--kl-bound", "1"), "--kl-bound is an option of"),
        (("train.py", "--num-particles", "1", "--out", "{out}"), "`num_particles`"),
        (("train.py", "--method", "disarm"), "--method disarm needs --prior bernoulli"),
        (("train.py", "--num-states", "5"), "--num-states is an option of --method truncated"),
        (("train.py", "--method", "truncated", "--guide", "independent"), "has no encoder"),
        (("noisy_or.py", "--causes", "13"), "--causes 13: at most 12"),
        (("denoise.py", "--missing", "1"), "--missing 1.0: a fraction, in [0, 1)"),
        (("denoise.py", "--sigma", "inf"), "--sigma inf: must be 0 or more, and finite"),
        (("denoise.py", "--sigma", "0"), "--sigma 0 takes holes to fill: give --missing"),
        (("noisy_or.py", "--num-patients", "0"), "--num-patients: expected a whole number of at l"),
        (("train.py", "--method", "reinmax", "--config", "mnist"), "needs --guide independent"),
        (("train.py", "--method", "vq", "--guide", "independent"), "has a guide of its own"),
        (("train.py", "--method", "fsq", "--prior", "bernoulli"), "its latents are codes"),
        (("train.py", "--method", "gumbel", "--prior", "autoregressive"), "another --prior"),
        (
            ("train.py", "--second-stage-steps", "9", "--prior", "autoregressive"),
            "--second-stage-steps needs --prior uniform or categorical",
        ),
        (
            ("train.py", "--binarize", "dynamic", "--likelihood", "gaussian"),
            "--binarize dynamic needs --likelihood bernoulli",
        ),
        (("train.py", "--batch-size", "9999"), "only 1497 training images"),
        (("train.py", "--beta-to", "0"), "--beta-to must be positive, got 0"),
        (("train.py", "--out", "{file}/below", "--smoke"), "cannot be written to"),
        (("train.py", "--out", "{out}", "--smoke", "--resume"), "holds no checkpoint.pt"),
        (("train.py", "--method", "exact", "--smoke", "--out", "{out}"), "states"),
        (("compare.py", "--methods", "daps", "magic"), "--methods magic: choose among"),
        (("league.py", "--methods", "magic"), "--methods magic: choose among"),
        (("gradient_quality.py", "--estimators", "magic"), "--estimators magic: choose"),
        (("gradient_quality.py", "--num-particles", "3"), "must be even, for pairs"),
        (("gradient_quality.py", "--num-repeats", "9"), "--num-repeats must be at"),
        (("compare.py", "--out", "{file}/below"), "cannot be written to"),
        (("diagnose.py", "{out}"), "no such folder: "),
        (("diagnose.py", "{here}"), "is not a folder of train.py's"),
        (("diagnose.py", "--num-draws", "3"), "--num-draws must be at least 25"),
        (("bars.py", "--noise", "-1"), "--noise -1.0: from 1e-06 to 1e+06"),
        (("bars.py", "--noise", "0"), "--noise 0.0: from 1e-06 to 1e+06"),
        (("bars.py", "--noise", "nan"), "--noise nan: from 1e-06 to 1e+06"),
        (("bars.py", "--noise", "inf"), "--noise inf: from 1e-06 to 1e+06"),
        (("bars.py", "--latents", "4"), "--states 64: at most 16 with --latents 4"),
        (("noisy_or.py", "--causes", "4"), "--states 32: at most 16 with --causes 4"),
        (("bars.py", "--backend", "jax"), "--backend: invalid choice: 'jax'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "file").touch()
    places = {"out": tmp_path / "out", "file": tmp_path / "file", "here": tmp_path}
    script, *arguments = (str(argument).format(**places) for argument in arguments)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as status:
        run_main(importlib.import_module(script.removesuffix(".py")).main)
    errors = [line for line in capsys.readouterr().err.splitlines() if line and "it/s" not in line]
    assert status.value.code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]


def test_the_exit_status_of_bad_input():
    done = run("train.py", "--method", "magic")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
