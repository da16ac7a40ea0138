"""`fit` repeats, resumes to the same numbers, and stops with a word about why; in both packages."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def kit(request):
    """Programs, losses and ways to upset them, natively: `fit_pyro`, `fit_numpyro`."""
    pytest.importorskip("torch" if request.param == "pyro" else "jax")
    return importlib.import_module(f"fit_{request.param}")


def make_data(num_data=23):
    return (np.random.default_rng(0).random((num_data, 4)) < 0.5).astype(np.float32)


def run(kit, num_steps=20, svi=None, data=None, **settings):
    settings = {"progress": False, "log_every": 4, "batch_size": 5} | settings
    svi = svi or kit.make_svi()
    return kit.fit(svi, make_data() if data is None else data, num_steps=num_steps, **settings)


def numbers(rows):
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def same(kit, first, second):
    np.testing.assert_array_equal(first.losses, second.losses)
    assert numbers(first.history) == numbers(second.history)
    found = kit.arrays(first), kit.arrays(second)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)


# Training


@pytest.mark.thrifty
def test_a_step_is_the_step_of_svi(kit):
    losses, params = kit.plain_losses(make_data(), 10)
    result = run(kit, 10, kit.plain_svi(), batch_size=None)
    np.testing.assert_array_equal(result.losses, losses)
    trained = kit.arrays(result)
    for name in params:
        np.testing.assert_array_equal(trained[name], params[name])


def test_a_seed_repeats_and_another_does_not(kit):
    first = run(kit)
    same(kit, first, run(kit))
    assert not np.array_equal(first.losses, run(kit, svi=kit.make_svi(1)).losses)


def test_the_step_of_a_subclass_is_called(kit):
    plain = run(kit, 8)
    np.testing.assert_allclose(run(kit, 8, kit.doubled_svi()).losses, 2 * plain.losses, rtol=1e-6)


def test_each_epoch_visits_rows_once_and_drops_the_remainder(kit):
    seen = []
    bits = (np.arange(23)[:, None] >> np.arange(5)) & 1  # row i spells i
    x, last_bit = bits[:, :4].astype(np.float32), bits[:, 4]
    svi = kit.recording_svi(seen)
    kit.fit(svi, x, last_bit, num_steps=8, batch_size=5, progress=False)
    found = [x @ [1, 2, 4, 8] + 16 * last_bit for x, last_bit, _ in seen[-8:]]
    for epoch in (found[:4], found[4:]):
        assert [len(x) for x in epoch] == [5, 5, 5, 5]
        assert len(np.unique(np.concatenate(epoch))) == 20
    assert not np.array_equal(np.concatenate(found[:4]), np.concatenate(found[4:]))


def test_the_environment_may_hide_the_bar(kit, monkeypatch):
    """tqdm takes `TQDM_DISABLE` only where `disable` is not passed."""
    loop = importlib.import_module(f"{kit.package.__name__}.loop")
    monkeypatch.setattr(loop, "tqdm", dict)
    assert "disable" not in loop._bar(3, 0, True)
    assert loop._bar(3, 0, False)["disable"] is True


def test_tuples_dicts_and_constants_reach_the_model(kit):
    seen, settings = [], {"num_steps": 1, "progress": False}
    x = kit.asarray(np.ones(4))
    kit.fit(kit.recording_svi(seen), x, None, batch_size=2, **settings)
    assert len(seen[-1][0]) == 2
    assert seen[-1][1] is None
    kit.fit(kit.recording_svi(seen), [(x, 2 * x)], **settings)
    np.testing.assert_array_equal(seen[-1][1], 2 * np.ones(4))
    kit.fit(kit.recording_svi(seen), [{"x": x, "scale": 3.0}], **settings)
    assert seen[-1][2] == 3.0


@pytest.mark.thrifty
def test_the_log_has_windows_info_and_evaluations(kit, tmp_path):
    result = run(kit, 10, folder=tmp_path, eval_data=make_data(7), eval_every=6)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["step"] for row in rows] == [4, 6, 8, 10]
    assert [row["step"] for row in result.evaluations] == [6, 10]
    assert [row["ess"] for row in rows] == [2.0, 3.0, 4.0, 5.0]
    assert "codes" not in rows[0]
    np.testing.assert_allclose(rows[1]["mean_loss"], result.losses[4:6].mean())
    assert rows[-1]["loss"] == result.losses[-1]
    assert "10 steps" in repr(result)
    assert "eval loss" in repr(result)


@pytest.mark.thrifty
def test_evaluation_leaves_no_trace_and_is_per_datum(kit):
    plain, evaluated = run(kit), run(kit, eval_data=make_data(7), eval_every=3)
    np.testing.assert_array_equal(plain.losses, evaluated.losses)
    assert plain.history[-1]["ess"] == evaluated.history[-1]["ess"]
    few, many = np.ones((5, 4), np.float32), np.ones((50, 4), np.float32)
    once, twice = (
        run(kit, 1, eval_data=data).history[-1]["eval_loss"] for data in (few, (kit.asarray(many),))
    )
    assert abs(once - twice) < 1.0


@pytest.mark.thrifty
@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("name", ["Exact_ELBO", "TraceGraph_ELBO"])
def test_evaluation_is_per_datum_whatever_a_plate_takes_the_batch_of(kit, name, size):
    """The last of the parts is smaller."""
    library = kit.__name__.removeprefix("fit_")
    ppl = importlib.import_module(library)
    dist, ours = ppl.distributions, importlib.import_module(f"{library}_dvae.infer")

    def model(x):
        nothing = 0.0 * ppl.param("nothing", kit.asarray(np.float32(0.5)))
        with ppl.plate("data", size or len(x), subsample_size=len(x)):
            z = ppl.sample("z", dist.Bernoulli(kit.asarray(np.float32(0.3))))
            ppl.sample("x", dist.Normal(z + nothing, 1.0), obs=x)

    def guide(x):
        with ppl.plate("data", size or len(x), subsample_size=len(x)):
            ppl.sample("z", dist.Bernoulli(kit.asarray(np.float32(1.0))))

    svi = kit.plain_svi()
    loss = getattr(ours if name == "Exact_ELBO" else ppl.infer, name)()
    svi = type(svi)(model, guide, kit.other_optim(), loss)
    x = np.random.default_rng(0).normal(size=25).astype(np.float32)
    row = run(kit, 1, svi, x.repeat(2)[:40], batch_size=10, eval_data=x).history[-1]
    expected = 0.5 * np.square(x - 1.0).mean() + 0.5 * np.log(2 * np.pi) - np.log(0.3)
    assert row["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_schedules_reach_their_ends(backend):
    fit = backend.module("fit")
    down, line = fit.exponential_schedule(0.5, 0.01, 100), fit.linear_schedule(1.0, 0.0, 10)
    np.testing.assert_allclose(
        [down(0), down(50), down(100), down(999)], [0.5, 0.005**0.5, 0.01, 0.01]
    )
    np.testing.assert_allclose([line(0), line(5), line(10), line(11)], [1.0, 0.5, 0.0, 0.0])
    steps = backend.asarray(np.array([0, 50, 200]))
    np.testing.assert_allclose(backend.jit(down)(steps), [0.5, 0.005**0.5, 0.01], rtol=1e-6)
    with pytest.raises(ValueError, match="linear_schedule"):
        fit.exponential_schedule(1.0, 0.0, 10)
    with pytest.raises(ValueError, match="`num_steps`"):
        fit.linear_schedule(1.0, 0.0, 0)


# Checkpoints


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        ("array", 8),
        ("loader", 3),
        *(pytest.param("array", stop, marks=SLOW) for stop in (3, 10)),
        *(pytest.param("loader", stop, marks=SLOW) for stop in (8, 10)),
    ],
)
def test_a_resumed_run_gives_the_same_numbers(kit, tmp_path, monkeypatch, stop, kind):
    def settings():
        if kind == "array":
            return {"eval_data": make_data(7), "eval_every": 6}
        return {"data": kit.loader(make_data()), "batch_size": None}

    whole = run(kit, 16, **settings(), folder=tmp_path / "whole")
    with pytest.raises(kit.package.FitInterrupt) as error:
        run(kit, 16, kit.stopping_svi(stop, monkeypatch), **settings(), folder=tmp_path / "cut")
    monkeypatch.undo()
    assert stop <= error.value.result.num_steps <= stop + kit.late
    svi = kit.make_svi(seed=7)  # other values, other generators
    resumed = run(kit, 16, svi, **settings(), folder=tmp_path / "cut", resume=True)
    same(kit, whole, resumed)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert numbers(map(json.loads, logs[0])) == numbers(map(json.loads, logs[1]))


def test_resuming_in_the_same_process_rewinds_it(kit, tmp_path):
    svi = kit.make_svi()
    run(kit, 8, svi, folder=tmp_path, checkpoint_every=8)
    whole = run(kit, 16, svi, folder=tmp_path, checkpoint_every=8, resume=True)
    same(kit, run(kit, 16), whole)
    assert run(kit, 16, svi, folder=tmp_path, resume=True).num_steps == 16  # nothing left to do
    with pytest.warns(UserWarning, match="`num_steps` is 8, but the run in `folder` has 16 steps"):
        assert run(kit, 8, svi, folder=tmp_path, resume=True).num_steps == 16


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import {kit} as kit
from test_fit import run
run(kit, 4000, folder=Path({folder!r}), checkpoint_every=10, log_every=3, eval_every=7)
"""


