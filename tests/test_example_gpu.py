"""The command for a machine with a GPU, tried on a CPU; arithmetic and memory of a step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples" / "tools"), str(ROOT / "examples" / "benchmarks")]

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from configs import CONFIGS, Config  # noqa: E402
from costs import arithmetic, memory  # noqa: E402


def test_arithmetic_is_that_of_the_matrices():
    """A multiplication and an addition for each weight, once forward and twice for gradients."""
    found = arithmetic(CONFIGS["mnist"], (28, 28))
    assert arithmetic(CONFIGS["mnist"]._replace(half=True), (28, 28)) == found
    decoder = 512 * 64 + 64 * 256 + 256 * 784
    d, length = 64, 8
    attention = 2 * (4 * d * d + 2 * length * d)  # of a token: projections, scores and means
    codes = length * (2 * attention + 2 * 8 * d * d + 2 * d * 256)
    shared = 4 * d * length * d  # less than a token's: keys and values of patches once a datum
    low = 3 * 2 * decoder + 4 * (codes - shared)
    assert low < found.per_particle < 3 * 2 * decoder + 4 * codes + 4 * shared
    independent = arithmetic(CONFIGS["mnist"]._replace(guide="independent"), (28, 28))
    assert independent.per_particle == 3 * 2 * decoder
    assert independent.per_datum == 3 * 2 * (784 * 256 + 256 * 2048)
    assert found.of(3, 5) == 3 * (found.per_datum + 5 * found.per_particle)


def test_memory_grows_with_batch_and_particles_and_falls_with_recompute():
    config = Config(num_latents=4, num_codes=3, embed_dim=8, decoder="conv", likelihood="gaussian")
    shape = (16, 16, 3)
    kept = memory(config, shape)
    assert min(kept) > 0
    fewer = memory(config._replace(recompute=True), shape)
    assert fewer.of(8, 4) - fewer.fixed < 0.7 * (kept.of(8, 4) - kept.fixed)
    half = memory(config._replace(half=True), shape)
    assert half.per_particle < kept.per_particle


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_in_small_and_goes_on(tmp_path):
    command = [sys.executable, "examples/benchmarks/gpu.py", "--smoke", "--minutes", "15"]
    command += ["--out", str(tmp_path)]
    subprocess.run([*command, "--skip", "speed"], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "passed" in found["tests"]["passed"]
    assert found["mnist numpyro"]["steps"] == found["board numpyro"]["steps"] == 12
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "tests" not in done.stdout  # done before
    found = json.loads((tmp_path / "gpu.json").read_text())
    speeds = [value for name, value in found.items() if name.startswith("speed")]
    assert len(speeds) == 10
    for value in speeds:
        assert value["steps_per_second"] > 0, value
        assert 0 < value["share_of_rate"] < 2
