"""One step at the published size of ImageNet, and a folder of pictures that trains end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from run_examples import ROOT, result_alone

DATA = Path(os.environ.get("PYRO_DVAE_BSDS", ROOT.parent / "shared" / "data" / "bsds500"))
STEP = """
import json, resource, sys
import numpy as np
sys.path.insert(0, "examples/tools")
from backends import get_backend
from configs import CONFIGS
backend = get_backend(sys.argv[1], "cpu")
config = CONFIGS["imagenet256"]._replace(num_particles=2)
images = np.random.default_rng(0).normal(size=(2, 256, 256, 3)).astype(np.float32)
backend.seed(0)
model, guide = backend.make_vae(config, images)
loss = backend.make_loss("daps", num_particles=2, beta=config.beta_from)
result = backend.train(
    model, guide, loss, images, learning_rate=config.learning_rate, num_steps=1, batch_size=1,
    optimiser=config.optimiser(), progress=False,
)
codes = backend.codes(guide, images[:1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
used = [float(result.losses[0]), len(np.unique(codes)), codes.shape, peak]
print(json.dumps(dict(zip(["loss", "used", "shape", "gibibytes"], used))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_a_step_with_1024_codes_of_1024(backend):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", STEP, backend]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [1, 1024]
    assert 300 < found["used"] <= 1024  # of nearly even logits, some 650
    # Of standard normal pixels with variances that start at 1/2, and codes at log 1024 each.
    entries = 256 * 256 * 3
    assert 0.5 * entries < found["loss"] < 3.0 * entries + 50 * 1024 * np.log(1024)
    assert found["gibibytes"] < 6.0


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs BSDS500 at 64 pixels")
@pytest.mark.parametrize("method", ["daps", "vq"])
def test_a_folder_of_pictures_trains_end_to_end(tmp_path, method):
    from PIL import Image

    pictures = np.load(DATA / "bsds500_64.npz")["x_train"]
    for row, pixels in enumerate(pictures[:120]):
        folder = tmp_path / "photos" / f"class{row % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row:03}.png")
    settings = ("--data", tmp_path / "photos", "--image-size", "32", "--workers", "2", "--flip")
    settings += ("--config", "cifar10", "--method", method, "--batch-size", "8", "--steps", "60")
    result = result_alone("train.py", *settings, "--out", tmp_path / "out", "--iwae-particles", "4")
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [row["mean_loss"] for row in rows if "mean_loss" in row]
    assert losses[-1] < losses[0]
    assert 0.0 < result["ssim"] < 1.0
    assert result["psnr"] > 10.0
