"""Runs that are killed at random end as unbroken ones do; full disks and workers that die are told.

Seeds and counts are printed: `pytest -m slow -s tests/test_killing.py` shows them.
"""

import resource
import subprocess
import sys

import numpy as np
import pytest
from killing import ROOT, SCENARIOS
from test_fit import kit, make_data, run, same
from test_fit_faults import UNREAD, check_flips

__all__ = ["kit"]  # a fixture
pytestmark = pytest.mark.slow
KILLS, SEED = 22, 20261128  # of each scenario: 352 over both packages


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("package", ["pyro", "numpyro"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(package, scenario):
    pytest.importorskip("torch" if package == "pyro" else "jax")
    command = [sys.executable, str(ROOT / "tests" / "killing.py"), package, scenario]
    command += ["--kills", str(KILLS), "--seed", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{package} {scenario}: {KILLS} kills"), done.stdout
    print(done.stdout, end="")


@UNREAD
def test_flipped_bits_are_refused_or_of_no_matter(kit, tmp_path):
    assert check_flips(kit, tmp_path, 150, SEED) >= 75


@pytest.fixture
def file_limit():
    """Limits how large a file may grow, as a full disk does; JAX's own cache writes none."""
    jax = sys.modules.get("jax")
    caches = jax is not None and jax.config.jax_enable_compilation_cache
    if caches:
        jax.config.update("jax_enable_compilation_cache", False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if caches:
        jax.config.update("jax_enable_compilation_cache", True)


@UNREAD
def test_a_disk_that_is_full_at_any_byte_leaves_the_last_checkpoint(kit, tmp_path, file_limit):
    rng = np.random.default_rng(SEED)
    run(kit, 4, folder=tmp_path)
    expected, path = run(kit, 8), tmp_path / kit.CHECKPOINT
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    largest = max(file.stat().st_size for file in files)
    for _ in range(10):
        file_limit(int(rng.integers(1, largest)))
        try:
            with pytest.raises(OSError, match="could not be written at step"):
                run(kit, 8, folder=tmp_path, resume=True)
        finally:
            file_limit(resource.RLIM_INFINITY)
    same(kit, expected, run(kit, 8, folder=tmp_path, resume=True))


class Dying:
    """A data set whose third datum kills the process that asks for it."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        import os
        import signal

        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return make_data()[i]


def test_a_worker_that_dies_ends_the_run_with_the_loaders_word(tmp_path):
    import fit_pyro as kit
    from torch.utils.data import DataLoader

    loader = DataLoader(Dying(), 5, shuffle=True, num_workers=2, multiprocessing_context="spawn")
    with pytest.raises(RuntimeError, match=r"worker.*exited|killed by signal"):
        run(kit, 8, data=loader, batch_size=None, folder=tmp_path)
    run(kit, 8, folder=tmp_path)  # no lock is left
