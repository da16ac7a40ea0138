"""Kill runs of `fit` at random moments, resume them, and compare the end with an unbroken run.

    python tests/killing.py pyro daps --kills 22 --seed 0

Each run is a process of its own, or two that share it, of which the second is killed. It is killed
by signal 9, or told to stop by 15, by 2 or by 2 twice, at a random time; every other time as soon
as a half-written checkpoint is seen. The next one resumes. After so many kills the last run goes on
to the end: its losses and parameters are those of an unbroken run, to the last bit. Prints what was
done, with its seed.
"""

import argparse
import contextlib
import importlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "tools")]

import numpy as np  # noqa: E402

SCENARIOS = ("daps", "reinforce", "truncated", "vq", "schedule", "restarts", "loader", "processes")
STEPS, BATCH = 60, 8
SIGNALS = (*[(signal.SIGKILL,)] * 3, (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT,) * 2)
IMAGES = (np.random.default_rng(0).random((40, 4, 4)) < 0.5).astype(np.float32)
EPOCH = 6  # times the images, in an epoch of the loader
TOLD = 3  # a status
MEETING = 30  # seconds in which the processes of a run have to meet
PATIENCE = 120.0  # seconds in which the other process of a run has to end
HALF_WRITTEN = (".checkpoint.pt.*", "*orbax-checkpoint-tmp*")
CACHE = {  # equal programs compile once for all runs: kills are to hit steps
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def train(name, scenario, folder, meeting, rank):
    """One run to the end; its losses and parameters."""
    from backends import get_backend
    from configs import Config

    if scenario == "processes":
        try:
            meet(name, meeting, rank)
        except RuntimeError as error:
            raise ConnectionError("the other process was killed before they met") from error
    backend = get_backend(name, "cpu")
    places = (folder, *folder.glob("restart-*"))
    resume = any(backend.has_checkpoint(place) for place in places)
    backend.seed(7 if resume else 0)  # the checkpoint has the generators
    config = Config(num_latents=3, num_codes=4, embed_dim=4, encoder_hidden=(8,), num_states=5)
    config = config._replace(decoder_hidden=(8,), likelihood="bernoulli")
    config = config._replace(guide=scenario if scenario in ("truncated", "vq") else "independent")
    method, options = options_of(backend, scenario)
    settings = {"num_steps": STEPS, "learning_rate": 0.01, "decay": 0.1, "progress": False}
    settings |= {"folder": folder, "checkpoint_every": 2, "log_every": 3}

    def programs():
        model, guide = backend.make_vae(config, IMAGES)
        return *backend.programs(method, model, guide, STEPS), backend.make_loss(method, **options)

    if scenario == "restarts":
        settings |= {"num_restarts": 2, "batch_size": BATCH}
        return backend.train_best(programs, IMAGES, resume=resume, **settings)
    model, guide, loss = programs()
    if scenario == "loader":
        return backend.train(model, guide, loss, Shuffled(), resume=resume, **settings)
    data = backend.inputs(guide, IMAGES)
    return backend.train(model, guide, loss, *data, resume=resume, batch_size=BATCH, **settings)


def meet(name, meeting, rank):
    """Join the other process of a run."""
    if name == "pyro":
        from torch import distributed

        given = {"init_method": f"file://{meeting}", "timeout": timedelta(seconds=MEETING)}
        distributed.init_process_group("gloo", rank=rank, world_size=2, **given)
    else:
        import jax

        given = {"initialization_timeout": MEETING}
        jax.distributed.initialize(meeting, num_processes=2, process_id=rank, **given)


def options_of(backend, scenario):
    """The method of a scenario, and the options of its loss."""
    schedule = backend.module("fit").exponential_schedule(1.0, 0.1, STEPS)
    average = backend.module("ops.baselines").moving_average
    return {
        "daps": ("daps", {"num_particles": 3, "target_rate": 2.0}),
        "reinforce": ("reinforce", {"num_particles": 3, "baseline": average()}),
        "truncated": ("truncated", {"beta": schedule}),
        "vq": ("vq", {}),
        "schedule": ("vimco", {"num_particles": 3, "beta": schedule}),
        "restarts": ("daps", {"num_particles": 3}),
        "loader": ("reinforce", {"num_particles": 3}),
        "processes": ("daps", {"num_particles": 3, "target_rate": 2.0}),
    }[scenario]


class Shuffled:
    """Batches by a loader of Torch's, in an order drawn from its generator, with two workers.

    Beside JAX, whose threads do not survive a fork, it is one that is spawned.
    """

    def __init__(self):
        importlib.import_module("torch")  # as whoever has a loader has done before `fit`

    def __iter__(self):
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        data = TensorDataset(torch.from_numpy(np.tile(IMAGES, (EPOCH, 1, 1))))
        how, workers = ("spawn", 1) if "jax" in sys.modules else ("fork", 2)
        settings = {"num_workers": workers, "multiprocessing_context": how}
        yield from DataLoader(data, BATCH, shuffle=True, **settings)


def flat(value, name=""):
    """Arrays of a nested dictionary, by name."""
    if hasattr(value, "items"):
        parts = (flat(entry, f"{name}.{key}") for key, entry in value.items())
        return {key: entry for part in parts for key, entry in part.items()}
    return {name: np.asarray(value)}


def start(name, scenario, folder, out):
    """Fork a run; its processes, the one to be killed last."""
    ranks = range(2) if scenario == "processes" else range(1)
    meeting = out.with_suffix(f".{time.monotonic_ns()}")
    if name == "numpyro" and scenario == "processes":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            meeting = f"localhost:{free.getsockname()[1]}"
    return [run_in_child(name, scenario, folder, out, meeting, rank) for rank in ranks]


def run_in_child(name, scenario, folder, out, meeting, rank):
    """Fork a process of a run."""
    process = os.fork()
    if process:
        return process
    status = 1
    os.setpgid(0, 0)  # so that its workers can be ended with it
    try:
        result = train(name, scenario, folder, meeting, rank)
        if rank == 0:
            np.savez(out, losses=result.losses, **flat(result.params))
        status = 0
    except KeyboardInterrupt as error:  # `FitInterrupt`: the run has saved what it has
        status = 128 + getattr(error, "signal", 2)
    except ConnectionError:
        status = TOLD  # the other process has ended, and this one has said so
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def has_ended(process):
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def status_of(process):
    """How a process ends; one that does not is ended, and told by an error."""
    until = time.monotonic() + PATIENCE
    while not has_ended(process):
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            raise TimeoutError("a process of a run has not ended with it")
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)  # workers that were just being started
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def half_written(folder):
    names = (name for _, *found in os.walk(folder) for part in found for name in part)
    return any(fnmatch(name, pattern) for name in names for pattern in HALF_WRITTEN)


