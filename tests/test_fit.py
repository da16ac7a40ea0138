"""`fit` repeats, resumes to the same numbers, and stops with a word about why."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import SVI, TraceGraph_ELBO  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from pyro_dvae.fit import (  # noqa: E402
    DivergenceError,
    FitInterrupt,
    exponential_schedule,
    fit,
    linear_schedule,
)

ROOT = Path(__file__).parents[1]


class VAE(torch.nn.Module):
    """A VAE with two codes of three values, dropout and batch norm: generators and buffers."""

    def __init__(self, width=6):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 6)
        )
        self.decoder = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.1))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(len(x), 2, 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z.flatten(1))).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            logits = self.encoder(x).reshape(len(x), 2, 3)
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


class Counting_ELBO(TraceGraph_ELBO):
    """A loss with `state` and `info`, which noises the loss by its state."""

    class State(NamedTuple):
        step: torch.Tensor
        inner: tuple = ()

    class Info(NamedTuple):
        ess: torch.Tensor
        codes: torch.Tensor

    state = State(torch.tensor(0), (torch.tensor(1.0),))
    info = None

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        self.state = self.State(self.state.step + 1, (self.state.inner[0] * 1.01,))
        self.info = self.Info(self.state.step.float() / 2, torch.zeros(3))
        return torch.as_tensor(loss) + self.state.inner[0]


def scheduled():
    return pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": 0.01},
            "lr_lambda": exponential_schedule(1.0, 0.1, 20),
        }
    )


def make_svi(seed=0, optim=None, loss=None, width=6):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = VAE(width)
    return SVI(vae.model, vae.guide, optim or scheduled(), loss=loss or Counting_ELBO())


def make_data(num_data=23):
    return (np.random.default_rng(0).random((num_data, 4)) < 0.5).astype(np.float32)


def run(num_steps=20, svi=None, data=None, **settings):
    settings = {"progress": False, "log_every": 4, "batch_size": 5} | settings
    svi = svi or make_svi()
    return fit(svi, make_data() if data is None else data, num_steps=num_steps, **settings)


def numbers(rows):
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def same(first, second):
    np.testing.assert_array_equal(first.losses, second.losses)
    assert numbers(first.history) == numbers(second.history)
    assert first.params.keys() == second.params.keys()
    for name in first.params:
        assert torch.equal(first.params[name], second.params[name]), name


def loader(batch_size=5):
    return DataLoader(TensorDataset(torch.tensor(make_data())), batch_size, shuffle=True)


# Training


@pytest.mark.parametrize("optim", ["adam", "scheduled"])
def test_a_step_is_the_step_of_svi(optim):
    def make():
        plain = pyro.optim.ClippedAdam({"lr": 0.01}) if optim == "adam" else scheduled()
        return make_svi(optim=plain, loss=TraceGraph_ELBO())

    svi, x = make(), torch.tensor(make_data())
    losses = []
    for _ in range(10):
        losses.append(svi.step(x))
        if optim == "scheduled":
            svi.optim.step()
    params = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    result = run(10, make(), batch_size=None)
    np.testing.assert_array_equal(result.losses, np.float32(losses))
    assert all(torch.equal(result.params[name], params[name]) for name in params)


def test_a_seed_repeats_and_another_does_not():
    same(run(), run())
    assert not np.array_equal(run().losses, run(svi=make_svi(1)).losses)


def test_the_step_of_a_subclass_is_called():
    class Doubled(SVI):
        def step(self, *args, **kwargs):
            return 2 * super().step(*args, **kwargs)

    plain, doubled = run(), make_svi()
    doubled.__class__ = Doubled
    np.testing.assert_allclose(run(svi=doubled).losses, 2 * plain.losses, rtol=1e-6)


def test_each_epoch_visits_rows_once_and_drops_the_remainder():
    seen = []
    svi = make_svi()
    step = svi.loss_and_grads

    def loss_and_grads(model, guide, x, last_bit):
        seen.append(x @ torch.tensor([1.0, 2.0, 4.0, 8.0]) + 16 * last_bit)
        return step(model, guide, x)

    svi.loss_and_grads = loss_and_grads
    bits = (np.arange(23)[:, None] >> np.arange(5)) & 1  # row i spells i
    fit(svi, bits[:, :4].astype(np.float32), bits[:, 4], num_steps=8, batch_size=5, progress=False)
    for epoch in (seen[:4], seen[4:]):
        rows = torch.cat(epoch)
        assert [len(x) for x in epoch] == [5, 5, 5, 5]
        assert len(rows.unique()) == 20
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


def test_tuples_dicts_and_constants_reach_the_model():
    seen = []

    def model(x, y=None, *, scale=1.0):
        seen.append((x, y, scale))
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(())), 1.0), obs=x.mean())

    def make():
        pyro.clear_param_store()
        return SVI(model, lambda *_, **__: None, pyro.optim.Adam({"lr": 0.1}), TraceGraph_ELBO())

    x = torch.ones(4)
    fit(make(), x, None, num_steps=1, batch_size=2, progress=False)
    fit(make(), [(x, 2 * x)], num_steps=1, progress=False)
    fit(make(), [{"x": x, "scale": 3.0}], num_steps=1, progress=False)
    assert [len(x) for x, _, _ in seen[:1]] == [2]
    assert seen[0][1] is None
    assert torch.equal(seen[1][1], 2 * x)
    assert seen[2][2] == 3.0


def test_the_log_has_windows_info_and_evaluations(tmp_path):
    result = run(10, folder=tmp_path, eval_data=make_data(7), eval_every=6)
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


def test_evaluation_leaves_no_trace_and_is_per_datum():
    plain, evaluated = run(), run(eval_data=make_data(7), eval_every=3)
    np.testing.assert_array_equal(plain.losses, evaluated.losses)
    assert plain.history[-1]["ess"] == evaluated.history[-1]["ess"]
    once, twice = (
        run(1, eval_data=data).history[-1]["eval_loss"]
        for data in (torch.ones(5, 4), (torch.ones(50, 4),))
    )
    assert abs(once - twice) < 1.0


def test_a_plateau_scheduler_watches_the_evaluation_loss():
    def make():
        return pyro.optim.ReduceLROnPlateau(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": 0.01},
                "patience": 0,
                "threshold": 9,
            }
        )

    with pytest.raises(ValueError, match="`eval_data` is needed"):
        run(svi=make_svi(optim=make()))
    svi = make_svi(optim=make())
    run(svi=svi, eval_data=make_data(), eval_every=2)
    rates = {s.optimizer.param_groups[0]["lr"] for s in svi.optim.optim_objs.values()}
    assert max(rates) < 0.01


def test_schedules_reach_their_ends():
    down, line = exponential_schedule(0.5, 0.01, 100), linear_schedule(1.0, 0.0, 10)
    np.testing.assert_allclose(
        [down(0), down(50), down(100), down(999)], [0.5, 0.005**0.5, 0.01, 0.01]
    )
    np.testing.assert_allclose([line(0), line(5), line(10), line(11)], [1.0, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(down(torch.tensor([0, 200])), [0.5, 0.01])
    with pytest.raises(ValueError, match="linear_schedule"):
        exponential_schedule(1.0, 0.0, 10)
    with pytest.raises(ValueError, match="`num_steps`"):
        linear_schedule(1.0, 0.0, 0)


# Checkpoints


@pytest.mark.parametrize("stop", [3, 8, 10])
@pytest.mark.parametrize("kind", ["array", "loader"])
def test_a_resumed_run_gives_the_same_numbers(tmp_path, stop, kind):
    def settings():
        if kind == "array":
            return {"eval_data": make_data(7), "eval_every": 6}
        return {"data": loader(), "batch_size": None}

    whole = run(16, **settings(), folder=tmp_path / "whole")
    with pytest.raises(FitInterrupt) as error:
        run(16, stopping_svi(stop), **settings(), folder=tmp_path / "cut")
    assert error.value.result.num_steps == stop
    svi = make_svi(seed=7, loss=Counting_ELBO())  # other values, other generators
    resumed = run(16, svi, **settings(), folder=tmp_path / "cut", resume=True)
    same(whole, resumed)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert numbers(map(json.loads, logs[0])) == numbers(map(json.loads, logs[1]))
    buffers = [dict(r.model.__self__.named_buffers()) for r in (whole, resumed)]
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])


def stopping_svi(stop):
    """An SVI that gets a SIGINT, as from Ctrl-C, during step `stop`."""
    svi = make_svi()
    step, elbo = svi.loss_and_grads, svi.loss_and_grads.__self__

    def loss_and_grads(model, guide, x):
        if int(elbo.state.step) == stop - 1:
            signal.raise_signal(signal.SIGINT)
        return type(elbo).loss_and_grads(elbo, model, guide, x)

    elbo.loss_and_grads = loss_and_grads
    assert step.__self__ is elbo

    class Bound:
        def __call__(self, *args):
            return loss_and_grads(*args)

        __self__ = elbo

    svi.loss_and_grads = Bound()
    return svi


def test_resuming_in_the_same_process_rewinds_it(tmp_path):
    svi = make_svi()
    run(8, svi, folder=tmp_path, checkpoint_every=8)
    whole = run(16, svi, folder=tmp_path, checkpoint_every=8, resume=True)
    same(run(16), whole)
    assert run(16, svi, folder=tmp_path, resume=True).num_steps == 16  # nothing left to do


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_fit import run
run(400, folder=Path({folder!r}), checkpoint_every=10, log_every=3, eval_every=7)
"""


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    folder = tmp_path / "run"
    code = KILLED.format(tests=str(ROOT / "tests"), folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 10):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert 10 <= before < 400
    settings = {"checkpoint_every": 10, "log_every": 3}
    resumed = run(before + 25, make_svi(3), folder=folder, resume=True, **settings)
    same(run(before + 25, **settings), resumed)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_sigterm_and_no_folder():
    svi = make_svi()
    step = svi.loss_and_grads

    def loss_and_grads(*args):
        signal.raise_signal(signal.SIGTERM)
        return step(*args)

    svi.loss_and_grads = loss_and_grads
    usual = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FitInterrupt, match="nothing was saved") as error:
        run(svi=svi)
    assert error.value.signal == signal.SIGTERM
    assert "\n" not in str(error.value)
    assert signal.getsignal(signal.SIGTERM) is usual


