"""`fit` on several devices: the numbers of one, in Pyro by processes, in NumPyro by a mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
METHODS = ("daps", "reinforce", "vq", "truncated")


def start(program, *args, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / program), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
    )


def found_of(first, *others):
    """What the first process prints; the others end by themselves."""
    output, errors = first.communicate(timeout=1500)
    told = [other.communicate(timeout=100)[1] for other in others]
    assert first.returncode == 0, "\n".join([errors, *told])
    return json.loads(output.splitlines()[-1])


def of_processes(folder, size):
    return found_of(*(start("devices_pyro.py", rank, size, folder) for rank in range(size)))


def of_mesh(folder, size):
    flags = f"--xla_force_host_platform_device_count={size} {os.environ.get('XLA_FLAGS', '')}"
    return found_of(start("devices_numpyro.py", folder, XLA_FLAGS=flags))


def check(found, refusals):
    """Losses, parameters, codebooks and sets of one device; resumed on another number of them."""
    assert found["differences"].keys() >= set(METHODS)
    assert max(found["differences"].values()) < 1e-5, found["differences"]
    assert found["control"] > 1e-2
    for resumed in (name for name in found if name.startswith("from ")):
        np.testing.assert_allclose(found[resumed], found["unbroken"], rtol=1e-5)
    for name, words in refusals.items():
        missing = [word for word in words if word not in found["refusals"][name]]
        assert not missing, (name, missing, found["refusals"][name])


OF_PROCESSES = {
    "odd": ["`batch_size`", "7 rows", "2 processes", "`batch_size=6`"],
    "few": ["`batch_size`", "1 rows", "at most 1 processes"],
    "loss": ["`svi`", "TraceGraph_ELBO", "Trace_ELBO"],
    "norm": ["`svi`", "normalises", "batch_norm", "GroupNorm"],
    "dropout": ["`svi`", "draws masks", "p=0"],
    "batches": ["process", "batch of `data`"],
    "summed": ["site 'w' is summed out", "plate of data"],
    "shared": ["plates of data, ['data']", "discrete sites ['w']"],
    "plate": ["site 'x'", "under no plate"],
    "subsample": ["plate 'data'", "`batch_size`"],
    "data": ["process", "'data'"],
    "sampler": ["`data`", "DistributedSampler"],
}


def check_processes(found):
    check(found, {} if found["size"] > 2 else OF_PROCESSES)
    assert found["rows"] == found["log"], "one writer"
    assert found["interrupted"] == [3, True], "all stop where one has got a signal"
    assert "another process of this run has ended" in found["bereaved"]
    assert "`resume=True`" in found["bereaved"]


def test_two_processes_of_torch_train_as_one(tmp_path):
    pytest.importorskip("torch")
    check_processes(of_processes(tmp_path, 2))


@pytest.mark.slow
def test_four_processes_of_torch_train_as_one(tmp_path):
    pytest.importorskip("torch")
    check_processes(of_processes(tmp_path, 4))


OF_MESH = {
    "odd": ["`batch_size`", "7 rows", "devices", "`batch_size="],
    "few": ["`batch_size`", "1 rows", "at most 1 devices"],
    "none": ["`devices` is empty"],
}


def test_two_devices_of_jax_train_as_one(tmp_path):
    pytest.importorskip("jax")
    found = of_mesh(tmp_path, 2)
    assert found["devices"] == 2
    check(found, OF_MESH)


@pytest.mark.slow
def test_two_processes_of_jax_train_as_one(tmp_path):
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = (start("devices_numpyro.py", tmp_path, rank, 2, address) for rank in range(2))
    found = found_of(*runs)
    assert found["devices"] == 2
    check(found, OF_MESH)


@pytest.mark.slow
def test_four_devices_of_jax_train_as_one(tmp_path):
    pytest.importorskip("jax")
    found = of_mesh(tmp_path, 4)
    assert found["devices"] == 4
    check(found, OF_MESH)


@pytest.mark.slow
def test_restarts_on_two_devices_of_jax_are_those_of_one():
    pytest.importorskip("jax")
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    *same, control = found_of(start("devices_numpyro.py", "restarts", XLA_FLAGS=flags))
    assert len(same) == 3
    assert max(same) < 1e-5
    assert control > 1e-2
