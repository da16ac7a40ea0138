"""Kill runs of `fit` at random moments, resume them, and compare the end with an unbroken run.

    python tests/killing.py pyro daps --kills 22 --seed 0

Each run is a process of its own, killed by signal 9 (or told to stop by 15 or 2) at a random time,
also while a checkpoint is written, as there is one every step or two. The next one resumes. After
so many kills the last run goes on to the end: its losses and parameters are those of an unbroken
run, to the last bit. Prints what was done, with its seed.
"""

import argparse
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "tools")]

import numpy as np  # noqa: E402

SCENARIOS = ("daps", "reinforce", "truncated", "vq", "schedule", "restarts", "loader")
STEPS, BATCH = 60, 8
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
IMAGES = (np.random.default_rng(0).random((40, 4, 4)) < 0.5).astype(np.float32)


def train(name, scenario, folder):
    """One run to the end; its losses and parameters."""
    from backends import get_backend
    from configs import Config

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
    }[scenario]


class Shuffled:
    """Batches by a loader of Torch's, in an order drawn from its generator.

    It has two workers, but beside JAX, whose threads do not survive a fork.
    """

    def __init__(self):
        importlib.import_module("torch")  # as whoever has a loader has done before `fit`

    def __iter__(self):
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        data = TensorDataset(torch.from_numpy(IMAGES))
        num_workers = 0 if "jax" in sys.modules else 2
        yield from DataLoader(data, BATCH, shuffle=True, num_workers=num_workers)


def flat(value, name=""):
    """Arrays of a nested dictionary, by name."""
    if hasattr(value, "items"):
        parts = (flat(entry, f"{name}.{key}") for key, entry in value.items())
        return {key: entry for part in parts for key, entry in part.items()}
    return {name: np.asarray(value)}


def run_in_child(name, scenario, folder, out):
    """Fork a run; its process."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        result = train(name, scenario, folder)
        np.savez(out, losses=result.losses, **flat(result.params))
        status = 0
    except KeyboardInterrupt as error:  # `FitInterrupt`: the run has saved what it has
        status = 128 + getattr(error, "signal", 2)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_and_resume(name, scenario, place, kills, rng):
    """So many kills of one run, then its end; how many resumes there were."""
    start = time.monotonic()
    assert status_of(run_in_child(name, scenario, place / "whole", place / "whole.npz")) == 0
    longest, killed, rounds = 1.2 * (time.monotonic() - start), 0, 0
    while killed < kills:
        rounds += 1
        folder, out = place / f"cut-{rounds}", place / f"cut-{rounds}.npz"
        while not out.exists():
            process = run_in_child(name, scenario, folder, out)
            if killed < kills:
                time.sleep(rng.uniform(0.2, 1.0) * longest)
                if os.waitpid(process, os.WNOHANG) == (0, 0):
                    os.kill(process, rng.choice(SIGNALS))
                    killed += 1
                    status_of(process)
            else:
                assert status_of(process) == 0
        compare(place / "whole.npz", out)
    return killed, rounds


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
    __import__(f"{args.package}_dvae.fit")
    __import__(f"{args.package}_dvae.infer")
    with tempfile.TemporaryDirectory() as place:
        rng = random.Random(args.seed)
        killed, rounds = kill_and_resume(args.package, args.scenario, Path(place), args.kills, rng)
    print(f"{args.package} {args.scenario}: {killed} kills in {rounds} runs, seed {args.seed}")


if __name__ == "__main__":
    main()
