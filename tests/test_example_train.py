"""The training script runs with every method, repeats, resumes, and ends with JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MNIST = Path(os.environ.get("PYRO_DVAE_MNIST", ROOT.parent / "shared" / "data" / "MNIST"))

sys.path[:0] = [str(EXAMPLES / "tools"), str(EXAMPLES / "benchmarks")]

from run_examples import output_of, result_alone, result_of  # noqa: E402
from test_example_data import images  # noqa: E402

__all__ = ["output_of", "result_of"]  # fixtures

METRICS = {"elbo", "beta_elbo", "iwae", "psnr", "mse", "ess", "code_usage", "seconds"}
METRICS |= {"steps_per_second", "iwae_particles", "steps", "method", "backend", "seed"}


def check(result, num_pixels=64):
    """Metrics of binary images fit together, and twelve steps have led away from even pixels."""
    nats = result["rate_bits"] * np.log(2)
    beta_elbo = result["elbo"] + (1 - result["beta"]) * nats
    assert result["beta_elbo"] == pytest.approx(beta_elbo, abs=1e-3)
    assert result["elbo"] <= result["iwae"] + 1e-4
    likelihood = result["elbo"] + nats
    # A table that gradients move first follows its inputs: pixels come after that.
    least = 0.99 if result["method"] == "vq_gradient" else 0.9
    assert -least * num_pixels * np.log(2) < likelihood < 0.0
    assert -10 * np.log10(0.25) < result["psnr"] < 20.0


@pytest.mark.parametrize(
    "settings",
    [
        ("--method", "daps", "--target-ess", "0.5"),
        ("--method", "reinforce", "--guide", "autoregressive", "--num-latents", "4"),
        pytest.param(
            ("--method", "exact", "--num-latents", "2", "--num-codes", "4"), marks=pytest.mark.slow
        ),
        ("--method", "disarm", "--prior", "bernoulli", "--binarize", "dynamic", "--average", ".5"),
        ("--method", "vq", "--prior", "categorical", "--second-stage-steps", "12"),
        ("--method", "truncated", "--prior", "bernoulli", "--num-states", "5"),
        pytest.param(
            ("--method", "truncated", "--backend", "numpyro", "--num-states", "5"),
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(("--method", method, "--backend", backend, *more), marks=pytest.mark.slow)
            for backend in ("pyro", "numpyro")
            for method, *more in [
                ("fsq", "--second-stage-steps", "12"),
                ("vq_gradient", "--prior", "autoregressive"),
                ("daps", "--prior", "autoregressive", "--test-images", "9"),
                ("gumbel", "--prior", "categorical"),
                ("reinforce", "--prior", "bernoulli", "--binarize", "dynamic"),
            ]
        ),
        pytest.param(("--method", "gr_mck", "--backend", "numpyro"), marks=pytest.mark.slow),
        pytest.param(("--method", "daps", "--backend", "numpyro"), marks=pytest.mark.slow),
        pytest.param(
            ("--method", "daps", "--backend", "numpyro", "--guide", "autoregressive"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("--method", "vq", "--backend", "numpyro"), marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(settings[1:6:2]),
)
def test_train(result_of, tmp_path, settings):
    result = result_of("train.py", "--smoke", "--out", tmp_path, *settings)
    assert result.keys() >= METRICS
    check(result)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    names = {"arguments.json", "log.jsonl", "reconstructions.png", "samples.png", "curves.png"}
    names |= {"checkpoint.pt" if result["backend"] == "pyro" else "checkpoint"}
    assert names <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("method", "likelihood"),
    [
        ("fsq", "logistic"),
        pytest.param("daps", "logistic", marks=pytest.mark.slow),
        pytest.param("daps", "gaussian_heads", marks=pytest.mark.slow),
        pytest.param("vq", "gaussian_heads", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("backend", ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)])
def test_train_the_networks_of_colour_images(result_of, tmp_path, backend, method, likelihood):
    settings = ("--config", "cifar10", "--backend", backend, "--likelihood", likelihood)
    result = result_of("train.py", "--smoke", "--out", tmp_path, "--method", method, *settings)
    assert result["elbo"] <= result["iwae"] + 1e-4
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [line["mean_loss"] for line in map(json.loads, lines) if "mean_loss" in line]
    assert losses[-1] < losses[0]
    if likelihood == "logistic":
        assert result["bits_per_dim"] == pytest.approx(-result["iwae"] / (64 * np.log(2)), rel=1e-4)


@pytest.mark.slow
def test_train_repeats_and_resumes(tmp_path):
    np.savez(tmp_path / "mine.npz", x=images())
    settings = ("--smoke", "--data", tmp_path / "mine.npz", "--prior", "bernoulli")
    settings += ("--clip-units", "0.5", "--accumulate", "5", "--average", "0.9")
    settings += ("--weight-decay", "0.01", "--schedule", "cosine", "--decay", "0.1")
    whole = result_alone("train.py", *settings, "--out", tmp_path / "a")
    again = result_alone("train.py", *settings, "--out", tmp_path / "b")
    resumed = result_alone("train.py", *settings, "--out", tmp_path / "b", "--resume")
    for found in (again, resumed):
        assert (found["elbo"], found["iwae"]) == (whole["elbo"], whole["iwae"])


@pytest.mark.skipif(not MNIST.exists(), reason="needs the files of MNIST")
def test_train_on_mnist(result_of, tmp_path):
    shutil.copytree(MNIST, tmp_path / "data" / "MNIST")
    settings = ("--data", "mnist", "--data-root", tmp_path / "data", "--out", tmp_path / "out")
    result = result_of("train.py", "--smoke", *settings)
    assert result["data"] == "mnist"
    check(result, num_pixels=784)


def torchrun(size, out, *settings):
    """The training script in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", EXAMPLES / "tools" / "train.py", "--smoke"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*map(str, command), "--out", str(out), *settings]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["daps", "vq", "truncated"])
def test_train_in_two_processes(tmp_path, method):
    settings = ["--method", method] + ["--prior", "bernoulli"] * (method == "truncated")
    done = torchrun(2, tmp_path / "two", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()  # of the first one alone
    check(json.loads(line))
    result_alone("train.py", "--smoke", "--out", tmp_path / "one", *settings)
    logs = [(tmp_path / each / "log.jsonl").read_text().splitlines() for each in ("one", "two")]
    first, second = (json.loads(log[0]) for log in logs)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    done = torchrun(1, tmp_path / "two", "--resume", "--steps", "12", *settings)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_train_in_processes_that_do_not_divide_the_batch(tmp_path):
    done = torchrun(3, tmp_path)
    assert done.returncode != 0
    assert "error: `batch_size`: the 16 rows of a batch" in done.stderr
