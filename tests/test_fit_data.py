"""What `fit` takes for data, whatever their layout; it takes no more memory than they do."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_fit import ROOT, kit, make_data, run, same

__all__ = ["kit"]  # a fixture


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "read-only": read_only,
    "big-endian": lambda x: x.astype(">f4"),
    "reversed": lambda x: x[::-1].copy()[::-1],
    "transposed": np.asfortranarray,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
}


@pytest.mark.thrifty
@pytest.mark.parametrize("batch_size", [5, None])
def test_arrays_of_any_layout_are_what_they_hold(kit, batch_size):
    settings = {"num_steps": 3, "batch_size": batch_size}
    expected = run(kit, **settings)
    for change in LAYOUTS.values():
        same(kit, expected, run(kit, data=change(make_data()), **settings))


def test_data_frames_are_arrays(kit):
    pandas = pytest.importorskip("pandas")
    same(kit, run(kit, 3), run(kit, 3, data=pandas.DataFrame(make_data())))


def test_memory_maps_are_arrays(kit, tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(23, 4))
    x[:] = make_data()
    x.flush()
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=(23, 4))
    same(kit, run(kit, 3), run(kit, 3, data=mapped))


def test_a_data_set_without_batches_is_refused(kit):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(make_data()))
    with pytest.raises(ValueError, match=r"`data` is a TensorDataset.*or a `DataLoader` of it"):
        run(kit, 3, data=data, batch_size=None)


def test_values_that_are_not_finite_are_counted_over_all_parts(kit, monkeypatch):
    module = sys.modules[f"{kit.package.__name__}.data"]
    monkeypatch.setattr(module, "_PART", 64)
    data = make_data()
    data[[3, 3, 22], [0, 1, 3]] = np.nan
    with pytest.raises(ValueError, match=r"argument 0 holds 3 values that are NaN .* in 2 rows"):
        run(kit, 3, data=data)


BOTH = ["pyro", pytest.param("numpyro", marks=pytest.mark.thrifty)]

# Runs on few data, then on many, of which only so much more may be held.
LARGE = """
import re, resource, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import numpy as np
import {kit} as kit

MEGABYTES = {megabytes}
settings = {{"num_steps": 2, "batch_size": 5, "progress": False}}
settings["transform"] = kit.as_transform(lambda x: x[:, :4])
kit.fit(kit.make_svi(), np.zeros((64, 400), np.float32), **settings)
small = np.memmap({path!r}, np.float32, "w+", shape=(MEGABYTES * 625, 400))
data = np.memmap({path!r}, np.float32, "r", shape=small.shape)
with open("/proc/self/status") as file:
    used = int(re.search(r"VmData:\\s+(\\d+)", file.read())[1]) * 1024
limit = used + int(({device} + 1 / 20) * data.nbytes)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
kit.fit(kit.make_svi(), data, **settings)
print("fitted")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures as Linux does")
@pytest.mark.parametrize("kit", BOTH, indirect=True)
def test_data_larger_than_the_memory_are_read_a_part_at_a_time(kit, tmp_path):
    # JAX's data are on its device, and what is compiled and its threads take 35 to 55 MB.
    device, megabytes = {"fit_pyro": (0, 400), "fit_numpyro": (1, 1600)}[kit.__name__]
    places = {"root": str(ROOT), "path": str(tmp_path / "x")}
    code = LARGE.format(kit=kit.__name__, device=device, megabytes=megabytes, **places)
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "fitted\n", done.stderr[-2000:]


def test_the_bar_says_of_what_a_loss_is(backend):
    """The loss of a step is of a batch, as the programs sum it; that of held-out data per datum."""
    shown = backend.module("fit.log").shown_on_bar(
        {"step": 3, "mean_loss": 80.5, "eval_loss": 20.25}
    )
    assert shown == {"mean_loss": "80.5", "eval_loss/datum": "20.25"}
