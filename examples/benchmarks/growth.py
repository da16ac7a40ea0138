"""How time, memory and bound of truncated posteriors grow with data and latents.

Sums of sparse binary atoms of 64 pixels, and noise, learnt with as many latents, sets of 32 states
and batches of 1000. Prints a row for each size, each of a process of its own: CPU seconds of an
epoch after the first, peak resident memory beyond that of a run on one batch (the images are there
already), and the bound per image in the first epoch and in the second; then the exponents of the
growth, fitted to each column.

    python examples/benchmarks/growth.py --backend numpyro
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from backends import Backend, get_backend
from cli import Parser, positive, run_main

_PIXELS, _BATCH, _STATES = 64, 1000, 32
_NUM_DATA, _AT = (100_000, 200_000, 400_000), 128  # numbers of data, and of latents beside them
_LATENTS, _OF = (250, 500, 1000), 50_000  # numbers of latents, and of data beside them
_MORE = 4  # epochs beyond a first one, whose time is measured: what compiles varies by seconds


def main(arguments: list[str]) -> None:
    """Print rows and exponents."""
    parser = Parser(__doc__, out=None)
    parser.add_argument(
        "--size", type=positive, nargs=2, help="numbers of data and latents of one row"
    )
    args = parser.parse_args(arguments)
    if args.size:
        print(json.dumps(measure(get_backend(args.backend, "cpu"), *args.size, args.seed)))
        return
    by_data = [(number // (100 if args.smoke else 1), _AT) for number in _NUM_DATA]
    by_latents = [(_OF // (50 if args.smoke else 1), number) for number in _LATENTS]
    print(
        "| data | latents | CPU s an epoch | memory, MiB | nats an image, first and second epoch |"
    )
    print("|---:|---:|---:|---:|---:|")
    for name, sizes in {"data": by_data, "latents": by_latents}.items():
        rows = [in_a_process(size, args) for size in sizes]
        axis = np.log([size[name == "latents"] for size in sizes])
        for key in ("seconds", "mebibytes"):
            values = np.log([max(row[key], 1e-3) for row in rows])
            print(f"{key} grow as {name} to the power of {np.polyfit(axis, values, 1)[0]:.2f}")


def in_a_process(size: tuple[int, int], args: Any) -> dict[str, float]:
    """Measure a size, and print its row."""
    command = [sys.executable, __file__, "--backend", args.backend, "--seed", str(args.seed)]
    command += ["--size", *map(str, size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(output.splitlines()[-1])
    bounds = f"{row['first']:.2f}, {row['second']:.2f}"
    sizes = f"| {size[0]} | {size[1]} | "
    print(f"{sizes}{row['seconds']:.1f} | {row['mebibytes']:.0f} | {bounds} |", flush=True)
    return row


def measure(backend: Backend, num_data: int, num_latents: int, seed: int) -> dict[str, float]:
    """One size."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((num_latents, _PIXELS)).astype(np.float32)
    images = 0.3 * rng.standard_normal((num_data, _PIXELS), np.float32)
    for rows in np.split(np.arange(num_data), range(_BATCH, num_data, _BATCH)):
        images[rows] += (rng.random((len(rows), num_latents)) < 2 / num_latents) @ atoms
    start = atoms + 0.5 * rng.standard_normal(atoms.shape, np.float32)
    train(backend, images[:_BATCH], start, 2, seed)
    before = peak()
    seconds, bounds = [], []
    for epochs in (1, 1 + _MORE):
        begun = time.process_time()
        bounds = train(backend, images, start, epochs, seed)
        seconds.append(time.process_time() - begun)
    found = {"seconds": (seconds[1] - seconds[0]) / _MORE, "mebibytes": peak() - before}
    return found | {"first": bounds[0], "second": bounds[1]}


def train(
    backend: Backend, images: np.ndarray, atoms: np.ndarray, epochs: int, seed: int
) -> list[float]:
    """The bound per image, in the mean over each epoch."""
    infer, evolution = backend.module("infer"), backend.module("ops.evolution")
    models = backend.module("models")
    backend.seed(seed)
    num_data, per_epoch = len(images), len(images) // _BATCH
    model = models.DiscreteVAE(
        backend.make_dictionary(atoms),
        models.BernoulliPrior(len(atoms), probability=2 / len(atoms), learn="closed_form"),
        models.GaussianLikelihood(variance=0.5, learn="closed_form"),
    )
    result = backend.train(
        model,
        infer.TruncatedGuide(model, _STATES),
        infer.Truncated_ELBO(evolution.chain(evolution.select(4), evolution.flip(6))),
        images,
        np.arange(num_data),
        num_data,
        learning_rate=1e-3,
        num_steps=epochs * per_epoch,
        batch_size=_BATCH,
        log_every=per_epoch,
        progress=False,
    )
    return [-float(row["mean_loss"]) / num_data for row in result.history]


def peak() -> float:
    """Largest resident memory so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    run_main(main)
