"""Codes are counted over all processes of a run, each of which has its own part of the data."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = {  # of one process; codes are known for sure, 3 rows in the first, 2 in the second
    "pyro": """
import sys
import pyro
import pyro.distributions as dist
import torch
from torch import distributed
from pyro_dvae.diagnostics import code_usage

rank, address = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=2)
codes = torch.tensor([0, 0, 1] if rank == 0 else [2, 1])

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x.float())

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=60.0 * torch.eye(3)[x]))

print(code_usage((model, guide), codes, num_draws=10)["z"].counts.tolist())
distributed.destroy_process_group()
""",
    "numpyro": """
import sys
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro_dvae.diagnostics import code_usage

rank, address = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(address, num_processes=2, process_id=rank)
codes = jnp.array([0, 0, 1] if rank == 0 else [2, 1])

def model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

def guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=60.0 * jnp.eye(3)[x]))

found = code_usage(jax.random.key(rank), (model, guide), codes, num_draws=10)
print(found["z"].counts.tolist())
jax.distributed.shutdown()
""",
}


def free_address():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "needs"), [("pyro", "torch"), ("numpyro", "jax")])
def test_codes_are_counted_over_all_processes(name, needs):
    pytest.importorskip(needs)
    address = free_address()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[name], str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for rank in (0, 1)
    ]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert [output.splitlines()[-1] for output, _ in outputs] == ["[20, 20, 10]"] * 2