def wait(process, folder, seconds, *, for_a_write):
    """Let a process run for so long, and on until it writes a checkpoint; whether it still runs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not has_ended(process):
        time.sleep(0.005)
    while for_a_write and not has_ended(process) and not half_written(folder):
        time.sleep(0.0002)
    return not has_ended(process)


def interrupt(processes, signals, rng):
    """End a run, its last process by a signal or two, the others by themselves."""
    first, *more = signals
    os.kill(processes[-1], first)
    for number in more:
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(processes[-1], number)  # it is not reaped yet
    return [status_of(process) for process in processes]


def kill_and_resume(name, scenario, place, kills, rng):
    """So many kills, each run then to its end; kills, those in a write, and runs."""
    for i in range(2):  # the second one finds all programs compiled
        begun = time.monotonic()
        assert not any(map(status_of, start(name, scenario, place / f"{i}", place / f"{i}.npz")))
        longest = time.monotonic() - begun
    compare(place / "0.npz", place / "1.npz")
    killed = in_a_write = runs = 0
    while killed < kills:
        runs += 1
        folder, out = place / f"cut-{runs}", place / f"cut-{runs}.npz"
        while not out.exists():
            processes = start(name, scenario, folder, out)
            seconds = rng.uniform(0.05, 0.9) * longest
            for_a_write = killed % 2 == 1
            signals = SIGNALS[0] if for_a_write or len(processes) > 1 else rng.choice(SIGNALS)
            if killed < kills and wait(processes[-1], folder, seconds, for_a_write=for_a_write):
                others = interrupt(processes, signals, rng)[:-1]
                if others and not any(others):  # which had come to the end already
                    continue
                assert others == [TOLD] * len(others), f"the others ended with {others}"
                killed += 1
                in_a_write += half_written(folder)
            else:
                assert not any(map(status_of, processes))
        compare(place / "0.npz", out)
    return killed, in_a_write, runs


def compare(expected, found):
    with np.load(expected) as first, np.load(found) as second:
        assert sorted(first) == sorted(second)
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", choices=["pyro", "numpyro"])
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--kills", type=int, default=22)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    with tempfile.TemporaryDirectory() as place:
        os.environ.update(CACHE | {"JAX_COMPILATION_CACHE_DIR": f"{place}/compiled"})
        __import__(f"{args.package}_dvae.fit")
        __import__(f"{args.package}_dvae.infer")
        if args.scenario == "loader":
            __import__("torch")  # once, before the forks
        rng, place = random.Random(args.seed), Path(place)
        done = kill_and_resume(args.package, args.scenario, place, args.kills, rng)
    print(
        f"{args.package} {args.scenario}: {done[0]} kills, {done[1]} of them in a write, "
        f"in {done[2]} runs, seed {args.seed}"
    )


if __name__ == "__main__":
    main()