# Two processes agree to the last bit on optimised programs, which `make test-slow` compiles.
@pytest.mark.parametrize("kit", ["pyro", pytest.param("numpyro", marks=SLOW)], indirect=True)
def test_a_killed_run_resumes_to_the_same_numbers(kit, tmp_path):
    folder = tmp_path / "run"
    code = KILLED.format(tests=str(ROOT / "tests"), folder=str(folder), kit=kit.__name__)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "JAX_ENABLE_X64": "1"},
    )
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 10):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before, _ = kit.saved(folder / kit.CHECKPOINT)
    assert 10 <= before < 4000
    settings = {"checkpoint_every": 10, "log_every": 3}
    resumed = run(kit, before + 25, kit.make_svi(3), folder=folder, resume=True, **settings)
    same(kit, run(kit, before + 25, **settings), resumed)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_sigterm_and_no_folder(kit, monkeypatch):
    usual = signal.getsignal(signal.SIGTERM)
    with pytest.raises(kit.package.FitInterrupt, match="nothing was saved") as error:
        run(kit, svi=kit.stopping_svi(1, monkeypatch, signal.SIGTERM))
    assert error.value.signal == signal.SIGTERM
    assert "\n" not in str(error.value)
    assert signal.getsignal(signal.SIGTERM) is usual


