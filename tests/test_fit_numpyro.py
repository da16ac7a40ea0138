"""What `numpyro_dvae.fit` does and its sibling has no counterpart of: compiling, and the state."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("jax")
pytest.importorskip("numpyro")

import fit_numpyro as kit
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.svi import SVIState
from test_fit import make_data, run

from numpyro_dvae.fit import (
    DivergenceError,
    checkpoints,
    exponential_schedule,
    fit,
    linear_schedule,
)
from numpyro_dvae.fit import run as training
from numpyro_dvae.fit.compiled import Compiled
from numpyro_dvae.fit.log import Log
from numpyro_dvae.fit.plain import as_plain
from numpyro_dvae.fit.steps import Steps
from numpyro_dvae.fit.svi import loss_scalars
from numpyro_dvae.infer.daps import DAPS_ELBO
from numpyro_dvae.infer.svi import loss_state

KEY = kit.make_svi().rng_key


def model(x):
    weight = numpyro.param("weight", jnp.zeros(3))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones((len(x), 3)) / 3))
        numpyro.sample("x", dist.Normal(weight[z], 1.0), obs=x)


def guide(x):
    logits = numpyro.param("logits", jnp.zeros(3))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=jnp.outer(x, logits)))


def small_svi(loss=None, optim=None, kind=SVI):
    return kind(model, guide, optim or optax.sgd(0.05), loss or DAPS_ELBO(4))


def small_fit(svi=None, num_data=12, **settings):
    x = jnp.linspace(-1, 1, num_data)
    return fit(KEY, svi or small_svi(), x, **{"progress": False} | settings)


# Compiling


@pytest.fixture
def compiled():
    """Names of what is compiled, as it happens."""
    found = []

    def listen(event, seconds, **names):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(names.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.skipif(jax.config.jax_check_tracer_leaks, reason="JAX then keeps no traces to reuse")
def test_the_number_of_steps_compiles_nothing_anew(compiled, monkeypatch):
    counts, write = [], Log.write

    def counting_write(self, row):
        counts.append(len(compiled))
        write(self, row)

    monkeypatch.setattr(Log, "write", counting_write)
    svi = small_svi(DAPS_ELBO(4, beta=exponential_schedule(1.0, 0.1, 50)))
    settings = {"batch_size": 5, "log_every": 7, "eval_every": 9, "eval_data": jnp.ones(7)}
    result = small_fit(svi, num_steps=60, **settings)
    assert [row["step"] for row in result.history][:5] == [7, 9, 14, 18, 21]
    assert counts[0] > 0
    assert counts[2:] == counts[2:3] * len(counts[2:])  # nothing after the first evaluation


def test_a_second_fit_compiles_nothing_again_but_sees_what_has_changed(compiled):
    svi, settings = small_svi(), {"num_steps": 10, "batch_size": 5, "eval_data": jnp.ones(7)}
    first, num_programs = small_fit(svi, **settings), len(compiled)
    assert num_programs > 0
    second = small_fit(svi, **settings)
    assert len(compiled) == num_programs
    np.testing.assert_array_equal(first.losses, second.losses)
    svi.loss.beta = 0.5
    third = small_fit(svi, **settings)
    assert len(compiled) > num_programs
    assert third.history[-1]["beta"] == 0.5


def test_batches_of_an_iterable_compile_once_a_shape():
    def traces(num_steps):
        found = []

        def tracing_model(x):
            found.append(x.shape)
            return model(x)

        svi = SVI(tracing_model, guide, optax.sgd(0.1), DAPS_ELBO(2))
        batches = [np.full(n, i / 9, np.float32) for i, n in enumerate([4, 4, 4, 3, 4, 3])]
        fit(KEY, svi, batches, num_steps=num_steps, progress=False)
        return found

    assert traces(6) == traces(24)


def test_how_steps_are_dispatched_does_not_change_the_numbers(monkeypatch):
    whole = small_fit(num_steps=30, batch_size=5, log_every=10)
    monkeypatch.setattr("numpyro_dvae.fit.run._DISPATCH_SECONDS", 0.0)  # one by one
    np.testing.assert_array_equal(
        small_fit(num_steps=30, batch_size=5, log_every=10).losses, whole.losses
    )


# The state


@pytest.mark.parametrize("apart", [False, True])
def test_a_row_within_a_dispatch_is_that_of_a_run_that_ends_there(apart, monkeypatch):
    monkeypatch.setattr(Compiled, "holds", lambda *arguments: apart)
    rows = {row["step"]: row for row in run(kit, 14).history}
    assert list(rows) == [4, 8, 12, 14]
    for end in (4, 8):  # a clock tells the others
        timed = {"steps_per_second", "seconds"}
        found = {name: value for name, value in rows[end].items() if name not in timed}
        assert found.items() <= run(kit, end).history[-1].items()
    seconds = [row["seconds"] for row in rows.values()]
    assert [0, *seconds] == sorted({0, *seconds})


@pytest.mark.parametrize("apart", [False, True])
def test_what_diverges_within_a_dispatch_stops_at_the_next_row(apart, monkeypatch, tmp_path):
    """Step n finds the parameter at n - 1, and no logarithm beyond 5.5."""

    def model(x):
        location = numpyro.param("m", jnp.zeros(()))
        numpyro.factor("f", location + 0 * jnp.log(5.5 - jax.lax.stop_gradient(location)))

    monkeypatch.setattr(Compiled, "holds", lambda *arguments: apart)
    monkeypatch.setattr(training, "_DISPATCH_SECONDS", 1e9)
    taken = []
    monkeypatch.setattr(Steps, "take", recording(Steps.take, taken))
    svi = SVI(model, lambda x: None, optax.sgd(1.0), Trace_ELBO())
    with pytest.raises(DivergenceError) as error:
        fit(KEY, svi, np.ones(3), num_steps=100, log_every=2, folder=tmp_path, progress=False)
    assert (error.value.step, error.value.last_loss) == (7, -5)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert [int(each.num_steps) for each in taken] == [1, 7]  # of the 99 that were asked for


def recording(take, taken):
    def take_and_keep(*arguments):
        taken.append(take(*arguments))
        return taken[-1]

    return take_and_keep


def test_losses_that_remember_do_so_in_any_svi(tmp_path):
    beta = exponential_schedule(1.0, 0.1, 20)
    result = small_fit(small_svi(DAPS_ELBO(4, beta=beta)), num_steps=20, log_every=5)
    np.testing.assert_allclose(
        [row["beta"] for row in result.history], [beta(step - 1) for step in (5, 10, 15, 20)], 1e-6
    )
    assert {"elbo", "ess", "temperature", "rate"} <= result.history[-1].keys()
    assert loss_state(result.svi_state).beta.step == 20
    assert "_loss" not in result.params


def test_a_state_goes_on_and_is_left_as_it_is():
    svi = small_svi(DAPS_ELBO(4, beta=exponential_schedule(1.0, 0.1, 20)))
    first = small_fit(svi, num_steps=10)
    second = small_fit(svi, num_steps=10, init_state=first.svi_state)
    np.testing.assert_array_equal(small_fit(svi, num_steps=20).losses[10:], second.losses)
    assert loss_state(first.svi_state).beta.step == 10
    state = svi.init(jax.random.key(0), jnp.zeros(4))  # NumPyro's own: without memory
    assert loss_state(small_fit(svi, num_steps=1, init_state=state).svi_state).beta.step == 1
    svi.get_params(state)  # not given away


def test_whole_numbers_that_jax_would_wrap_are_refused():
    for least, dtype in ((3_000_000_000, np.int64), (-3_000_000_000, np.int64), (2**32, np.uint64)):
        rows = np.array([[least, 1]] * 5).astype(dtype)
        for data in (rows, [rows]):
            with pytest.raises(ValueError, match=rf"`data` holds .* from .*{least}"):
                with jax.enable_x64(False):
                    run(kit, data=data, batch_size=None)
    small = np.arange(20, dtype=np.int64).reshape(5, 4) % 2
    assert np.isfinite(run(kit, 1, data=small).losses).all()


def test_a_users_array_is_not_given_away():
    start = jnp.arange(3.0)

    def guide(x):
        numpyro.param("start", start)

    def model(x):
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)

    svi = SVI(model, guide, optax.sgd(0.1), Trace_ELBO())
    small_fit(svi, num_steps=1)
    np.testing.assert_array_equal(start, np.arange(3.0))


def test_params_hold_all_that_the_programs_need():
    result = run(kit, 4)
    assert result.params.keys() == {"decoder", "encoder", "mean"}
    draws = Predictive(result.guide, params=result.params, num_samples=3)
    assert draws(jax.random.key(0), make_data())["z"].shape == (3, 23, 2)


@pytest.mark.parametrize(
    "optim", [optax.chain(optax.clip(1.0), optax.adam(0.1)), numpyro.optim.Adam(0.1)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_of_any_kind_survive_a_checkpoint(tmp_path, optim, dtype):
    svi = small_svi(optim=optim)
    for step, key in enumerate([jax.random.key(0), jax.random.PRNGKey(0)], 1):
        state = svi.init(key, jnp.zeros(4))
        mutable = {"half / [0]": jnp.array([0.1, 0.2], dtype), "none": jnp.zeros((0, 3), dtype)}
        state = state._replace(mutable_state=mutable)
        run_state = checkpoints.RunState([1.5] * step, 0.0, [], {})
        checkpoints.save_checkpoint(key, tmp_path, svi, state, run_state, {})
        saved = checkpoints.load_checkpoint(tmp_path)
        found = checkpoints.restore(svi, state, saved)
        for old, new in zip(*map(jax.tree.leaves, (state, found)), strict=True):
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(*map(as_plain, (old, new)))


def test_a_checkpoint_that_is_not_whole(tmp_path):
    run(kit, 4, folder=tmp_path)
    shutil.rmtree(tmp_path / kit.CHECKPOINT / "4" / "state")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(kit, 8, folder=tmp_path, resume=True)
    shutil.rmtree(tmp_path / kit.CHECKPOINT / "4")  # killed before there was one
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(kit, 8, folder=tmp_path, resume=True)


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey])
def test_the_key_of_the_checkpoint_goes_on(tmp_path, key):
    x, settings = jnp.linspace(-1, 1, 12), {"batch_size": 5, "progress": False}
    whole = fit(key(0), small_svi(), x, num_steps=9, **settings)
    fit(key(0), small_svi(), x, num_steps=4, folder=tmp_path, **settings)
    rest = fit(key(1), small_svi(), x, num_steps=9, folder=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(whole.losses, rest.losses)


def test_one_step_of_a_checkpoint_is_kept(tmp_path):
    small_fit(num_steps=6, folder=tmp_path, checkpoint_every=2)
    with ocp.CheckpointManager((tmp_path / kit.CHECKPOINT).absolute()) as manager:
        assert list(manager.all_steps()) == [6]


def test_the_format_of_a_checkpoint(tmp_path):
    """Folders of earlier versions are read by these names: another set is another format."""
    small_fit(num_steps=4, folder=tmp_path)
    with ocp.CheckpointManager((tmp_path / kit.CHECKPOINT).absolute()) as manager:
        items = {"state": ocp.args.StandardRestore(), "run": ocp.args.JsonRestore()}
        found = manager.restore(4, args=ocp.args.Composite(**items))
    names = {"format", "step", "seconds", "identity", "history", "data", "rng_key", "shapes"}
    names |= {"empty", "sums", "sum"}
    assert found["run"].keys() == names
    assert found["run"]["format"] == 3
    assert found["run"]["data"] == {"size": 12}
    assert found["run"]["shapes"] == {"weight": [3], "logits": [3]}
    assert {"losses", ".rng_key"} < found["state"].keys()
    assert len(found["state"]["losses"]) == 4


# The rest


def test_a_loss_that_drops_mutable_state_is_refused():
    class Forgetful(kit.Plain_ELBO):
        def __init__(self):
            super().__init__(num_particles=2)

    svi = kit.make_svi(loss=Forgetful(), kind=SVI)
    with pytest.warns(UserWarning, match="mutable state"):
        with pytest.raises(ValueError, match=re.escape("does not keep the mutable state ['mean")):
            run(kit, 2, svi)


def test_mutable_state_that_goes_is_named():
    svi = kit.make_svi()
    state = svi.init(jax.random.key(0), make_data())
    state.mutable_state["mean"]["value"] = jnp.full(6, jnp.inf)
    with pytest.raises(DivergenceError, match=r"mean\.value"):
        run(kit, 1, svi, init_state=state)


@pytest.mark.parametrize("sgd", [numpyro.optim.SGD, optax.sgd])
def test_learning_rates_may_be_schedules(sgd):
    svi = small_svi(optim=sgd(linear_schedule(0.05, 0.0, 2)))
    params = [small_fit(svi, num_steps=n).params["weight"] for n in (1, 2, 9)]
    assert not np.array_equal(params[0], params[1])
    np.testing.assert_array_equal(params[1], params[2])


@pytest.mark.parametrize("optim", [numpyro.optim.Adam, optax.sgd])
def test_parameters_of_single_precision_stay_so_beside_a_schedule(optim, tmp_path):
    """In 64 bits its numbers are double, and make what they multiply so."""

    def single(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            weight = numpyro.param("weight", jnp.full(16, 0.5, jnp.float32))
            mean = z * (weight * jnp.linspace(0.1, 0.3, 16, dtype=jnp.float32)).sum()
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def its_guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=1.0 * x))

    svi = SVI(single, its_guide, optim(linear_schedule(0.05, 0.001, 40)), DAPS_ELBO(4))
    whole = small_fit(svi, num_steps=40)
    assert whole.params["weight"].dtype == jnp.float32
    assert (abs(whole.params["weight"] - 0.5) > 1e-4).all()
    small_fit(svi, num_steps=3, folder=tmp_path)
    resumed = small_fit(svi, num_steps=40, folder=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.params["weight"], whole.params["weight"])


def test_scalars_of_nothing():
    svi = small_svi(Trace_ELBO())
    assert loss_scalars(svi, SVIState((0, None), None, jax.random.key(0))) == {}


def test_a_program_is_compiled_for_the_device_that_it_runs_on():
    code = """
import jax
from numpyro_dvae.fit.compiled import Compiled
for device in jax.devices():
    doubled = Compiled(lambda x: 2 * x, static=())(jax.device_put(1.0, device))
    assert doubled == 2 and doubled.devices() == {device}, (doubled, device)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XLA_FLAGS": flags})
