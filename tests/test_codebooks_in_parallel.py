"""Moving averages of a codebook whose data are spread over processes or devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

TORCH = """
import json
import sys
import numpy as np
import torch
from torch import distributed
from pyro_dvae.nets import Codebook

rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
torch.manual_seed(rank)
rng = np.random.default_rng(0)
inputs = torch.tensor(rng.normal(size=(40, 3)), dtype=torch.float32)[rank::size]
table = torch.tensor(rng.normal(size=(6, 3)), dtype=torch.float32)
dead = table.clone()
dead[0] = 100.0
found = {}
starts = {"live": {"table": table}, "dead": {"table": dead}, "from data": {"start": "data"}}
for name, start in starts.items():
    codebook = Codebook(6, 3, decay=0.5, min_count=0.01, **start)
    for _ in range(3):
        codebook.quantize(inputs, learn=True)
    found[name] = {key: value.tolist() for key, value in codebook.state_dict().items()}
print(json.dumps(found))
if size > 1:
    distributed.destroy_process_group()
"""


def processes(size, meeting):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TORCH, str(rank), str(size), str(meeting)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(size)
    ]
    return [json.loads(run.communicate(timeout=300)[0]) for run in runs]


def test_two_processes_of_torch_keep_one_codebook(tmp_path):
    pytest.importorskip("torch")
    first, second = processes(2, tmp_path / "meeting")
    assert first == second
    (alone,) = processes(1, tmp_path / "nobody")
    for key, value in alone["live"].items():
        np.testing.assert_allclose(first["live"][key], value, rtol=1e-4, atol=1e-5)
    assert np.abs(first["dead"]["table"][0]).max() < 10.0  # restarts at an input
    assert sum(first["from data"]["counts"]) > 30.0  # of both halves: 40 inputs, averaged


JAX = """
import json
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.optim import Adam
from numpyro_dvae.guides import VectorQuantizedGuide
from numpyro_dvae.infer import SVI, VQ_ELBO
from numpyro_dvae.models import DiscreteVAE, GaussianLikelihood, UniformPrior
from numpyro_dvae.nets import Codebook, CodebookDecoder, MLPDecoder, MLPEncoder

x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
mesh = Mesh(np.array(jax.devices()), ("data",))
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))


def codebook_after(*batches):
    codebook = Codebook(6, 3, decay=0.5)
    decoder = CodebookDecoder(codebook, MLPDecoder(2 * 3, None, (4,), hidden=()))
    model = DiscreteVAE(decoder, UniformPrior(2, 6), GaussianLikelihood())
    guide = VectorQuantizedGuide(MLPEncoder((4,), 2, 3, hidden=()), codebook)
    svi = SVI(model, guide, Adam(0.01), loss=VQ_ELBO())
    state = svi.init(jax.random.key(0), x)
    update = jax.jit(svi.update)
    for batch in batches:
        state, _ = update(state, batch)
    return {k: v.tolist() for k, v in state.mutable_state["codebook$state"].items()}


found = {"devices": len(spread.sharding.device_set)}
found |= {"spread": codebook_after(spread, spread, spread), "whole": codebook_after(x, x, x)}
print(json.dumps(found))
"""


def test_two_devices_of_jax_keep_one_codebook():
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=2 " + os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", JAX]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 2
    for key, value in found["whole"].items():
        np.testing.assert_allclose(found["spread"][key], value, rtol=1e-3, atol=1e-4)
    assert abs(sum(found["whole"]["counts"]) - 80) < 20  # of both halves: 40 data of 2 codes