def test_a_new_run_keeps_the_previous_one(tmp_path):
    run(4, folder=tmp_path)
    run(8, folder=tmp_path)
    steps = [
        torch.load(tmp_path / name, weights_only=True)["step"]
        for name in ("checkpoint.pt", "checkpoint.previous.pt")
    ]
    assert steps == [8, 4]
    assert (tmp_path / "log.previous.jsonl").exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run(4, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def fail(state, file):
        file.write(b"half a checkpoi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        run(8, folder=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


# Divergence


class Failing_ELBO(Counting_ELBO):
    """Its loss is NaN from step 11 on."""

    def loss_and_grads(self, *args, **kwargs):
        loss = super().loss_and_grads(*args, **kwargs)
        return loss * torch.where(self.state.step > 10, torch.nan, 1.0)


def test_a_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(DivergenceError, match="step 11") as error:
        run(svi=make_svi(loss=Failing_ELBO()), folder=tmp_path, checkpoint_every=4)
    found = error.value
    assert found.checkpoint == tmp_path / "checkpoint.pt"
    assert np.isfinite(found.last_loss)
    assert re.search("checkpoint.pt.*learning rate", str(found))
    state = torch.load(found.checkpoint, weights_only=True)
    assert state["step"] == 8
    assert all(value.isfinite().all() for value in state["training"]["params"].values())


def test_a_parameter_that_goes_is_named_before_it_is_saved(tmp_path):
    svi = make_svi()
    step = svi.optim.step

    def poison():
        step()
        with torch.no_grad():
            svi.model.__self__.decoder[0].bias[0] = torch.nan

    svi.optim.step = poison
    with pytest.raises(DivergenceError, match=r"decoder.*bias.*none") as error:
        run(svi=svi, folder=tmp_path, checkpoint_every=1)
    assert error.value.step == 1
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("validate", [True, False])
def test_a_nan_in_a_users_batch_is_named(validate):
    batches = [torch.ones(5, 4), torch.ones(5, 4), torch.full((5, 4), torch.inf)]
    with pyro.validation_enabled(validate):
        with pytest.raises(DivergenceError, match=r"step 3: not finite: the data of step 3"):
            run(data=batches, batch_size=None)


def test_an_error_of_the_users_own_passes():
    def model(x):
        raise ValueError("mine")

    svi = SVI(model, model, pyro.optim.Adam({"lr": 0.1}), TraceGraph_ELBO())
    with pytest.raises(ValueError, match="mine"):
        run(svi=svi)


# Bad input


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
        ({"data": [torch.zeros(5, 4)]}, "`batch_size` is 5, but `data` is an iterable"),
        ({"data": [], "batch_size": None}, "`data` gave no batch"),
        ({"data": iter([torch.ones(5, 4)]), "batch_size": None}, "used only once"),
        ({"resume": True}, "`resume` is True, but there is no `folder`"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(**settings)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"sizes 3 \(argument 0\), 2 \(argument 1\)"):
        fit(make_svi(), np.zeros(3), np.zeros(2), num_steps=1)
    with pytest.raises(ValueError, match="`data` is empty: pass the arguments"):
        fit(make_svi(), num_steps=1)


def test_bad_folders(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`folder` cannot be written to"):
        run(folder=tmp_path / "file" / "below")
    with pytest.raises(ValueError, match=r"holds no checkpoint.pt"):
        run(folder=tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(folder=tmp_path, resume=True)


def test_another_model_or_other_data_cannot_be_resumed(tmp_path):
    run(4, folder=tmp_path)
    with pytest.raises(ValueError, match=r"another model.*has shape \(5, 4\), in the checkpoint"):
        run(8, make_svi(width=5), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="`data` has 20 rows"):
        run(8, data=make_data(20), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="iterable of batches, but the checkpoint"):
        run(8, data=loader(), batch_size=None, folder=tmp_path, resume=True)


class Odd_ELBO(TraceGraph_ELBO):
    state = ("fine", object())


def test_a_loss_that_cannot_be_checkpointed_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"\['loss_state'\]\[1\], a object"):
        run(4, make_svi(loss=Odd_ELBO()), folder=tmp_path)