def test_a_new_run_keeps_the_previous_one(kit, tmp_path):
    run(kit, 4, folder=tmp_path)
    run(kit, 8, folder=tmp_path)
    run(kit, 9, folder=tmp_path)
    assert [kit.saved(tmp_path / name)[0] for name in (kit.CHECKPOINT, kit.PREVIOUS)] == [9, 8]
    assert (tmp_path / "log.previous.jsonl").exists()


def test_a_failed_write_leaves_the_old_checkpoint(kit, tmp_path, monkeypatch):
    run(kit, 4, folder=tmp_path)
    before = contents(tmp_path / kit.CHECKPOINT)
    with monkeypatch.context() as patch:
        kit.break_writing(patch)
        with pytest.raises(OSError, match="No space"):
            run(kit, 8, folder=tmp_path, resume=True)
    assert before.items() <= contents(tmp_path / kit.CHECKPOINT).items()
    assert sorted(p.name for p in tmp_path.iterdir()) == [kit.CHECKPOINT, "log.jsonl"]
    same(kit, run(kit, 8), run(kit, 8, folder=tmp_path, resume=True))


def contents(path):
    """The bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else filter(Path.is_file, path.rglob("*"))
    return {file: file.read_bytes() for file in files}


# Divergence


def test_a_nan_stops_and_keeps_the_last_good_checkpoint(kit, tmp_path):
    with pytest.raises(kit.package.DivergenceError, match="step 11") as error:
        run(kit, svi=kit.make_svi(nan_from=11), folder=tmp_path, checkpoint_every=4)
    found = error.value
    assert found.checkpoint == tmp_path / kit.CHECKPOINT
    assert np.isfinite(found.last_loss)
    assert re.search(f"{kit.CHECKPOINT}.*learning rate", str(found))
    step, params = kit.saved(found.checkpoint)
    assert step == 8
    assert all(np.isfinite(value).all() for value in params)


def test_a_parameter_that_goes_is_named_before_it_is_saved(kit, tmp_path):
    with pytest.raises(kit.package.DivergenceError, match=r"decoder.*bias.*none") as error:
        run(kit, svi=kit.poisoned_svi(), folder=tmp_path, checkpoint_every=1)
    assert error.value.step == 1
    assert not (tmp_path / kit.CHECKPOINT).exists()


@pytest.mark.parametrize("validate", [True, False])
def test_a_nan_in_a_users_batch_is_named(kit, validate):
    x = np.ones((5, 4), np.float32)
    batches = [kit.asarray(x), kit.asarray(x), kit.asarray(np.inf * x)]
    with kit.validation_enabled(validate):
        with pytest.raises(
            kit.package.DivergenceError, match=r"step 3: not finite: the data of step 3"
        ):
            run(kit, data=batches, batch_size=None)


def test_an_error_of_the_users_own_passes(kit):
    with pytest.raises(ValueError, match="mine"):
        run(kit, svi=kit.failing_svi())


# Bad input

ONES = np.ones((5, 4), np.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1; got 0"),
        ({"log_every": 0}, "`log_every` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must lie between 1 and the number of data, 23; got 0"),
        ({"batch_size": 24}, "`batch_size` must lie between 1 and the number of data, 23; got 24"),
        ({"data": np.zeros((0, 4))}, "`data` is empty"),
        ({"data": np.float32([[1, 2], [np.nan, np.inf]])}, "`data`: argument 0 holds 2 values"),
        ({"eval_data": np.float32([np.nan])}, "`eval_data`: argument 0 holds 1 values"),
        ({"eval_data": np.zeros((0, 4))}, "`eval_data` is empty"),
        ({"eval_data": iter([1])}, "`eval_data` is an iterator"),
        ({"data": np.array(["a"])}, "`data` must be numeric"),
        ({"data": (np.zeros(2), np.zeros(2))}, "`data` is a tuple: pass its arrays one by one"),
        ({"data": [ONES]}, "`batch_size` is 5, but `data` is an iterable"),
        ({"data": [], "batch_size": None}, "`data` gave no batch"),
        ({"data": iter([ONES]), "batch_size": None}, "used only once"),
        ({"resume": True}, "`resume` is True, but there is no `folder`"),
    ],
)
def test_bad_input(kit, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(kit, **settings)


def test_sizes_must_agree(kit):
    with pytest.raises(ValueError, match=r"sizes 3 \(argument 0\), 2 \(argument 1\)"):
        kit.fit(kit.make_svi(), np.zeros(3), np.zeros(2), num_steps=1)
    with pytest.raises(ValueError, match="`data` is empty: pass the arguments"):
        kit.fit(kit.make_svi(), num_steps=1)


def test_bad_folders(kit, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`folder` cannot be written to"):
        run(kit, folder=tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=rf"holds no {kit.CHECKPOINT}"):
        run(kit, folder=tmp_path, resume=True)
    (tmp_path / kit.CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(kit, folder=tmp_path, resume=True)


def test_another_model_or_other_data_cannot_be_resumed(kit, tmp_path):
    run(kit, 4, folder=tmp_path)
    shape = re.escape(kit.FIVE_WIDE)
    with pytest.raises(
        ValueError,
        match=rf"another model.*has shape {shape}, in the checkpoint|`model`\.\S* is .*5",
    ):
        run(kit, 8, kit.make_svi(width=5), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="`data` has 20 rows"):
        run(kit, 8, data=make_data(20), folder=tmp_path, resume=True)
    loader = kit.loader(make_data())
    with pytest.raises(ValueError, match="iterable of batches, but the checkpoint"):
        run(kit, 8, data=loader, batch_size=None, folder=tmp_path, resume=True)
